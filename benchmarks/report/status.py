"""`peft-bench status`: what has been run, what failed and why."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.record import Problem, RecordError, list_states, read_record, record_path
from benchmarks.report.render import markdown_table
from benchmarks.report.rows import results_frame
from benchmarks.report.selection import RUN


def by_experiment(results_dir: Path) -> tuple[str, list[str], list[Problem]]:
    """Runs per experiment from file names; only the failed ones are opened. Returns table, failures, problems."""
    lines, failures, problems = [], [], []
    for experiment, states in list_states(results_dir).items():
        lines.append([experiment, *(str(len(ids) or "") for ids in (states.done, states.failed, states.unreadable))])
        for run_id in sorted(states.failed):
            path = record_path(results_dir, experiment, run_id, "failed")
            try:
                record = read_record(path)
            except RecordError as error:
                problems.append(Problem(str(path), str(error)))
                continue
            cause = record["cause"] or {"kind": "", "message": ""}
            failures.append(_failure(experiment, record["task"], record["seed"], cause["kind"], cause["message"]))
    return markdown_table(["experiment", "done", "failed", "set aside"], lines), failures, problems


def by_task(results_dir: Path) -> tuple[str, list[str], list[Problem]]:
    """Runs per experiment, scale and task with their flags; reads every record. Returns table, failures, problems."""
    frame, problems = results_frame(results_dir)
    runs = frame.drop_duplicates(RUN)
    lines = []
    for (experiment, scale, task), group in runs.groupby(["experiment", "scale", "task"]):
        done = group["status"] == "done"
        lines.append(
            [
                str(experiment),
                str(scale),
                str(task),
                str(int(done.sum()) or ""),
                str(int((~done).sum()) or ""),
                _counted(flag for flags in group["flags"] for flag in flags.split()),
            ]
        )
    _, failures, _ = by_experiment(results_dir)
    table = markdown_table(["experiment", "scale", "task", "done", "failed", "flags (runs)"], lines, left=3)
    aside = sum(len(states.unreadable) for states in list_states(results_dir).values())
    return table + (f"\n\n{aside} unreadable records set aside" if aside else ""), failures, problems


def _failure(experiment: str, task: str, seed: int, kind: str, message: str) -> str:
    return f"{experiment} {task} seed {seed}: {kind}: {message}"


def _counted(flags: object) -> str:
    counts = pd.Series(list(flags), dtype="object").value_counts()  # type: ignore[call-overload]
    return ", ".join(f"{flag} ({number})" for flag, number in counts.items())
