"""`peft-bench status --tasks`: what has been run, by task and with flags."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..records.states import Problem, list_states
from .render import markdown_table
from .rows import results_frame
from .rules.selection import RUN


def by_task(results_dir: Path) -> tuple[str, list[Problem]]:
    """Runs per experiment, scale and task with their flags; reads every record. Returns table and problems."""
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
    table = markdown_table(["experiment", "scale", "task", "done", "failed", "flags (runs)"], lines, left=3)
    aside = sum(len(states.unreadable) for states in list_states(results_dir).values())
    return table + (f"\n\n{aside} unreadable records set aside" if aside else ""), problems


def _counted(flags: object) -> str:
    counts = pd.Series(list(flags), dtype="object").value_counts()  # type: ignore[call-overload]
    return ", ".join(f"{flag} ({number})" for flag, number in counts.items())
