"""Which runs become the one number of a cell: selection rules, each by the name the reference files use.

A rule takes ResultRows (a DataFrame) and gives one line per cell, with the number of seeds behind it. Two things are
chosen on validation and scored elsewhere: the epoch of a run (the runner wrote "best" and "last" into the record) and,
in a sweep, the run or its setting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pandas as pd

from ...config import science
from ...config.metrics import LOWER_IS_BETTER
from .statistics import summarize

RUN = ["experiment", "run_id"]
GROUP = ["experiment", "scale", "settings", "task"]  # the runs of a group compete in a sweep
CELL = [*GROUP, "split", "metric"]
SEARCHED = [name for names in science.SEARCHED.values() for name in names]
CONSTANT = [
    "backbone",
    "published",
    "backbone_params",
    "data_source",
    "train_rows",
]  # of all runs of a cell, see conflicts.py
CELL_COLUMNS = [
    *CELL,
    *("score", "std", "low", "high", "seeds", "searched", "picked", "flags", "departures", "clean", "run_ids"),
    "examples",
    "method_params",
    *CONSTANT,
]


def at_checkpoint(rows: pd.DataFrame, checkpoint: str) -> pd.DataFrame:
    """The scores of finished runs at their "best" or "last" checkpoint; an untrained control has only one."""
    done = rows[rows["status"] == "done"]
    at = done[(done["checkpoint"] == checkpoint) | done["epoch"].isna()]
    return at.drop_duplicates([*RUN, "split", "metric"])


def at_selected(rows: pd.DataFrame) -> pd.DataFrame:
    """The scores of finished runs at the checkpoint that each run's own configuration selects."""
    done = rows[rows["status"] == "done"]
    at = done[(done["checkpoint"] == done["selection_checkpoint"]) | done["epoch"].isna()]
    return at.drop_duplicates([*RUN, "split", "metric"])


def median_over_seeds_of_best_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run at the epoch best on validation; the median over seeds (Hu et al. 2021, appendix D)."""
    return _cells(at_checkpoint(rows, "best"), "median")


def best_of_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run at the epoch best on validation; the highest score of all seeds (Lester et al. 2021, table 3)."""
    return _cells(at_checkpoint(rows, "best"), "max")


def mean_over_seeds_of_best_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run at the epoch best on validation; the mean over seeds."""
    return _cells(at_checkpoint(rows, "best"), "mean")


def median_over_seeds_of_last_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run at its last epoch; the median over seeds."""
    return _cells(at_checkpoint(rows, "last"), "median")


def mean_over_seeds_of_last_epoch(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run at its last epoch; the mean over seeds (Li & Liang 2021, released code)."""
    return _cells(at_checkpoint(rows, "last"), "mean")


def mean_over_seeds_of_selected_checkpoint(rows: pd.DataFrame) -> pd.DataFrame:
    """Every run at the checkpoint its configuration selects; the mean over seeds. For our own tables."""
    return _cells(at_selected(rows), "mean")


def best_on_validation_over_sweep_and_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The single run best on validation, hyperparameters and seed together (Houlsby et al. 2019, section 3.2).

    At the checkpoint the runs select: the paper names no choice of epoch, its code scores the last state. `seeds`
    counts the seeds that competed.
    """
    at = at_selected(rows)
    winners = at.merge(_winners(at)[RUN], on=RUN)
    return _cells(winners, "mean", at, competing=True)


def best_setting_on_validation_then_mean_over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The setting of the run best on validation, then the mean over all seeds of that setting.

    For the sweep rows of our own tables: unlike the maximum over seeds, the mean has a spread.
    """
    at = at_selected(rows)
    keys = [*GROUP, *SEARCHED]
    winners = at.merge(_winners(at)[keys], on=keys)  # unknown settings (NaN) match each other here
    return _cells(winners, "mean", at)


RULES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    rule.__name__: rule
    for rule in (
        median_over_seeds_of_best_epoch,
        mean_over_seeds_of_best_epoch,
        best_of_seeds,
        median_over_seeds_of_last_epoch,
        mean_over_seeds_of_last_epoch,
        mean_over_seeds_of_selected_checkpoint,
        best_on_validation_over_sweep_and_seeds,
        best_setting_on_validation_then_mean_over_seeds,
    )
}


def _winners(at: pd.DataFrame) -> pd.DataFrame:
    """The run of every group that is best on the split and metric its record selects on.

    A NaN never wins against a number; ties go to fewer parameters, then to the lower seed, so that the choice does not
    depend on the order of files.
    """
    chosen_on = at[(at["split"] == at["selection_split"]) & (at["metric"] == at["selection_metric"])]
    lower = chosen_on["metric"].isin(LOWER_IS_BETTER)
    chosen_on = chosen_on.assign(score=chosen_on["score"].where(~lower, -chosen_on["score"]))
    order = chosen_on.sort_values(["score", "method_params", "seed", "run_id"], ascending=[False, True, True, True])
    return order.drop_duplicates(GROUP)


def _cells(
    rows: pd.DataFrame, center: str, candidates: pd.DataFrame | None = None, competing: bool = False
) -> pd.DataFrame:
    """One line per cell of `rows`; `candidates` are the rows they were picked from, `competing` counts their seeds."""
    if rows.empty:
        return pd.DataFrame(columns=CELL_COLUMNS)
    runs = (rows if candidates is None else candidates).drop_duplicates(RUN).groupby(GROUP)
    searched, seeds = runs.size().to_dict(), runs["seed"].nunique().to_dict()
    varied = (runs[SEARCHED].nunique() > 1).to_dict("index")
    values = {
        name: rows[name].to_numpy()
        for name in ("score", "flags", "departures", "git_dirty", "run_id", "n", "method_params")
    }
    shared = {name: rows[name].to_numpy() for name in [*SEARCHED, *CONSTANT]}
    lines: list[dict[str, Any]] = []
    positions = cast("dict[tuple[str, ...], Any]", rows.groupby(CELL, sort=False).indices)
    for key, at in positions.items():
        group, first = key[: len(GROUP)], at[0]
        summary = summarize(values["score"][at].tolist())
        lines.append(
            dict(zip(CELL, key, strict=True))
            | {
                "score": {"median": summary.median, "mean": summary.mean, "max": values["score"][at].max()}[center],
                "std": summary.std,
                "low": summary.low,
                "high": summary.high,
                "seeds": seeds[group] if competing else summary.n,
                "searched": searched[group],
                "picked": ", ".join(f"{name} {shared[name][first]:g}" for name in SEARCHED if varied[group][name]),
                "flags": " ".join(sorted(set(" ".join(values["flags"][at]).split()))),
                "departures": _union(values["departures"][at]),
                "clean": all(dirty is False for dirty in values["git_dirty"][at]),
                "run_ids": " ".join(values["run_id"][at]),
                "examples": values["n"][first],
                "method_params": values["method_params"][first],
            }
            | {name: shared[name][first] for name in CONSTANT}
        )
    return pd.DataFrame(lines, columns=CELL_COLUMNS)


def _union(departures: Any) -> str | None:
    """Every departure of some run of the cell; None where one is unknown."""
    if any(text is None for text in departures):
        return None
    return "; ".join(sorted({part for text in departures for part in text.split("; ") if part}))
