"""The small-scale table: whatever was run on real text with a small backbone."""

from __future__ import annotations

import pandas as pd

from ..render import page
from .grid import AVERAGE, Column, GridRow, glue_columns, grid
from .grid_page import grid_markdown
from .texts import TABLES

SCALE = "small"
NAME = "small"


def _columns() -> list[Column]:
    """Both metrics where papers differ; a column without a run is left out, a hole within a column is not."""
    both = glue_columns("accuracy", "pearson", "accuracy") + glue_columns("f1", "spearman", "f1")
    relabeled = []
    for column in dict.fromkeys(both):
        paired = column.task in ("mrpc", "stsb", "qqp")
        short = {"accuracy": "acc", "f1": "F1"}.get(column.metric, column.metric)
        label = f"{column.label} {short}" if paired else column.label
        relabeled.append(Column(label, column.task, column.metric, column.suffix))
    order = [column.task for column in glue_columns("", "", "")]
    return [*sorted(relabeled, key=lambda column: order.index(column.task)), Column("WNLI", "wnli", "accuracy")]


def small_table(frame: pd.DataFrame, settings: str = "paper") -> pd.DataFrame:
    """The cells of all experiments and tasks there are at this scale (see `grid.grid`); empty if there is none."""
    elsewhere = {row.experiment for table in TABLES if table.scale == SCALE for row in table.rows}
    there = frame[(frame["scale"] == SCALE) & (frame["settings"] == settings) & ~frame["experiment"].isin(elsewhere)]
    tasks = set(there["task"])
    rows = []
    for experiment, of_experiment in there.groupby("experiment"):
        backbones = " + ".join(sorted(of_experiment["backbone"].dropna().astype(str).unique()))
        rows.append(GridRow(f"{experiment} ({backbones})" if backbones else str(experiment), str(experiment)))
    columns = [column for column in _columns() if column.task in tasks]
    table = grid(frame, rows, columns, SCALE, settings, "validation") if columns else pd.DataFrame()
    return table if table.empty else table[table["column"] != AVERAGE]


def small_page(cells: pd.DataFrame) -> str:
    """The page of the small-scale table."""
    about = "Real text, a small real backbone: true numbers, not comparable to the printed ones."
    notes = [
        "Scored on validation, at the epoch best there unless trainer.selection is last, so a little optimistic. "
        "Matthews correlation for CoLA, accuracy where no metric is named.",
        "trained: parameters, head excluded. In brackets: the backbone.",
    ]
    return page("Small scale", about, grid_markdown(cells, notes))
