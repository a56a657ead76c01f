"""`peft-bench status`: what is planned, running, done, failed and stale, from file names (records/states.py)."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..records.schema import RecordError
from ..records.states import Problem, States, states_by_experiment
from ..records.store import read_record, record_path

_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """`peft-bench status`. 1 if something is unreadable, else 0."""
    parser = argparse.ArgumentParser(
        prog="peft-bench status",
        description="What is planned, running, done, failed (and why) and stale, by experiment, from file names alone.",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument(
        "--tasks", action="store_true", help="by experiment, scale and task, with flags; reads every record"
    )
    options = parser.parse_args(argv)
    if not options.results.is_dir():
        print(f"no folder {options.results}: expected the results folder; give --results DIR", file=sys.stderr)
        return 2
    if options.tasks:
        from ..report.by_task import by_task

        table, problems = by_task(options.results)
        print(table)
    else:
        states, problems = states_by_experiment(options.results)
        print(_table(states))
        failures, unreadable = _failures(options.results, states)
        problems = [*problems, *unreadable]
        if failures:
            print("\nfailed:\n" + "\n".join(failures))
            print("`peft-bench sweep ... --retry` begins them again; out_of_memory and worker_lost begin by themselves")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _table(states: dict[str, States]) -> str:
    header = ["experiment", "done", "running", "planned", "interrupted", "failed", "stale", "set aside"]
    lines = [
        [
            name,
            *(str(len(ids) or "") for ids in (of.done, of.running, of.planned, of.interrupted)),
            ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(of.failed.values()).items())),
            *(str(len(ids) or "") for ids in (of.stale, of.unreadable)),
        ]
        for name, of in states.items()
    ]
    counted = list(states.values())
    total = ["all", *(str(sum(len(getattr(of, n)) for of in counted) or "") for n in header[1:5])]
    total += [str(sum(len(of.failed) for of in counted) or ""), str(sum(len(of.stale) for of in counted) or "")]
    total += [str(sum(len(of.unreadable) for of in counted) or "")]
    rows = [header, *lines, *([total] if len(lines) > 1 else [])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(_cell(text, i, widths[i]) for i, text in enumerate(row)).rstrip() for row in rows)


def _cell(text: str, column: int, width: int) -> str:
    return text.ljust(width) if column in (0, 5) else text.rjust(width)


def _failures(results: Path, states: dict[str, States]) -> tuple[list[str], list[Problem]]:
    """One line per failed run; of these, the records are opened."""
    lines, problems = [], []
    failed = [(name, run_id, kind) for name, of in states.items() for run_id, kind in sorted(of.failed.items())]
    for experiment, run_id, kind in failed[:_SHOWN]:
        path = record_path(results, experiment, run_id, kind)
        try:
            record = read_record(path)
            message = record["cause"]["message"] if record["cause"] else ""
            lines.append(f"  {experiment} {record['task']} seed {record['seed']} [{run_id}]: {kind}: {message}")
        except RecordError as error:
            problems.append(Problem(str(path), str(error)))
    if len(failed) > _SHOWN:
        lines.append(f"  ... and {len(failed) - _SHOWN} more")
    return lines, problems
