"""The examples of a task, what is wrong with data that give none, and the hash that a run id follows from."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class DataError(ValueError):
    """Data that cannot be used; the message says what was found, what is expected and where to change it."""


PARTS = ("texts", "labels", "inputs", "references", "groups")  # of TaskData, by split


@dataclass(frozen=True)
class TaskData:
    """The examples of one task.

    texts: split -> rows of one or two texts. labels: split -> (N,) int64 classes, or float64 for regression.
    source: the version of the generated tasks ("micro-2"), or the dataset ("glue"). sha256: of these texts and labels
    by split; file layout, paths and unused columns do not matter.
    Where answers are texts: a row is a source and one of its targets, labels tell which of `inputs` the source is;
    inputs: split -> the M different sources; references: split -> the texts each is scored against.
    groups: split -> (N,) int64, which rows exact_match takes together; empty where the task names no group_columns.
    """

    texts: dict[str, list[tuple[str, ...]]]
    labels: dict[str, np.ndarray]
    source: str
    sha256: str
    inputs: dict[str, list[str]] = field(default_factory=dict)
    references: dict[str, list[list[str]]] = field(default_factory=dict)
    groups: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, task: str) -> "TaskData":
        """The splits <task>/<split> of a transfer task under their own names; for "", those of the run's own task."""
        parts: dict[str, Any] = {}
        for part in PARTS:
            by_split = getattr(self, part)
            names = {split: split.rpartition("/") for split in by_split}
            parts[part] = {inner: by_split[split] for split, (name, _, inner) in names.items() if name == task}
        return dataclasses.replace(self, **parts)


def content_hash(
    texts: Mapping[str, list[tuple[str, ...]]],
    labels: Mapping[str, np.ndarray],
    references: Mapping[str, list[list[str]]] | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Of every split's name, texts, labels and what else a score follows from.

    Lengths go in first, so that no two contents give the same bytes.
    """
    content = hashlib.sha256()
    for split in sorted(texts):
        content.update(f"{split}\0{len(texts[split])}\0{len(texts[split][0])}\0{labels[split].dtype.kind}\0".encode())
        for column in zip(*texts[split], strict=True):
            _add(content, column)
        content.update(labels[split].astype(f"<{labels[split].dtype.kind}8").tobytes())
        if groups and split in groups:
            content.update(groups[split].astype("<i8").tobytes())
        for group in (references or {}).get(split, ()):
            content.update(f"{len(group)}\0".encode())
            _add(content, group)
    return content.hexdigest()


def _add(content: Any, column: Sequence[str]) -> None:
    encoded = [text.encode() for text in column]
    content.update(np.fromiter(map(len, encoded), dtype="<i8", count=len(encoded)).tobytes())
    content.update(b"".join(encoded))
