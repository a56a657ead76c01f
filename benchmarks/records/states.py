"""The state of every run, from file names, claims and plans; no record is opened.

results/records/<experiment>/<run_id>.json                 done
results/records/<experiment>/<run_id>.<kind>.failed.json   failed
results/records/<experiment>/<run_id>.json.unreadable      unreadable: set aside, to be run again
results/running/<experiment>/<run_id>.json                 running, or interrupted where the claim has expired
results/plans/<sweep>.json                                 what the last plan of a sweep wanted, and found stale
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from .files import files_below
from .leases import read_claims
from .places import PLANS, RECORDS

FAILED, UNREADABLE = ".failed.json", ".unreadable"  # how the names of records end
# States of a run that a sweep wants, in the order in which a plan counts them.
STATES = {
    "done": "has a record",
    "running": "another process has a live claim",
    "interrupted": "its claim has expired",
    "failed": "has the record of a failure, of some kind",
    "missing": "has none of these",
    "waiting": "has no identity, because the score that chooses its parent is not there yet",
}


@dataclass
class States:
    """The run ids of one experiment by state; a run is in one of them."""

    done: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    interrupted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)  # run id -> kind of its cause
    planned: set[str] = field(default_factory=set)  # missing, and wanted by the last plan of a sweep
    stale: set[str] = field(default_factory=set)  # done, but what is wanted now is another form of the run
    unreadable: set[str] = field(default_factory=set)  # set aside, to be run again


@dataclass(frozen=True)
class Problem:
    """Something a reader of the results must know: which file (or cell), and what is wrong with it."""

    where: str
    cause: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}"


def list_states(results_dir: Path | str) -> dict[str, States]:
    """What the names of records say: done (also where the run failed before), failed, unreadable. By experiment; an
    empty or missing folder gives none."""
    by_experiment: dict[str, States] = {}
    for experiment, name in sorted(_names(Path(results_dir) / RECORDS)):
        run_id = name.split(".", maxsplit=1)[0]
        states = by_experiment.setdefault(experiment, States())
        if name.endswith(UNREADABLE):
            states.unreadable.add(run_id)
        elif name.endswith(FAILED):
            states.failed[run_id] = name.removeprefix(f"{run_id}.").removesuffix(FAILED)
        else:
            states.done.add(run_id)
    for states in by_experiment.values():
        states.failed = {run_id: kind for run_id, kind in states.failed.items() if run_id not in states.done}
    return by_experiment


def _names(folder: Path) -> Iterator[tuple[str, str]]:
    for path in files_below(folder):
        if path.name.endswith((".json", f".json{UNREADABLE}")) and not path.name.startswith("."):
            yield path.parent.relative_to(folder).as_posix(), path.name


def states_by_experiment(results_dir: Path) -> tuple[dict[str, States], list[Problem]]:
    """Every known run; opens the plans (one file a sweep) and the claims (one a running run), no record."""
    by_experiment = list_states(results_dir)
    problems = []
    for states in by_experiment.values():
        states.unreadable -= states.done
    for (experiment, run_id), (_, alive) in read_claims(results_dir).items():
        states = by_experiment.setdefault(experiment, States())
        if run_id not in states.done:
            states.failed.pop(run_id, None)
            (states.running if alive else states.interrupted).add(run_id)
    for path in sorted((results_dir / PLANS).glob("*.json")):
        try:
            plan = orjson.loads(path.read_bytes())
            planned, stale = plan["planned"], plan["stale"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(Problem(str(path), f"is no plan ({error}); plan the sweep again"))
            continue
        for experiment, ids in planned.items():
            states = by_experiment.setdefault(experiment, States())
            states.planned |= set(ids) - states.done - states.failed.keys() - states.running - states.interrupted
        for experiment, ids in stale.items():
            states = by_experiment.setdefault(experiment, States())
            states.stale |= set(ids) & states.done
            states.done -= states.stale
    return dict(sorted(by_experiment.items())), problems
