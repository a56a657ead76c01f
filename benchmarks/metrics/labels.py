"""Metrics as `evaluate.Metric` modules that need no network: scikit-learn and scipy do the arithmetic.

Each is in its own unit; only a table scales it:

    accuracy              correct / N                                    0 … 1
    f1                    2 TP / (2 TP + FP + FN), class 1 is positive    0 … 1
    macro_f1              mean of the F1 of every class of the references 0 … 1
    exact_match           share of groups of rows that are all correct    0 … 1   (exact_match(), needs the groups)
    matthews_correlation  (TP·TN − FP·FN) / √(…), any number of classes  −1 … 1; one predicted class: 0, as scikit-learn
    pearson, spearman     linear and rank correlation                    −1 … 1

An undefined score is NaN and never 0: a correlation with a constant, or F1 without one positive on either side.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

Numbers = np.ndarray | Sequence[float] | Sequence[int]


class LocalMetric(evaluate.Metric):
    """What the metrics here share: nothing is downloaded, and nothing is written unless `keep_in_memory=False`.

    `compute(predictions=..., references=...)` gives {name: score}. `value` is the metric itself, a pure function of
    two arrays (N,). regression: numbers are compared, not classes.
    """

    regression: ClassVar[bool] = False

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        """The score of predictions (N,) against references (N,)."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64" if self.regression else "int64")
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation="",
            inputs_description="predictions, references: one number per example",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the user's cache before it knows whether it will write there.
        return str(self._data_dir_root) if self.keep_in_memory else str(super()._build_data_dir())

    def _compute(self, predictions: Numbers, references: Numbers) -> dict[str, float]:
        return {self.name: self.value(*self._checked(predictions, references))}

    def _checked(self, predictions: Numbers, references: Numbers) -> tuple[np.ndarray, np.ndarray]:
        given = np.asarray(predictions), np.asarray(references)
        for what, array in zip(("predictions", "references"), given, strict=True):
            if array.ndim != 1 or not len(array):
                raise ValueError(
                    f"{self.name} needs one number per example, and at least one example; got {what} of shape "
                    f"{array.shape}"
                )
            if not np.issubdtype(array.dtype, np.number) or (not self.regression and array.dtype.kind == "f"):
                kind = "numbers" if self.regression else "class indices (integers)"
                raise ValueError(f"{self.name} compares {kind}; got {what} of type {array.dtype}")
        if len(given[0]) != len(given[1]):
            raise ValueError(f"{self.name} got {len(given[0])} predictions for {len(given[1])} references")
        return given


class Accuracy(LocalMetric):
    """Share of predictions that equal the reference."""

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        return float(sklearn_metrics.accuracy_score(references, predictions))


class F1(LocalMetric):
    """Harmonic mean of precision and recall of class 1, for two classes."""

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        if unknown := sorted(set(np.union1d(predictions, references).tolist()) - {0, 1}):
            raise ValueError(f"f1 is defined here for the classes 0 and 1; got {unknown[0]} too")
        return float(sklearn_metrics.f1_score(references, predictions, zero_division=np.nan))


class MacroF1(LocalMetric):
    """Mean over the classes that the references have of each class's F1, 0 for one that is never predicted."""

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        classes = np.unique(references)
        return float(
            sklearn_metrics.f1_score(references, predictions, labels=classes, average="macro", zero_division=0)
        )


class MatthewsCorrelation(LocalMetric):
    """Correlation between predicted and true classes; 0 where only one class is predicted or present."""

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        return float(sklearn_metrics.matthews_corrcoef(references, predictions))


class Pearson(LocalMetric):
    """Linear correlation; NaN where predictions or references are constant or not finite."""

    regression = True

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        if _undefined(predictions, references):
            return float("nan")
        return float(stats.pearsonr(references, predictions).statistic)


class Spearman(LocalMetric):
    """Correlation of ranks, ties sharing their mean rank; NaN where predictions or references are constant."""

    regression = True

    @staticmethod
    def value(predictions: np.ndarray, references: np.ndarray) -> float:
        if _undefined(predictions, references):
            return float("nan")
        return float(stats.spearmanr(references, predictions).statistic)


def _undefined(*arrays: np.ndarray) -> bool:
    """No correlation: a value that is not finite, or all values equal."""
    return any(not np.isfinite(array).all() or (array == array[0]).all() for array in arrays)


EXACT_MATCH, MEAN = "exact_match", "mean"  # of groups of rows; of a task's other metrics
METRICS: dict[str, type[LocalMetric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "macro_f1": MacroF1,
    "matthews_correlation": MatthewsCorrelation,
    "pearson": Pearson,
    "spearman": Spearman,
}


def score(name: str, predictions: Numbers, references: Numbers) -> float:
    """The metric `name` of predictions (N,) against references (N,): class indices, or numbers for the correlations.

    NaN means undefined (see above): the caller marks it. Arrays go straight to the metric's arithmetic; `compute`
    takes them through an Arrow table, which costs more than the metric.
    """
    if name not in METRICS:
        raise ValueError(f"no metric {name!r} (known: {', '.join(METRICS)}); change task.metrics or add it to METRICS")
    return _metric(name)._compute(predictions, references)[name]


def exact_match(correct: np.ndarray, groups: np.ndarray) -> float:
    """Share of the groups whose rows are all correct; correct: (N,) bool, groups: (N,) which group a row is of."""
    return float(1 - len(np.unique(groups[~correct])) / len(np.unique(groups)))


@cache
def _metric(name: str) -> LocalMetric:
    return METRICS[name]()
