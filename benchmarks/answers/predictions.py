"""What a run answers to a split: labels, labels that it wrote in words, or texts. Each knows its scores, what a reader
of them must know, and its columns in the record's file of predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..config.schema import LOSS, TaskConfig
from ..metrics.scores import ILLEGAL, has_illegal, is_constant, label_scores, text_scores
from ..tasks.examples import Gold

CUT_OFF = "cut_off"  # share of outputs that max_new_tokens cut off
ILLEGAL_ANSWERS = "illegal"  # share of written answers that are no label

Scores = dict[str, tuple[float | None, int]]  # metric -> its value and the number of examples behind it


class Predictions(Protocol):
    """N answers, in the order of the split's rows, or of its inputs where answers are texts."""

    def scores(self, task: TaskConfig, gold: Gold) -> Scores:
        """Every metric of the task, and what else is measured of such answers."""

    def flags(self, task: TaskConfig, selects: bool) -> list[str]:
        """What a reader of the scores must know. selects: the split is the one that checkpoints are selected on."""

    def columns(self, gold: Gold) -> Mapping[str, Any]:
        """Name -> one value per answer, for the record's file of predictions."""


@dataclass(frozen=True)
class Labels:
    """values: (N,) int64 classes, or raw float32 values for regression."""

    values: np.ndarray

    def scores(self, task: TaskConfig, gold: Gold) -> Scores:
        """Every metric of the task."""
        metrics = label_scores(task, self.values, gold.labels, gold.groups)
        return {metric: (value, len(self.values)) for metric, value in metrics.items()}

    def flags(self, task: TaskConfig, selects: bool) -> list[str]:
        """One class (or value) throughout."""
        return ["one_class_predictions"] if selects and is_constant(self.values) else []

    def columns(self, gold: Gold) -> Mapping[str, Any]:
        """Predictions beside the labels."""
        return {"prediction": self.values, "label": gold.labels}


@dataclass(frozen=True)
class Words(Labels):
    """Labels read from written words: ILLEGAL where the words are none of the task's."""

    def scores(self, task: TaskConfig, gold: Gold) -> Scores:
        """Every metric of the task, and the share of illegal answers."""
        illegal = float((self.values == ILLEGAL).mean())
        return super().scores(task, gold) | {ILLEGAL_ANSWERS: (illegal, len(self.values))}

    def flags(self, task: TaskConfig, selects: bool) -> list[str]:
        """One class throughout; illegal answers on any split, also of a task that a run transfers to."""
        illegal = ["illegal_answers"] if has_illegal(task, self.values) else []
        return super().flags(task, selects) + illegal


@dataclass(frozen=True)
class Texts:
    """texts: of the M inputs. ended: (M,) False where max_new_tokens cut it off. loss: nats per token of the targets of
    the split's `pairs` rows."""

    texts: list[str]
    ended: list[bool]
    loss: float

    def scores(self, task: TaskConfig, gold: Gold) -> Scores:
        """The loss, every metric of the task (None where it needs Java, which is not there), the share of outputs that
        were cut off."""
        n = len(self.texts)
        metrics = text_scores(task, self.texts, gold.references, gold.truth)
        return {
            LOSS: (self.loss, len(gold.labels)),
            **{metric: (value, n) for metric, value in metrics.items()},
            CUT_OFF: (self.ended.count(False) / n, n),
        }

    def flags(self, task: TaskConfig, selects: bool) -> list[str]:
        """One text for every input; outputs without an end."""
        if not selects:
            return []
        flags = ["one_text_throughout"] if len(self.texts) > 1 and len(set(self.texts)) == 1 else []
        return flags + ([] if all(self.ended) else ["outputs_cut_off"])

    def columns(self, gold: Gold) -> Mapping[str, Any]:
        """Outputs beside whether they came to an end."""
        return {"prediction": self.texts, "ended": self.ended}
