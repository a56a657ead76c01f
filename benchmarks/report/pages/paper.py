"""The papers' tables with our runs beside the printed cells, and a difference only where the two are comparable.

A page has a line of printed values, a line of ours, and numbered reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ...config.metrics import metric
from ..marks import mark, marks_legend
from ..page import Inputs, Page, named
from ..reference import PaperTable, Reference, paper_tables
from ..render import HOLE, bullets, markdown_table, page
from ..rules.comparability import (
    Comparison,
    command,
    compare,
    not_run,
    our_rule,
    reachable,
    swept,
    wanted_metric,
    wanted_split,
)
from ..rules.conflicts import conflicts
from ..rules.selection import RULES
from .ensembles import vote_cells
from .parameters import beside_printed, parameters_markdown

SCALE = "paper"  # micro and small runs have tables of their own
_NAN = float("nan")


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page a table and settings."""
    votes = None if inputs.votes is None else vote_cells(inputs.frame, inputs.votes)
    for table in paper_tables():
        parameters = parameters_markdown(beside_printed(inputs.reference, table, inputs.counts))
        for settings in inputs.settings(SCALE):
            cells = beside_paper(inputs.frame, table, inputs.reference, settings, votes)
            name, title = named(table.name, table.title, settings)
            yield Page(
                name,
                title,
                paper_page(cells, table, title, parameters),
                cells,
                f"{int(cells['difference'].notna().sum())} of {len(cells)} cells comparable",
                frozenset((SCALE, experiment) for experiment in cells["experiment"]),
                one_setting=True,
            )


def beside_paper(
    frame: pd.DataFrame,
    table: PaperTable,
    reference: Reference,
    settings: str = "paper",
    votes: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One line per printed cell of the table, in print order: printed and ours in points, difference or reason, and why
    no run could ever be compared ("" where one could).

    frame: ResultRows of any scale; only the paper scale is looked at. votes: of ensembles (ensembles.vote_cells).
    """
    frame = frame[(frame["scale"] == SCALE) & (frame["settings"] == settings)]
    printed = reference.tables[table.name]
    frame = frame[frame["experiment"].isin(printed["experiment"])]
    cells = {
        (rule, line["experiment"], line["task"], line["split"], line["metric"]): line
        for rule in dict.fromkeys(map(our_rule, printed["selection_rule"]))
        for line in _made_by(rule, frame, votes).to_dict("records")
    }
    failed = frame[frame["status"] == "failed"].groupby(["experiment", "task"])["cause"].agg(list).to_dict()
    found = conflicts(frame, swept(reference))
    refused = {(conflict.group[0], conflict.group[3]): conflict.cause for conflict in found}
    lines = []
    for cell in printed.to_dict("records"):
        key = (cell["experiment"], cell["task"])
        rule = our_rule(cell["selection_rule"])
        ours = next((cells[rule, *key, *at] for at in _places(cell) if (rule, *key, *at) in cells), None)
        if key in refused:
            result, ours = Comparison(None, f"conflict ({refused[key]})", False), None
        elif ours is not None:
            result = compare(cell, ours, rule, reference, failed.get(key, ()))
        elif key in failed:
            result = Comparison(None, f"failed ({', '.join(sorted(set(failed[key])))})", False)
        elif cell["metric"] == "glue_score":
            result = Comparison(None, "not comparable (score of the GLUE server)", False)
        else:
            result = not_run(cell, table.sweep)
        lines.append(_line(cell, settings, rule, ours if result.same_task else None, result))
    return pd.DataFrame(_with_averages(lines)).assign(never=reachable(printed, reference).to_list())


def _made_by(rule: str, frame: pd.DataFrame, votes: pd.DataFrame | None) -> pd.DataFrame:
    """The cells of a rule; those of ensembles were made by `peft-bench ensemble`."""
    if rule != "majority_vote":
        return RULES[rule](frame)
    return pd.DataFrame() if votes is None else votes[votes["experiment"].isin(frame["experiment"])]


def _places(cell: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """(split, metric) where our number for a printed cell may be: on the paper's split, else on validation."""
    metric = wanted_metric(cell)
    split = wanted_split(cell).partition("+")[0] or ("validation_matched" if cell["task"] == "mnli" else "validation")
    return [(split, metric), (split.replace("test", "validation"), metric)]


def _line(
    cell: Mapping[Any, Any], settings: str, rule: str, ours: Mapping[Any, Any] | None, result: Comparison
) -> dict[str, Any]:
    return {
        **{name: cell[name] for name in ("experiment", "row", "printed_params", "column", "task")},
        "metric": cell["metric"],
        "likely_metric": cell["likely_metric"],
        "likely_split": cell.get("likely_split", ""),
        "printed": cell["value"],
        "printed_std": cell["std"],
        "settings": settings,
        "rule": rule,
        "split": ours["split"] if ours else "",
        "ours": metric(ours["metric"]).unit * ours["score"] if ours else _NAN,
        "std": metric(ours["metric"]).unit * ours["std"] if ours else _NAN,
        "seeds": ours["seeds"] if ours else 0,
        "difference": _NAN if result.difference is None else result.difference,
        "reason": result.reason or "",
        "flags": ours["flags"] if ours else "",
        "run_ids": ours["run_ids"] if ours else "",
        "note": cell["note"],
    }


def _with_averages(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our average of a row: only where all its columns are comparable, as the paper's own is over all of them. Of
    tasks, where one has two columns, their mean is taken first."""
    for average in (line for line in lines if line["metric"] in ("mean_of_columns", "mean_of_tasks")):
        key = [average[name] for name in ("experiment", "row")]
        of_row = [line for line in lines if [line["experiment"], line["row"]] == key and line is not average]
        if not any(line["reason"] for line in of_row):
            by = "task" if average["metric"] == "mean_of_tasks" else "column"
            average["ours"] = float(pd.DataFrame(of_row).groupby(by)["ours"].mean().mean())
            average["difference"] = average["ours"] - average["printed"]
            average["seeds"] = min(line["seeds"] for line in of_row)
            average["reason"] = ""
        elif any(line["run_ids"] for line in of_row):
            average["reason"] = "not comparable (some column is not)"
    return lines


def paper_page(cells: pd.DataFrame, table: PaperTable, title: str, parameters: str) -> str:
    """The page of one paper's table (the cells of `beside_paper`) with its parameter counts (text)."""
    reasons = _Reasons()
    lines: list[list[str]] = []
    columns = list(cells["column"].drop_duplicates())
    for (label, params), of_row in cells.groupby(["row", "printed_params"], sort=False):
        in_row = of_row.to_dict("records")
        lines.append([f"{label} {params}", "printed", *(_printed(cell, reasons) for cell in in_row)])
        lines.append(["", "ours", *(_ours(cell, reasons) for cell in in_row)])
        if of_row["difference"].notna().any():
            lines.append(["", "difference", *(_difference(cell) for cell in in_row)])
    return page(
        title,
        table.about,
        markdown_table(["", "", *columns], lines, left=2),
        bullets([*_legend(cells, table.sweep), *reasons.legend()]),
        *(["## Parameters", parameters] if parameters else []),
    )


class _Reasons:
    """Reasons by number, in the order in which the table mentions them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        return f"[{self._numbers.setdefault(reason, len(self._numbers) + 1)}]"

    def legend(self) -> list[str]:
        return [f"[{number}] {reason}." for reason, number in self._numbers.items()]


def _printed(cell: Mapping[Any, Any], reasons: _Reasons) -> str:
    text = [f"{cell['printed']:.{metric(cell['metric']).decimals}f}"]
    if cell["likely_metric"] and cell["likely_metric"] != cell["metric"]:
        text.append(reasons.mark(f"Likely {cell['likely_metric']}, not {cell['metric']} as captioned"))
    if cell["likely_split"]:
        text.append(reasons.mark(f"Likely of {cell['likely_split']}: the paper does not say which split"))
    return " ".join(text)


def _ours(cell: Mapping[Any, Any], reasons: _Reasons) -> str:
    if cell["reason"].startswith("not run"):
        return HOLE
    text = [] if cell["ours"] != cell["ours"] else [f"{cell['ours']:.{metric(cell['metric']).decimals}f}"]
    if text and cell["std"] == cell["std"]:
        text[0] += f" ±{cell['std']:.{metric(cell['metric']).decimals}f}"
    if text:
        text[0] += "".join(mark(flag)[0] for flag in cell["flags"].split())
        text.append(f"({cell['seeds']:.0f})")
    if cell["reason"]:
        text.append(reasons.mark(cell["reason"][0].upper() + cell["reason"][1:]))
    return " ".join(text)


def _reach(cells: pd.DataFrame) -> str:
    """How many cells a run could be compared with, and what keeps the others from it."""
    shut = cells.loc[cells["never"] != "", "never"].value_counts()
    others = ", ".join(f"{number} ({reason})" for reason, number in shut.items())
    reach = f"{len(cells) - int(shut.sum())} of {len(cells)} cells can be compared with a run"
    return f"{reach}, on the paper's settings and data. The others: {others}." if others else f"{reach}."


def _difference(cell: Mapping[Any, Any]) -> str:
    return (
        "" if cell["difference"] != cell["difference"] else f"{cell['difference']:+.{metric(cell['metric']).decimals}f}"
    )


def _legend(cells: pd.DataFrame, sweep: str) -> Sequence[str]:
    legend = []
    holes = cells[cells["reason"].str.startswith("not run")]
    blocked = holes[holes["reason"].str.startswith("not run (")]
    if not holes.empty:
        legend.append(f"{HOLE} not run. To run a row: `{command('<experiment>', sweep)}`, experiments as in the CSV.")
    for reason, of_reason in blocked.groupby("reason", sort=False):
        legend.append(f"{', '.join(of_reason['row'].drop_duplicates())}: {reason}.")
    if cells["ours"].notna().any():
        legend.append("Ours: the paper's selection rule, ± standard deviation over seeds, (seeds).")
    legend.append(_reach(cells))
    return [*legend, *marks_legend(flag for flags in cells["flags"] for flag in flags.split())]
