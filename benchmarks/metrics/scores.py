"""Every metric of a task from what was answered, which validation score is the better one, and what marks a bad run."""

import math
from collections.abc import Sequence

import numpy as np

from ..config.schema import LOSS, TaskConfig
from .e2e import TEXT_METRICS, score_texts
from .labels import EXACT_MATCH, MEAN, exact_match, score
from .rouge import ROUGE, rouge
from .squad import ANSWER_METRICS, score_answers

ILLEGAL = -1  # prediction where an answer is no label of the task; scored as wrong


def label_scores(
    task: TaskConfig, predictions: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Every metric of the task, in the metric's own unit; nan where it is undefined (a constant prediction).

    An answer that is no label of the task is a wrong one. F1, which knows two classes only, sees the other class, as
    T5's released metric does (f1_score_with_invalid); the other metrics see a class of its own.
    """
    found: dict[str, float] = {}
    for metric in task.metrics:
        if metric == MEAN:
            continue
        if metric == EXACT_MATCH:
            assert groups is not None
            found[metric] = exact_match(predictions == labels, groups)
            continue
        two = np.where(predictions == ILLEGAL, 1 - labels, predictions) if metric == "f1" else predictions
        found[metric] = score(metric, two, labels)
    return found | ({MEAN: float(np.mean([*found.values()]))} if MEAN in task.metrics else {})


def text_scores(
    task: TaskConfig, outputs: Sequence[str], references: Sequence[Sequence[str]], truth: np.ndarray | None = None
) -> dict[str, float | None]:
    """Every metric of a task whose answers are texts; None where it needs Java and there is none."""
    kinds = (TEXT_METRICS, ROUGE, ANSWER_METRICS)
    of_e2e, of_summaries, of_answers = ([name for name in task.metrics if name in known] for known in kinds)
    found = score_texts(outputs, references, of_e2e) if of_e2e else {}
    found |= rouge(outputs, references, of_summaries) if of_summaries else {}
    found |= score_answers(outputs, references, of_answers, truth) if of_answers else {}
    values = [value for value in found.values() if value is not None]
    return found | ({MEAN: float(np.mean(values))} if MEAN in task.metrics else {})


def better(metric: str, value: float, than: float | None) -> bool:
    """Whether a validation score is the best so far; a loss is better if it is lower."""
    if not math.isfinite(value) or than is None:
        return math.isfinite(value)
    return value < than if metric == LOSS else value > than


def has_illegal(task: TaskConfig, predictions: np.ndarray) -> bool:
    """Whether an answer is no label of the task; where it is a score, below its range."""
    return bool((predictions == ILLEGAL).any()) and task.label_range[0] > ILLEGAL


def is_constant(predictions: np.ndarray) -> bool:
    """One class (or one value) throughout: the sign of a run that learnt nothing."""
    return len(predictions) > 1 and bool((predictions == predictions[0]).all())
