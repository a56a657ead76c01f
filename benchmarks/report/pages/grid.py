"""Our own tables: experiments by tasks at one scale. Every cell that is not there says so; none is averaged away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..rules.conflicts import conflicts
from ..rules.selection import (
    GROUP,
    RUN,
    best_setting_on_validation_then_mean_over_seeds,
    is_swept,
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
class GridRow:
    """A row: one experiment."""

    label: str
    experiment: str


def glue_columns(mrpc: str, stsb: str, qqp: str) -> list[Column]:
    """The nine GLUE columns, with the metrics on which papers differ."""
    return [
        Column("CoLA", "cola", "matthews_correlation"),
        Column("SST-2", "sst2", "accuracy"),
        Column("MRPC", "mrpc", mrpc),
        Column("STS-B", "stsb", stsb),
        Column("QQP", "qqp", qqp),
        Column("MNLI-m", "mnli", "accuracy", "_matched"),
        Column("MNLI-mm", "mnli", "accuracy", "_mismatched"),
        Column("QNLI", "qnli", "accuracy"),
        Column("RTE", "rte", "accuracy"),
    ]


def grid(
    frame: pd.DataFrame, rows: Sequence[GridRow], columns: Sequence[Column], scale: str, settings: str, split: str
) -> pd.DataFrame:
    """One line per cell, in print order, then the row's average.

    Each run at the checkpoint its configuration selects; a cell is the mean over seeds on `split` ("test" or
    "validation"), in a sweep that of the setting best on validation. `state` is done, missing, failed, conflict.
    """
    frame = frame[(frame["scale"] == scale) & (frame["settings"] == settings)]
    frame = frame[frame["experiment"].isin([row.experiment for row in rows])]
    swept = is_swept(frame)
    parts = [
        mean_over_seeds_of_selected_checkpoint(frame[~swept]),
        best_setting_on_validation_then_mean_over_seeds(frame[swept]),
    ]
    cells = {
        (line["experiment"], line["task"], line["split"], line["metric"]): line
        for part in parts
        for line in part.to_dict("records")
    }
    runs = frame.drop_duplicates(RUN)
    by_task = runs[runs["status"] == "failed"].groupby(["experiment", "task"])
    failed = {key: sorted(of_group["cause"]) for key, of_group in by_task}
    refused = {(conflict.group[0], conflict.group[3]): conflict.cause for conflict in conflicts(frame)}
    most_searched = {
        experiment: int(of_experiment.groupby(GROUP).size().max())
        for experiment, of_experiment in runs[runs["status"] == "done"].groupby("experiment")
    }
    lines = []
    for row in rows:
        of_row = []
        for column in columns:
            key = (row.experiment, column.task)
            cell = cells.get((*key, column.on(split), column.metric))
            of_row.append(
                _line(row, column, settings, split)
                | _content(cell, failed.get(key, []), refused.get(key), most_searched.get(row.experiment, 0))
            )
        lines += [*of_row, _average(row, of_row, settings)]
    return pd.DataFrame(lines)


def _line(row: GridRow, column: Column, settings: str, split: str) -> dict[str, Any]:
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


def _average(row: GridRow, cells: list[dict[str, Any]], settings: str) -> dict[str, Any]:
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
