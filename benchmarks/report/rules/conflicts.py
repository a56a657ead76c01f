"""Runs that must not share a cell: one seed twice, or settings, data or weights that change between seeds."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .selection import GROUP, RUN, SEARCHED

_MUST_AGREE = ["backbone", "backbone_sha256", "data_source", "data_sha256", "dtype", "setting"]


@dataclass(frozen=True)
class Conflict:
    """A group of runs (experiment, scale, settings, task) of which no cell can be made, and why."""

    group: tuple[Hashable, ...]
    cause: str

    def __str__(self) -> str:
        experiment, scale, settings, task = self.group
        return f"{experiment} on {task} ({scale} scale, {settings} settings): {self.cause}"


def conflicts(frame: pd.DataFrame, swept: Collection[str]) -> list[Conflict]:
    """Every conflict among the finished runs of `frame` (ResultRows). swept: experiments whose runs are points of a
    sweep."""
    done = frame[frame["status"] == "done"]
    twice = done[done.duplicated([*RUN, "split", "checkpoint", "metric"])]
    repeated = [
        Conflict(group, f"the same run is there twice ({_some(rows['run_id'].unique())})")
        for group, rows in twice.groupby(GROUP)
    ]
    runs = done.drop_duplicates(RUN)
    searched = runs["experiment"].isin(swept)
    return [
        *repeated,
        *_repeated(runs[~searched], ["seed"]),
        *_repeated(runs[searched], ["seed", *SEARCHED]),
        *_differing(runs[~searched], [*_MUST_AGREE, *SEARCHED]),
        *_differing(runs[searched], _MUST_AGREE),
    ]


def of_mean(rows: pd.DataFrame) -> str | None:
    """Why these runs have no mean: one seed (and subsample) twice, or runs of a task that differ in more than that.
    Subsamples are different data; runs of one have to have read the same.

    rows: of the runs of one point of a curve, or one term of a claim; they may be of several tasks.
    """
    runs = rows.drop_duplicates(RUN)
    for task, of_task in runs.groupby("task"):
        of_sample = of_task.groupby("train_sample", dropna=False)
        varied = [
            name
            for name in [*_MUST_AGREE, *SEARCHED]
            if (of_sample[name].nunique(dropna=False).max() if name == "data_sha256" else of_task[name].nunique(False))
            > 1
        ]
        if varied:
            return f"runs on {task} differ in {_values(of_task, varied)}"
        twice = of_task[of_task.duplicated(["seed", "train_sample"], keep=False)]
        if len(twice):
            return f"two runs on {task} for seed {twice['seed'].iloc[0]} ({_some(twice['run_id'])}); keep one"
    return None


def _repeated(runs: pd.DataFrame, by: list[str]) -> Iterator[Conflict]:
    repeated = runs[runs.duplicated([*GROUP, *by], keep=False)]
    for group, of_group in repeated.groupby(GROUP):
        seed = int(of_group["seed"].iloc[0])
        pair = of_group[of_group["seed"] == seed]
        yield Conflict(group, f"two runs for seed {seed} ({_some(pair['run_id'])}), {_difference(pair)}; keep one")


def _differing(runs: pd.DataFrame, names: list[str]) -> Iterator[Conflict]:
    """Groups whose runs differ in one of `names`; a seed that is there twice is `_repeated`'s to name."""
    runs = runs[~runs.duplicated([*GROUP, "seed", *(name for name in SEARCHED if name not in names)], keep=False)]
    if runs.empty:
        return
    varied = runs.groupby(GROUP)[names].nunique(dropna=False) > 1
    for group in varied.index[varied.any(axis=1)]:
        of_group = runs[(runs[GROUP] == list(group)).all(axis=1)]
        differing = [name for name in names if varied.loc[group, name]]
        yield Conflict(group, f"its seeds differ in {_values(of_group, differing)}")


def _values(runs: pd.DataFrame, names: list[str]) -> str:
    """Each of `names` with the values that the runs have."""
    return ", ".join(
        _settings(runs) if name == "setting" else f"{name} ({_some(runs[name].unique())})" for name in names
    )


def _settings(runs: pd.DataFrame) -> str:
    departures = runs["departures"].unique()
    return f"setting ({_some(departures)})" if len(departures) > 1 else "result versions or fields of the configuration"


def _difference(runs: pd.DataFrame) -> str:
    names = [name for name in [*_MUST_AGREE, *SEARCHED, "git_commit"] if runs[name].nunique(dropna=False) > 1]
    return f"which differ in {', '.join(names)}" if names else "equal in every recorded setting"


def _some(values: Any, most: int = 3) -> str:
    listed = [f"{value:g}" if isinstance(value, float) else str(value)[:60] or "none" for value in values]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
