"""What a metric is: one line each, for records, selection, tables and figures. No torch.

A new metric is a line here and its arithmetic in the package metrics, in the file that `of` names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .schema import LOSS


@dataclass(frozen=True)
class Metric:
    """One score of a split. Scores are kept in the metric's own range; only report/render.py scales them."""

    name: str  # in configurations and records
    of: str = ""  # what it compares: classes, values, groups; e2e, rouge, squad (texts); or what an answer is
    printed: str = ""  # above a column, where that is not its name
    fraction: bool = True  # at most 1, printed in points; else printed in its own unit
    decimals: int = 1  # that the papers print
    lower_is_better: bool = False

    @property
    def title(self) -> str:
        """What stands above its column."""
        return self.printed or self.name

    @property
    def unit(self) -> float:
        """What a score is multiplied by to be printed."""
        return 100.0 if self.fraction else 1.0

    def better(self, score: float, than: float | None) -> bool:
        """Whether a score is the best so far; one that is not finite never is."""
        if not math.isfinite(score) or than is None:
            return math.isfinite(score)
        return score < than if self.lower_is_better else score > than

    def best(self, scores: Iterable[float]) -> float:
        """The best of some scores."""
        return min(scores) if self.lower_is_better else max(scores)


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "classes"),
        Metric("f1", "classes"),
        Metric("macro_f1", "classes"),
        Metric("matthews_correlation", "classes"),
        Metric("pearson", "values"),
        Metric("spearman", "values"),
        Metric("exact_match", "groups"),
        Metric("mean", "metrics"),  # of a task's other metrics
        Metric("bleu", "e2e", "BLEU"),
        Metric("nist", "e2e", "NIST", fraction=False, decimals=2),
        Metric("meteor", "e2e", "METEOR"),
        Metric("rouge_l", "e2e", "ROUGE-L"),
        Metric("cider", "e2e", "CIDEr", fraction=False, decimals=2),
        Metric("rouge1", "rouge", "ROUGE-1", decimals=2),
        Metric("rouge2", "rouge", "ROUGE-2", decimals=2),
        Metric("rougeL", "rouge", "ROUGE-L", decimals=2),
        Metric("squad_em", "squad"),
        Metric("squad_f1", "squad"),
        Metric("wsc_accuracy", "squad"),
        Metric(LOSS, "targets", fraction=False, decimals=2, lower_is_better=True),  # nats per token
        Metric("illegal", "answers"),  # share of the answers that are no label of the task
        Metric("cut_off", "answers", "cut off"),  # share of the texts that came to no end
    )
}
LOWER_IS_BETTER = tuple(metric.name for metric in _METRICS.values() if metric.lower_is_better)


def metric(name: str) -> Metric:
    """The metric of that name. One that only a paper prints (a server's score, a mean) is a fraction, as most are."""
    return _METRICS.get(name) or Metric(name)


def metrics_of(*kinds: str) -> tuple[str, ...]:
    """The names of the metrics that compare such things, in the order of the table."""
    return tuple(metric.name for metric in _METRICS.values() if metric.of in kinds)
