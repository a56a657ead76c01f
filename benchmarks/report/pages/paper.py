"""The papers' tables with our runs beside the printed cells, and a difference only where the two are comparable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ...config.metrics import metric
from ..reference import Reference
from ..rules.comparability import Comparison, compare, not_run, wanted_metric
from ..rules.conflicts import conflicts
from ..rules.selection import RULES

SCALE = "paper"  # micro and small runs have tables of their own
# The rule our runs follow where the paper follows none of ours: never comparable, but shown.
_OURS = {
    "leaderboard_submission": "best_on_validation_over_sweep_and_seeds",
    "copied_unverified": "median_over_seeds_of_best_epoch",
    "best_by_validation_rouge2": "mean_over_seeds_of_best_epoch",
    "released_prompt": "mean_over_seeds_of_best_epoch",
}
_NAN = float("nan")


def beside_paper(
    frame: pd.DataFrame, name: str, reference: Reference, settings: str = "paper", votes: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One line per printed cell of table `name`, in print order: printed and ours in points, difference or reason.

    frame: ResultRows of any scale; only the paper scale is looked at. votes: of ensembles (ensembles.vote_cells).
    """
    frame = frame[(frame["scale"] == SCALE) & (frame["settings"] == settings)]
    printed = reference.tables[name]
    frame = frame[frame["experiment"].isin(printed["experiment"])]
    cells = {
        (rule, line["experiment"], line["task"], line["split"], line["metric"]): line
        for rule in dict.fromkeys(_OURS.get(rule, rule) for rule in printed["selection_rule"])
        for line in _made_by(rule, frame, votes).to_dict("records")
    }
    failed = frame[frame["status"] == "failed"].groupby(["experiment", "task"])["cause"].agg(list).to_dict()
    refused = {(conflict.group[0], conflict.group[3]): conflict.cause for conflict in conflicts(frame)}
    lines = []
    for cell in printed.to_dict("records"):
        key = (cell["experiment"], cell["task"])
        rule = _OURS.get(cell["selection_rule"], cell["selection_rule"])
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
            result = not_run(cell)
        lines.append(_line(cell, settings, rule, ours if result.same_task else None, result))
    return pd.DataFrame(_with_averages(lines))


def _made_by(rule: str, frame: pd.DataFrame, votes: pd.DataFrame | None) -> pd.DataFrame:
    """The cells of a rule; those of ensembles were made by `peft-bench ensemble`."""
    if rule != "majority_vote":
        return RULES[rule](frame)
    return pd.DataFrame() if votes is None else votes[votes["experiment"].isin(frame["experiment"])]


def _places(cell: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """(split, metric) where our number for a printed cell may be: on the paper's split, else on validation."""
    metric = wanted_metric(cell)
    split = str(cell["split"]) or ("validation_matched" if cell["task"] == "mnli" else "validation")
    return [(split, metric), (split.replace("test", "validation"), metric)]


def _line(
    cell: Mapping[Any, Any], settings: str, rule: str, ours: Mapping[Any, Any] | None, result: Comparison
) -> dict[str, Any]:
    return {
        **{name: cell[name] for name in ("experiment", "row", "printed_params", "column", "task")},
        "metric": cell["metric"],
        "likely_metric": cell["likely_metric"],
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
