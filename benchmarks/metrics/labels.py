"""Metrics of labels; scikit-learn and scipy do the arithmetic. Each is a function of two arrays (N,), in its own unit:

    accuracy              correct / N                                    0 … 1
    f1                    2 TP / (2 TP + FP + FN), class 1 is positive    0 … 1
    macro_f1              mean of the F1 of every class of the references 0 … 1
    exact_match           share of groups of rows that are all correct    0 … 1   (exact_match(), needs the groups)
    matthews_correlation  (TP·TN − FP·FN) / √(…), any number of classes  −1 … 1; one predicted class: 0, as scikit-learn
    pearson, spearman     linear and rank correlation                    −1 … 1

An undefined score is NaN and never 0: a correlation with a constant, or F1 without one positive on either side.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from ..config.metrics import metric, metrics_of

Numbers = np.ndarray | Sequence[float] | Sequence[int]
EXACT_MATCH, MEAN = "exact_match", "mean"  # of groups of rows; of a task's other metrics


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of predictions that equal the reference."""
    return float(sklearn_metrics.accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1, for two classes."""
    if unknown := sorted(set(np.union1d(predictions, references).tolist()) - {0, 1}):
        raise ValueError(f"f1 is defined here for the classes 0 and 1; got {unknown[0]} too")
    return float(sklearn_metrics.f1_score(references, predictions, zero_division=np.nan))


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean over the classes that the references have of each class's F1, 0 for one that is never predicted."""
    classes = np.unique(references)
    return float(sklearn_metrics.f1_score(references, predictions, labels=classes, average="macro", zero_division=0))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Correlation between predicted and true classes; 0 where only one class is predicted or present."""
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Linear correlation; NaN where predictions or references are constant or not finite."""
    if _undefined(predictions, references):
        return float("nan")
    return float(stats.pearsonr(references, predictions).statistic)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Correlation of ranks, ties sharing their mean rank; NaN where predictions or references are constant."""
    if _undefined(predictions, references):
        return float("nan")
    return float(stats.spearmanr(references, predictions).statistic)


def _undefined(*arrays: np.ndarray) -> bool:
    """No correlation: a value that is not finite, or all values equal."""
    return any(not np.isfinite(array).all() or (array == array[0]).all() for array in arrays)


# The function of each metric of labels has the metric's name.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    name: globals()[name] for name in metrics_of("classes", "values")
}


def score(name: str, predictions: Numbers, references: Numbers) -> float:
    """The metric `name` of predictions (N,) against references (N,): class indices, or numbers for the correlations.

    NaN means undefined (see above): the caller marks it.
    """
    if name not in METRICS:
        raise ValueError(f"no metric {name!r} (known: {', '.join(METRICS)}); change task.metrics")
    return METRICS[name](*_checked(name, predictions, references))


def exact_match(correct: np.ndarray, groups: np.ndarray) -> float:
    """Share of the groups whose rows are all correct; correct: (N,) bool, groups: (N,) which group a row is of."""
    return float(1 - len(np.unique(groups[~correct])) / len(np.unique(groups)))


def _checked(name: str, predictions: Numbers, references: Numbers) -> tuple[np.ndarray, np.ndarray]:
    values = metric(name).of == "values"
    arrays = np.asarray(predictions), np.asarray(references)
    for what, array in zip(("predictions", "references"), arrays, strict=True):
        if array.ndim != 1 or not len(array):
            raise ValueError(
                f"{name} needs one number per example, and at least one example; got {what} of shape {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.number) or (not values and array.dtype.kind == "f"):
            kind = "numbers" if values else "class indices (integers)"
            raise ValueError(f"{name} compares {kind}; got {what} of type {array.dtype}")
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(f"{name} got {len(arrays[0])} predictions for {len(arrays[1])} references")
    return arrays
