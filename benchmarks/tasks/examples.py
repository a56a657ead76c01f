"""The examples of a task, what is wrong with data that give none, and the hash that a run id follows from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class DataError(ValueError):
    """Data that cannot be used; the message says what was found, what is expected and where to change it."""


@dataclass(frozen=True)
class Gold:
    """What the answers to a split are scored against.

    labels: (N,) of its rows. groups: (N,) int64, which rows exact_match takes together; None where none does.
    references: of each of M inputs, the texts that an answer is compared with; empty for labels. truth: (M,) int64, 1
    where an input's target is right and 0 where not; None where the task does not say.
    """

    labels: np.ndarray
    groups: np.ndarray | None = None
    references: list[list[str]] = field(default_factory=list)
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class TaskData:
    """The examples of one task.

    texts: split -> rows of one or two texts. labels: split -> (N,) int64 classes, or float64 for regression.
    source: the version of the generated tasks ("micro-2"), or the dataset ("glue"). sha256: of these texts and labels
    by split; file layout, paths and unused columns do not matter.
    groups: split -> (N,) int64, which rows exact_match takes together; empty where the task names no group_columns.
    Where answers are texts: a row is a source and one of its targets, labels tell which of `inputs` the source is;
    inputs: split -> the M different sources; references, truth: split -> what each is scored against (Gold).
    """

    texts: dict[str, list[tuple[str, ...]]]
    labels: dict[str, np.ndarray]
    source: str
    sha256: str
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, list[str]] = field(default_factory=dict)
    references: dict[str, list[list[str]]] = field(default_factory=dict)
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    commit: str | None = None

    def gold(self, split: str) -> Gold:
        """What the answers to a split are scored against."""
        return Gold(self.labels[split], self.groups.get(split), self.references.get(split, []), self.truth.get(split))


@dataclass(frozen=True)
class RunData:
    """All that a run reads. own: its task. transfer: the tasks that it is scored on besides, by name. mixture: the
    training splits of those that it is trained on besides, by name. sha256: of all of it."""

    own: TaskData
    sha256: str
    transfer: dict[str, TaskData] = field(default_factory=dict)
    mixture: dict[str, TaskData] = field(default_factory=dict)

    def rows(self) -> dict[str, int]:
        """How many rows each split has; those of other tasks are called <name>/<split>."""
        others = {
            f"{n}/{s}": len(y) for n, task in (self.transfer | self.mixture).items() for s, y in task.labels.items()
        }
        return {split: len(labels) for split, labels in self.own.labels.items()} | others


def content_hash(
    texts: Mapping[str, list[tuple[str, ...]]],
    labels: Mapping[str, np.ndarray],
    references: Mapping[str, list[list[str]]] | None = None,
    numbers: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Of every split's name, texts, labels and what else a score follows from (numbers: groups, or truth).

    Lengths go in first, so that no two contents give the same bytes.
    """
    content = hashlib.sha256()
    for split in sorted(texts):
        content.update(f"{split}\0{len(texts[split])}\0{len(texts[split][0])}\0{labels[split].dtype.kind}\0".encode())
        for column in zip(*texts[split], strict=True):
            _add(content, column)
        content.update(labels[split].astype(f"<{labels[split].dtype.kind}8").tobytes())
        if numbers and split in numbers:
            content.update(numbers[split].astype("<i8").tobytes())
        for group in (references or {}).get(split, ()):
            content.update(f"{len(group)}\0".encode())
            _add(content, group)
    return content.hexdigest()


def _add(content: Any, column: Sequence[str]) -> None:
    encoded = [text.encode() for text in column]
    content.update(np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded)).tobytes())
    content.update(b"".join(encoded))
