"""The verb `peft-bench tuning`: which learning rate a tuning sweep chose.

Per experiment (and start, length, backbone or target prefix, where it has several), the mean over tasks of each run's
score on validation, by the rule that selects its checkpoint. A rate that lacks a run of a task, failed ones included,
has no mean: it cannot win.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..config.metrics import LOWER_IS_BETTER
from ..records.files import write_files
from .rows import results_frame

SCORE_FIELDS = ["metric", "score", "train_seconds", "device", "git_commit", "run_id"]
AXES = ["stands_for", "init", "length", "target_prefix"]  # each value of which has its own rate
RUN_FIELDS = ["experiment", "task", *AXES, "optimizer", "learning_rate", "seed"]


def chosen_rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean validation score per setting (rows) and learning rate (columns), and the rate that is best: the highest
    score, or the lowest loss."""
    if frame.empty:
        raise ValueError("no records: expected those of `peft-bench sweep micro_tuning results_dir=...`")
    selected = _selected(frame)
    selected = selected.assign(experiment=_settings(selected))
    means = pd.DataFrame({name: _means(of_setting) for name, of_setting in selected.groupby("experiment")}).T
    means = means.rename_axis("experiment").rename_axis("learning_rate", axis="columns").sort_index(axis="columns")
    lowest = set(selected.loc[selected["metric"].isin(LOWER_IS_BETTER), "experiment"])
    whole = means[means.notna().any(axis="columns")]  # where a sweep was cut off, a setting may have no rate yet
    best = [row.idxmin() if experiment in lowest else row.idxmax() for experiment, row in whole.iterrows()]
    return means.assign(best=pd.Series(best, index=whole.index, dtype="float64"))


def runs_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A line for each run, failed ones without a score: what chosen_rates goes by."""
    selected = _selected(frame)[[*RUN_FIELDS, *SCORE_FIELDS]]
    return selected.sort_values([*RUN_FIELDS, "run_id"], kind="stable", ignore_index=True)


def _selected(frame: pd.DataFrame) -> pd.DataFrame:
    """Each run's score by the rule that selects its checkpoint."""
    return frame[
        (frame["split"] == frame["selection_split"])
        & (frame["metric"] == frame["selection_metric"])
        & (frame["checkpoint"] == frame["selection_checkpoint"])
    ]


def _means(of_setting: pd.DataFrame) -> "pd.Series[float]":
    """By learning rate, the mean over all tasks that the setting has runs of."""
    return of_setting.pivot_table("score", "learning_rate", "task", dropna=False).mean(axis="columns", skipna=False)


def _settings(frame: pd.DataFrame) -> "pd.Series[str]":
    """The experiment, with those of AXES that vary in it: "prompt_tuning/length length=5"."""
    names = frame["experiment"].astype(str)
    for axis in [a for a in AXES if a in frame]:
        values = frame[axis].astype("string").fillna("").str.removesuffix(".0")
        varies = values.groupby(frame["experiment"]).transform("nunique") > 1
        names = names + (f" {axis}=" + values).where(varies, "")
    return names


def main(argv: Sequence[str]) -> int:
    """`peft-bench tuning`: print the table of one results folder; --runs: its runs as CSV, which may be committed."""
    parser = argparse.ArgumentParser(
        prog="peft-bench tuning", description="Which learning rate a tuning sweep chose, by mean validation score."
    )
    parser.add_argument("results", type=Path, help="the sweep's results folder")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="write each run's validation score there, too (CSV)")
    options = parser.parse_args(argv)
    frame, problems = results_frame(options.results)
    print(chosen_rates(frame).round(4).to_string())
    if options.runs is not None:
        content = runs_table(frame).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_files({options.runs: content.encode()})
    for problem in problems:
        print(f"problem: {problem}")
    return 0
