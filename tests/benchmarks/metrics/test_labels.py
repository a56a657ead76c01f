"""Metrics against their formulas written out in plain Python, and what they refuse."""

import math

import numpy as np
import pytest

from peft_bench.config.metrics import metric, metrics_of
from peft_bench.metrics.as_evaluate import as_evaluate
from peft_bench.metrics.labels import METRICS, score

PREDICTED = np.array([1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1])
TRUE = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1])
NUMBERS = np.array([0.3, 2.0, 2.0, -1.5, 4.0, 0.1])
TARGETS = np.array([0.0, 1.0, 3.0, 0.5, 5.0, 1.0])


def accuracy(p, y):
    return sum(a == b for a, b in zip(p, y, strict=True)) / len(p)


def counts(p, y):
    pairs = list(zip(p, y, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1))]  # TP, TN, FP, FN


def f1(p, y):
    tp, _, fp, fn = counts(p, y)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


def macro_f1(p, y):
    """A class that is another one's negative has that one's counts with the roles exchanged."""
    exchanged = [[1 - value for value in values] for values in (p, y)]
    return (f1(p, y) + f1(*exchanged)) / 2


def matthews_correlation(p, y):
    tp, tn, fp, fn = counts(p, y)
    return (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def pearson(p, y):
    mp, my = sum(p) / len(p), sum(y) / len(y)
    covariance = sum((a - mp) * (b - my) for a, b in zip(p, y, strict=True))
    return covariance / math.sqrt(sum((a - mp) ** 2 for a in p) * sum((b - my) ** 2 for b in y))


def spearman(p, y):
    def ranks(values):  # ties share the mean of their places
        return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]

    return pearson(ranks(p), ranks(y))


FORMULAS = {f.__name__: f for f in (accuracy, f1, macro_f1, matthews_correlation, pearson, spearman)}
INPUTS = {name: (NUMBERS, TARGETS) if metric(name).of == "values" else (PREDICTED, TRUE) for name in METRICS}


@pytest.mark.parametrize("name", METRICS)
def test_score_and_compute_equal_the_formula(name):
    predictions, references = INPUTS[name]
    expected = FORMULAS[name](predictions.tolist(), references.tolist())
    assert 0 < abs(expected) < 1
    assert score(name, predictions, references) == pytest.approx(expected, abs=1e-12)
    computed = as_evaluate(name).compute(predictions=predictions, references=references)
    assert computed == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("name", METRICS)
def test_the_ends_of_the_range(name):
    references = INPUTS[name][1]
    assert score(name, references, references) == pytest.approx(1.0)
    worst = -references if metric(name).of == "values" else 1 - references
    assert score(name, worst, references) == pytest.approx(0.0 if name in ("accuracy", "f1", "macro_f1") else -1.0)


def test_arguments_are_not_exchanged():
    """Of these, F1 alone tells which class is positive; it is not symmetric in the classes."""
    assert score("f1", 1 - PREDICTED, 1 - TRUE) != pytest.approx(score("f1", PREDICTED, TRUE))


def test_three_classes():
    assert score("accuracy", [0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
    with pytest.raises(ValueError, match="classes 0 and 1; got 2"):
        score("f1", [0, 1, 2], [0, 1, 1])


def test_one_predicted_class():
    """Zero by definition for MCC and F1 with missed positives: the run is flagged by its predictions, not by these."""
    assert score("matthews_correlation", np.zeros(4, int), [0, 1, 0, 1]) == 0.0
    assert score("f1", np.zeros(4, int), [0, 1, 0, 1]) == 0.0
    assert score("f1", [0, 1], [0, 0]) == 0.0
    assert math.isnan(score("f1", [0, 0], [0, 0]))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("predictions", [[0.1, 0.1, 0.1], [0.0, np.nan, 1.0], [0.0, np.inf, 1.0]])
@pytest.mark.filterwarnings("error")
def test_undefined_correlations_are_nan(name, predictions):
    assert math.isnan(score(name, predictions, [1.0, 2.0, 3.0]))
    assert math.isnan(score(name, [1.0, 2.0, 3.0], predictions))


@pytest.mark.parametrize("name", METRICS)
def test_bad_input(name):
    with pytest.raises(ValueError, match="3 predictions for 2 references"):
        score(name, [0, 1, 0], [0, 1])
    with pytest.raises(ValueError, match="at least one example"):
        score(name, np.array([], dtype=int), np.array([], dtype=int))
    with pytest.raises(ValueError, match="one number per example"):
        score(name, np.zeros((4, 2), int), np.zeros(4, int))
    with pytest.raises(ValueError, match="type"):
        score(name, np.array(["0", "1"]), np.array(["0", "1"]))


def test_classes_are_integers():
    with pytest.raises(ValueError, match="class indices"):
        score("accuracy", [0.2, 0.8], [0, 1])


def test_unknown_metric():
    with pytest.raises(ValueError, match=r"no metric 'bleu' \(known: accuracy"):
        score("bleu", [0], [0])


def test_nothing_is_written(tmp_path):
    module = as_evaluate("accuracy", "f1")
    module = type(module)(module.names, cache_dir=str(tmp_path))
    module.add_batch(predictions=[0, 1], references=[0, 0])
    module.add(prediction=1, reference=1)
    assert module.compute() == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["loss"], r"no metric 'loss' of predictions and references; expected one of accuracy"),
        (["accuracy", "bleu"], "compares classes, e2e; expected one kind"),
    ],
)
def test_a_module_of_what_cannot_be_compared_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        as_evaluate(*names)


def test_the_table_says_where_a_metric_is_computed_and_what_is_better():
    assert set(METRICS) == {*metrics_of("classes", "values")}
    assert metric("loss").better(0.5, than=0.6)
    assert not metric("accuracy").better(0.5, than=0.6)
    assert not metric("accuracy").better(math.nan, than=None)
    assert (metric("loss").best([0.5, 0.6]), metric("f1").best([0.5, 0.6])) == (0.5, 0.6)
    assert (metric("nist").unit, metric("bleu").unit, metric("a server's score").unit) == (1.0, 100.0, 100.0)
