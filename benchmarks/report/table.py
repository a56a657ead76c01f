"""Our own tables: experiments by tasks at one scale. Every cell that is not there says so; none is averaged away."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from ..config.schema import CONF_DIR
from .layouts import read_layouts
from .rules.conflicts import conflicts
from .rules.selection import (
    GROUP,
    RUN,
    best_setting_on_validation_then_mean_over_seeds,
    mean_over_seeds_of_selected_checkpoint,
)

AVERAGE = "Avg"
_NAN = float("nan")


@dataclass(frozen=True)
class Column:
    """A printed column: one metric of one task on one of its evaluation splits."""

    label: str
    task: str
    metric: str
    suffix: str = ""  # "_matched" or "_mismatched" for the two halves of MNLI
    split: str = ""  # instead of the table's, e.g. that of another task that the run is scored on

    def on(self, split: str) -> str:
        """The split of its scores in a table that shows this one."""
        return self.split or split + self.suffix


@dataclass(frozen=True)
class Row:
    """A row: one experiment."""

    label: str
    experiment: str


@dataclass(frozen=True)
class Table:
    """A table of ours (conf/table/micro.yaml, which says what its keys are)."""

    name: str  # of its files
    title: str
    scale: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = ()
    folder: str = ""
    open: bool = False
    split: str = "test"
    notes: tuple[str, ...] = ()
    listed: str = ""
    average: bool = False
    calibrated: bool = False
    needs_runs: bool = False
    expected: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by experiment


def read_tables(page: str) -> list[Table]:
    """The tables of conf/table/<page>.yaml, those of a folder with its experiments as rows."""
    return [replace(table, rows=_rows_of(table.folder) or table.rows) for table in read_layouts(page, Table)]


def _rows_of(folder: str) -> tuple[Row, ...]:
    files = (CONF_DIR / "experiment" / folder).glob("*.yaml") if folder else ()
    names = sorted((file.stem for file in files), key=_natural)
    return tuple(Row(name.replace("_", " "), f"{folder}/{name}") for name in names)


def _natural(name: str) -> list[tuple[int, str]]:
    """q_r8 before q_r64."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def table_cells(frame: pd.DataFrame, table: Table, settings: str, swept: Collection[str]) -> pd.DataFrame:
    """One line per cell, in print order, then the row's average if the table has one.

    Each run at the checkpoint its configuration selects; a cell is the mean over seeds on the column's split, of a
    `swept` experiment that of the setting best on validation. `state` is done, missing, failed, conflict.
    """
    frame = frame[(frame["scale"] == table.scale) & (frame["settings"] == settings)]
    frame = frame[frame["experiment"].isin([row.experiment for row in table.rows])]
    searched = frame["experiment"].isin(swept)
    parts = [
        mean_over_seeds_of_selected_checkpoint(frame[~searched]),
        best_setting_on_validation_then_mean_over_seeds(frame[searched]),
    ]
    cells = {
        (line["experiment"], line["task"], line["split"], line["metric"]): line
        for part in parts
        for line in part.to_dict("records")
    }
    runs = frame.drop_duplicates(RUN)
    by_task = runs[runs["status"] == "failed"].groupby(["experiment", "task"])
    failed = {key: sorted(of_group["cause"]) for key, of_group in by_task}
    refused = {(conflict.group[0], conflict.group[3]): conflict.cause for conflict in conflicts(frame, swept)}
    most_searched = {
        experiment: int(of_experiment.groupby(GROUP).size().max())
        for experiment, of_experiment in runs[runs["status"] == "done"].groupby("experiment")
    }
    lines = []
    for row in table.rows:
        of_row = []
        for column in table.columns:
            key = (row.experiment, column.task)
            cell = cells.get((*key, column.on(table.split), column.metric))
            of_row.append(
                _line(row, column, settings, table.split)
                | _content(cell, failed.get(key, []), refused.get(key), most_searched.get(row.experiment, 0))
            )
        lines += [*of_row, *([_average(row, of_row, settings)] if table.average else [])]
    return pd.DataFrame(lines)


def _line(row: Row, column: Column, settings: str, split: str) -> dict[str, Any]:
    return {
        "row": row.label,
        "experiment": row.experiment,
        "settings": settings,
        "column": column.label,
        "task": column.task,
        "split": column.on(split),
        "metric": column.metric,
    }


def _content(
    cell: Mapping[Any, Any] | None, failed: list[str], refused: str | None, searched_of: int
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "state": "missing",
        "score": _NAN,
        "low": _NAN,
        "high": _NAN,
        "std": _NAN,
        "seeds": 0,
        "failed": len(failed),
        "cause": " ".join(dict.fromkeys(failed)),
        "searched": 0,
        "searched_of": searched_of,
        "picked": "",
        "flags": "",
        "departures": "",
        "examples": _NAN,
        "method_params": _NAN,
        "run_ids": "",
    }
    if refused is not None:
        return content | {"state": "conflict", "cause": refused}
    if cell is not None:
        return content | {"state": "done"} | {name: cell[name] for name in content if name in cell}
    return content | ({"state": "failed"} if failed else {})


def _average(row: Row, cells: list[dict[str, Any]], settings: str) -> dict[str, Any]:
    """The mean over tasks (MNLI's halves averaged first), only where every cell of the row has the same seeds and none
    of them failed."""
    content = _content(None, [], None, 0)
    whole = all(cell["state"] == "done" and not cell["failed"] for cell in cells)
    if whole and len({cell["seeds"] for cell in cells}) == 1:
        by_task: dict[str, list[float]] = {}
        for cell in cells:
            by_task.setdefault(cell["task"], []).append(cell["score"])
        means = [sum(scores) / len(scores) for scores in by_task.values()]
        content |= {"state": "done", "score": sum(means) / len(means), "seeds": cells[0]["seeds"]}
    line = _line(row, Column(AVERAGE, "", "mean_over_tasks"), settings, "")
    return line | content
