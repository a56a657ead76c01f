"""A task with labels: its texts, its labels within their range, and which rows a metric takes together."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config.schema import ScaleConfig, TaskConfig
from .examples import DataError, TaskData, content_hash
from .tables import Columns, Wanted, read_tables, wanted_tables


class _Labels(NamedTuple):
    """What a task with labels says of them."""

    text_columns: tuple[str, ...]
    label_column: str
    num_labels: int
    label_range: tuple[float, ...]
    group_columns: tuple[str, ...]


def load_labelled(task: TaskConfig, scale: ScaleConfig, data_dir: str | None, trains: bool = True) -> TaskData:
    """The splits of a task with labels. Raises DataError with the row of what cannot be read."""
    texts = [(column, "task.text_columns") for column in task.text_columns]
    groups = {column.partition(".")[0]: "task.group_columns" for column in task.group_columns}
    columns = (*texts, *groups.items(), (task.label_column, "task.label_column"))
    described = _Labels(
        tuple(task.text_columns),
        task.label_column,
        task.num_labels,
        tuple(task.label_range),
        tuple(task.group_columns),
    )
    return _load(wanted_tables(task, columns, scale, data_dir, trains), described)


@functools.lru_cache(maxsize=16)  # a sweep over GLUE comes back to each of its tasks
def _load(wanted: Wanted, described: _Labels) -> TaskData:
    _check_description(wanted.name, described)
    tables, source = read_tables(wanted)
    texts, labels, groups = {}, {}, {}
    for split, columns in tables.items():
        where = f"split {split!r} of {wanted.name}"
        texts[split] = _texts(described.text_columns, columns, where)
        labels[split] = _labels(described, columns[described.label_column], where)
        if described.group_columns:
            groups[split] = _groups(described.group_columns, columns, where)
    sha256 = content_hash(texts, labels, numbers=groups)
    return TaskData(texts, labels, source.name, sha256, groups, commit=source.commit)


def _check_description(name: str, described: _Labels) -> None:
    if not described.text_columns:
        raise DataError(f"{name} has no text columns, expected at least one; change task.text_columns")
    if described.num_labels > 1 and described.label_range != (0, described.num_labels - 1):
        raise DataError(
            f"{name} has {described.num_labels} classes but label_range {list(described.label_range)}, expected "
            f"[0, {described.num_labels - 1}]; change task.label_range or task.num_labels"
        )


def _texts(names: Sequence[str], columns: Columns, where: str) -> list[tuple[str, ...]]:
    for name in names:
        for number, text in enumerate(columns[name]):
            if not isinstance(text, str):
                raise DataError(
                    f"{where}, column {name!r}, row {number} is {text!r}, expected a text; correct the row or "
                    "change task.text_columns"
                )
    return list(zip(*(columns[name] for name in names), strict=True))


def _labels(described: _Labels, column: Sequence[Any], where: str) -> np.ndarray:
    """(N,) labels, each within label_range; int64 for classes, float64 for regression."""
    classes = described.num_labels > 1
    low, high = described.label_range
    for number, label in enumerate(column):
        legal = _is_number(label) and low <= label <= high and (not classes or label == int(label))
        if not legal:
            expected = f"a class from {low:g} to {high:g}" if classes else f"a number from {low:g} to {high:g}"
            hidden = " (the hub's mark for a hidden label: this split cannot be scored)" if label == -1 else ""
            raise DataError(
                f"{where}, column {described.label_column!r}, row {number} is {label!r}{hidden}, expected {expected}; "
                "correct the row, name another split, or change task.num_labels and task.label_range"
            )
    labels = np.asarray(column, dtype=np.int64 if classes else np.float64)
    labels.setflags(write=False)  # shared by every run of this process
    return labels


def _groups(names: Sequence[str], columns: Columns, where: str) -> np.ndarray:
    """(N,) number of the group that each row's values of these columns make."""
    numbers: dict[tuple[Any, ...], int] = {}
    found = []
    for number in range(len(columns[names[0].partition(".")[0]])):
        values = []
        for name in names:
            column, _, inner = name.partition(".")
            value = columns[column][number]
            if inner and not (isinstance(value, Mapping) and inner in value):
                raise DataError(
                    f"{where}, column {column!r}, row {number} is {value!r}, expected a field {inner!r} in it; change "
                    "task.group_columns"
                )
            values.append(value[inner] if inner else value)
        found.append(numbers.setdefault(tuple(values), len(numbers)))
    return np.array(found, dtype=np.int64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
