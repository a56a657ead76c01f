"""The text of our own tables: cells with intervals and marks, and a legend of what was used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from .marks import mark, marks_legend
from .render import HOLE, bullets, count, markdown_table, points
from .rules.selection import SEARCHED
from .table import AVERAGE, Table


def table_markdown(cells: pd.DataFrame, table: Table, swept: Collection[str]) -> str:
    """The table of `table_cells`, its legend and its notes."""
    seeds = int(cells["seeds"].max())
    flags = [_flags(cell, table) for cell in cells.to_dict("records")]
    cells = cells.assign(flags=pd.Series(flags, index=cells.index, dtype=object))
    lines = []
    for label, of_row in cells.groupby("row", sort=False):
        in_row = of_row.to_dict("records")
        lines.append([str(label), _params(in_row), *(_cell_text(cell, seeds) for cell in in_row)])
    header = ["", "trained", *cells["column"].drop_duplicates()]
    legend = [*_legend(cells), *_departures(cells, swept), *table.notes]
    return "\n\n".join([_seeds(seeds), markdown_table(header, lines), bullets(legend)])


def _flags(cell: Mapping[Any, Any], table: Table) -> list[str]:
    """What is suspicious about its runs, but for what their experiment does by construction."""
    expected = table.expected.get(cell["experiment"], ())
    return [flag for flag in str(cell["flags"]).split() if flag not in expected]


def _cell_text(cell: Mapping[Any, Any], expected: int) -> str:
    """One cell: score ± interval and marks; what is short of the table's number of seeds or runs says so."""
    if cell["state"] == "missing":
        return HOLE
    if cell["state"] == "conflict":
        return "conflict"
    if cell["state"] == "failed":
        return f"failed ({cell['cause']})"
    text = points(cell["score"], cell["metric"])
    if cell["high"] == cell["high"]:
        text += f" ±{points((cell['high'] - cell['low']) / 2, cell['metric'])}"
    text += "".join(mark(flag)[0] for flag in cell["flags"])
    if cell["column"] == AVERAGE:
        return text
    short = [f"n={cell['seeds']}"] if cell["seeds"] < expected else []
    short += [f"{cell['failed']} failed"] if cell["failed"] else []
    short += [f"{cell['searched']} of {cell['searched_of']} runs"] if _incomplete_sweep(cell) else []
    return f"{text} ({', '.join(short)})" if short else text


def _incomplete_sweep(cell: Mapping[Any, Any]) -> bool:
    return bool(cell["picked"] or cell["searched_of"] > cell["searched"] > cell["seeds"]) and (
        cell["searched"] < cell["searched_of"]
    )


def _params(cells: Sequence[Mapping[Any, Any]]) -> str:
    known = sorted({cell["method_params"] for cell in cells if cell["method_params"] == cell["method_params"]})
    if not known:
        return HOLE
    return count(known[0]) if len(known) == 1 else f"{count(known[0])}–{count(known[-1])}"


def _seeds(expected: int) -> str:
    if expected == 0:
        return "No run yet: every cell is a hole."
    if expected == 1:
        return "One seed per cell (n = 1): no interval."
    spread = "± is the 95% interval of the mean (Student's t)"
    return f"{expected} seeds per cell (n = {expected}) unless a cell says otherwise; {spread}."


def _legend(cells: pd.DataFrame) -> list[str]:
    states, legend = set(cells["state"]), []
    if "missing" in states:
        averaged = f"; a row with a hole, a failed run or unequal numbers of seeds has no {AVERAGE}"
        legend.append(f"{HOLE} not run{averaged if AVERAGE in set(cells['column']) else ''}.")
    if "failed" in states:
        legend.append("failed (cause): no run of the cell finished.")
    if "conflict" in states:
        legend.append("conflict: the cell's runs do not belong together; the index names them.")
    legend += marks_legend(flag for flags in cells["flags"] for flag in flags)
    for label, of_row in cells[cells["picked"] != ""].groupby("row", sort=False):
        picked = [f"{task} {picks.replace('bottleneck_dim ', '')}" for task, picks in _picks(of_row)]
        legend.append(f"{label}: picked on validation, {', '.join(picked)}.")
    return legend


def _departures(cells: pd.DataFrame, swept: Collection[str]) -> list[str]:
    """Runs whose command line changed their experiment's settings; what a sweep searches over is its setting."""
    rows: dict[str, list[str]] = {}
    searched = cells["experiment"].isin(swept)
    for label, of_sweep, text in zip(cells["row"], searched, cells["departures"], strict=True):
        for part in ("unknown",) if text is None else text.split("; "):
            if part and not (of_sweep and part.split()[0].rpartition(".")[2] in SEARCHED):
                rows.setdefault(part, []).append(label)
    everyone = set(cells["row"])
    named = {part: "" if set(of) == everyone else f" ({', '.join(dict.fromkeys(of))})" for part, of in rows.items()}
    return [f"Not the experiments' own settings: {part}{labels}." for part, labels in named.items()]


def _picks(of_row: pd.DataFrame) -> list[tuple[str, str]]:
    once = of_row.drop_duplicates("task")  # both halves of MNLI come from one run
    return [
        (str(label).removesuffix("-m"), str(picks)) for label, picks in zip(once["column"], once["picked"], strict=True)
    ]
