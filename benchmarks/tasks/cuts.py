"""Splits of a task that are made of one, by the values of a column: all rows of a value in one of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config.schema import TaskConfig
from .examples import DataError

_SHARES = (0.7, 0.15, 0.15)  # of the values, for training, validation and test


class Cut(NamedTuple):
    """A split `of` which training, validation and test (roles) are made, by the values of the column `by`."""

    of: str
    by: str
    roles: tuple[str, str, str]


def cut_of(task: TaskConfig) -> Cut | None:
    """How the splits of a task are made of one; None where each is there by itself. Raises DataError."""
    if not task.cut_from and not task.cut_by:
        return None
    roles = (task.train_split, task.validation_splits[0], (task.test_splits or ["test"])[0])
    if not (task.cut_from and task.cut_by) or len({*roles}) < 3 or len(task.validation_splits) > 1:
        raise DataError(
            f"{task.name}: task.cut_from={task.cut_from!r}, task.cut_by={task.cut_by!r}, splits {', '.join(roles)}; "
            "expected a split and a column, and one split each, of three names, for training, validation and test"
        )
    return Cut(task.cut_from, task.cut_by, roles)


def parts_of(columns: Mapping[str, Sequence[Any]], cut: Cut, where: str) -> dict[str, dict[str, list[Any]]]:
    """The rows of each role: those of a random choice of the values, the same every time."""
    values = sorted({str(value) for value in columns[cut.by]})
    ends = np.rint(np.cumsum(_SHARES) * len(values)).astype(int)
    if min(np.diff([0, *ends])) < 1:
        raise DataError(
            f"{where} has {len(values)} different values of {cut.by!r}, expected enough for three splits; change "
            "task.cut_by"
        )
    order = np.random.Generator(np.random.PCG64(20160616)).permutation(len(values))
    role_of = {values[i]: int(np.searchsorted(ends, place, side="right")) for place, i in enumerate(order)}
    roles = [role_of[str(value)] for value in columns[cut.by]]
    return {
        name: {
            column: [value for value, role in zip(rows, roles, strict=True) if role == number]
            for column, rows in columns.items()
            if len(rows) == len(roles)
        }
        for number, name in enumerate(cut.roles)
    }
