"""One score per seed where a setting has runs on several tasks: the mean over tasks, of each run over its splits."""

from __future__ import annotations

import pandas as pd


def of_split(scores: pd.DataFrame, split: str) -> pd.DataFrame:
    """The scores on this split or its halves (test: test_matched and test_mismatched, too)."""
    return scores[(scores["split"] == split) | scores["split"].str.startswith(f"{split}_")]


def seed_means(scores: pd.DataFrame) -> pd.Series:
    """Of one metric and setting: a run's mean over its splits or, with several tasks, a seed's mean over its tasks.

    A seed that lacks a task is left out: a mean over fewer tasks is another number. A score that is not defined makes
    every mean NaN that it belongs to.
    """
    of_run = scores.groupby(["seed", "task", "run_id"])["score"].mean(skipna=False)
    tasks = scores["task"].nunique()
    if tasks < 2:
        return of_run
    of_seed = of_run.groupby("seed")
    return of_seed.mean(skipna=False)[of_seed.size() == tasks]
