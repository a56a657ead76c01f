"""The text of our own tables: cells with intervals and marks, and a legend of what was used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ..render import HOLE, bullets, count, markdown_table, points
from ..rules.selection import SEARCHED, is_swept
from .grid import AVERAGE

MARKS = {
    "one_class_predictions": ("ᶜ", "a run predicts one class throughout"),
    "parameters_did_not_move": ("ᵐ", "a run's trained tensors did not move"),
    "nan_loss": ("ⁿ", "a run's loss was NaN"),
    "one_text_throughout": ("ᵗ", "a run writes the same text for every input"),
    "outputs_cut_off": ("ᵉ", "some output of a run came to no end and was cut off"),
    "fewer_examples": ("ˡ", "some question had no room for all examples before it"),
    "questions_cut_off": ("ᵏ", "some question had no room even without examples and lost words"),
    "illegal_answers": ("ⁱ", "a run gives answers that are no label"),
    "not_scored_without_java": ("ʲ", "METEOR of a run was not computed: no Java"),
}
OTHER_MARK = "ˣ"
# What a control does by construction is no finding.
EXPECTED = {("controls/majority", "one_class_predictions"), ("controls/majority", "parameters_did_not_move")}


def grid_markdown(table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """The table of `grid`, its legend and `notes`."""
    expected = int(table["seeds"].max())
    lines = []
    for _, of_row in table.groupby("row", sort=False):
        cells = of_row.to_dict("records")
        lines.append([str(cells[0]["row"]), _params(cells), *(cell_text(cell, expected) for cell in cells)])
    header = ["", "trained", *table["column"].drop_duplicates()]
    return "\n\n".join([_seeds(expected), markdown_table(header, lines), bullets([*_legend(table), *notes])])


def cell_text(cell: Mapping[Any, Any], expected: int) -> str:
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
    text += "".join(mark(flag)[0] for flag in _flags(cell))
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


def _flags(cell: Mapping[Any, Any]) -> list[str]:
    return [flag for flag in str(cell["flags"]).split() if (cell["experiment"], flag) not in EXPECTED]


def mark(flag: str) -> tuple[str, str]:
    """A flag of a run: its mark, and what it means."""
    return MARKS.get(flag, (OTHER_MARK, flag.replace("_", " ")))


def marks_legend(flags: Iterable[str]) -> list[str]:
    """A line for each mark that is used."""
    return [f"{sign} {meaning}." for sign, meaning in dict.fromkeys(mark(flag) for flag in flags)]


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


def _legend(table: pd.DataFrame) -> list[str]:
    states, legend = set(table["state"]), []
    if "missing" in states:
        averaged = f"; a row with a hole, a failed run or unequal numbers of seeds has no {AVERAGE}"
        legend.append(f"{HOLE} not run{averaged if AVERAGE in set(table['column']) else ''}.")
    if "failed" in states:
        legend.append("failed (cause): no run of the cell finished.")
    if "conflict" in states:
        legend.append("conflict: the cell's runs do not belong together; the index names them.")
    cells = table.to_dict("records")
    legend += marks_legend(flag for cell in cells for flag in _flags(cell))
    for label, of_row in table[table["picked"] != ""].groupby("row", sort=False):
        picked = [f"{task} {picks.replace('bottleneck_dim ', '')}" for task, picks in _picks(of_row)]
        legend.append(f"{label}: picked on validation, {', '.join(picked)}.")
    return legend + _departures(table)


def _departures(table: pd.DataFrame) -> list[str]:
    """Runs whose command line changed their experiment's settings; what a sweep searches over is its setting."""
    rows: dict[str, list[str]] = {}
    swept = is_swept(table)
    for label, searched, text in zip(table["row"], swept, table["departures"], strict=True):
        for part in ("unknown",) if text is None else text.split("; "):
            if part and not (searched and part.split()[0].rpartition(".")[2] in SEARCHED):
                rows.setdefault(part, []).append(label)
    everyone = set(table["row"])
    named = {part: "" if set(of) == everyone else f" ({', '.join(dict.fromkeys(of))})" for part, of in rows.items()}
    return [f"Not the experiments' own settings: {part}{labels}." for part, labels in named.items()]


def _picks(of_row: pd.DataFrame) -> list[tuple[str, str]]:
    once = of_row.drop_duplicates("task")  # both halves of MNLI come from one run
    return [
        (str(label).removesuffix("-m"), str(picks)) for label, picks in zip(once["column"], once["picked"], strict=True)
    ]
