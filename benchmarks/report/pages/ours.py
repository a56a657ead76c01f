"""The tables of our own scales (conf/table): the papers' rows on stand-ins and generated tasks, and small backbones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from ...config.metrics import metrics_of
from ..page import Inputs, Page, filled, named
from ..render import page
from ..rules.comparability import swept
from ..table import Column, Row, Table, read_tables, table_cells
from ..table_text import table_markdown
from .calibration import calibration_markdown

_OF_LABELS = metrics_of("classes", "values", "groups", "metrics")


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page a table and settings; of some tables none before they have runs."""
    tables = [table for name in ("micro", "small", "texts") for table in read_tables(name)]
    searched = swept(inputs.reference)
    for table in tables:
        others = {row.experiment for other in tables if other.scale == table.scale for row in other.rows}
        for settings in inputs.settings(table.scale):
            whole = _of_runs(inputs.frame, table, settings, others) if table.open else table
            cells = table_cells(inputs.frame, whole, settings, searched)
            runs = not cells.empty and bool((cells["state"] != "missing").any())
            if not runs and table.needs_runs:
                continue
            name, title = named(table.name, table.title, settings)
            yield Page(
                name,
                named(table.name, table.listed or table.title, settings)[1],
                table_page(cells, whole, title, searched),
                cells,
                filled(cells),
                frozenset((table.scale, row.experiment) for row in whole.rows),
                one_setting=True,
                on_screen=runs,
            )


def table_page(cells: pd.DataFrame, table: Table, title: str, searched: frozenset[str]) -> str:
    """The page of a table: what it is, the cells, how they were made; searched: the experiments of a sweep."""
    calibration = calibration_markdown(cells) if table.calibrated else ""
    return page(title, table.about, table_markdown(cells, table, searched), calibration)


def _of_runs(frame: pd.DataFrame, table: Table, settings: str, elsewhere: set[str]) -> Table:
    """The table with a row for every experiment that was run and is in no other one, and columns of tasks with runs:
    its own, then one for each metric of other tasks with labels."""
    at_scale = frame[(frame["scale"] == table.scale) & (frame["settings"] == settings)]
    runs = at_scale[~at_scale["experiment"].isin(elsewhere)]
    rows = []
    for experiment, of_experiment in runs.groupby("experiment"):
        backbones = " + ".join(sorted(of_experiment["backbone"].dropna().astype(str).unique()))
        rows.append(Row(f"{experiment} ({backbones})" if backbones else str(experiment), str(experiment)))
    columns = [column for column in table.columns if column.task in {*runs["task"]}]
    others = runs[~runs["task"].isin([column.task for column in table.columns]) & runs["metric"].isin(_OF_LABELS)]
    found = others.drop_duplicates(["task", "metric"]).sort_values("task", kind="stable").to_dict("records")
    columns += [Column(f"{r['task']} {r['metric']}", r["task"], r["metric"], split=r["selection_split"]) for r in found]
    return replace(table, rows=tuple(rows), columns=tuple(columns))
