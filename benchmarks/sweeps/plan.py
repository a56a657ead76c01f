"""What a sweep has to do: its runs with their states, their order, and the packs in which the missing ones train.

The states of runs are those of records/states.py. A stale record is one that an earlier form of a missing run left
behind.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.departures import departures, flattened, swept_keys
from ..config.init_from import command
from ..config.schema import RunConfig
from ..config.science import scientific
from ..records.leases import Claim, Key, read_claims
from ..records.schema import Record, RecordError
from ..records.states import STATES, States, list_states
from ..records.store import read_record, record_path
from ..runs.outcome import recorded_score
from ..runs.parents import prepare_all
from ..runs.prepare import Prepared
from .packs import Pack, pack_runs

log = logging.getLogger(__name__)

# Failures that a restart may mend. The others (a bug, a run that diverges) fail again until something is changed.
RETRIED = ("out_of_memory", "worker_lost")
_OF_IDENTITY = {"data": "data", "versions": "result versions", "weights": "weights", "files": "backbone files"}
_BESIDES = {*_OF_IDENTITY.values(), "parent or stand-in"}  # what a configuration does not say


@dataclass
class Cell:
    """One wanted run. run_id: None while it waits for its parent. kind: of the cause of a failure."""

    cfg: RunConfig
    run_id: str | None
    state: str
    kind: str | None = None
    parent: bool = False  # not asked for: a wanted run starts from it

    @property
    def key(self) -> Key | None:
        """Experiment and run id."""
        return None if self.run_id is None else (self.cfg.experiment, self.run_id)

    @property
    def label(self) -> str:
        """Experiment, task, seed and sizes."""
        sizes = {k: v for k, v in self.cfg.method.items() if k in ("bottleneck_dim", "rank", "length")}
        return f"{self.cfg.experiment} {self.cfg.task.name} seed {self.cfg.seed}" + "".join(
            f" {k}={v}" for k, v in sizes.items()
        )


@dataclass(frozen=True)
class PlannedPack:
    """Runs to be trained together. whole: some may have a record; it was begun before and is taken up as it was."""

    cells: tuple[Cell, ...]
    whole: bool
    why: str = ""


@dataclass(frozen=True)
class Stale:
    """A record left behind by an earlier form of a wanted run, and in what they differ."""

    experiment: str
    run_id: str
    label: str
    differs: tuple[str, ...]


@dataclass
class Plan:
    """cells: parents first, each run once. packs: of the runs that can be begun now, in order. known: what was
    prepared for it, for the plan of the next round."""

    cells: list[Cell]
    packs: list[PlannedPack]
    known: dict[str, Prepared] = field(default_factory=dict)
    duplicates: int = 0
    stale: list[Stale] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of runs by state."""
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in STATES}

    @property
    def open(self) -> list[Cell]:
        """The runs of the packs."""
        return [cell for pack in self.packs for cell in pack.cells]


def make_plan(
    cfgs: Sequence[RunConfig],
    size: int | None = None,
    workers: int = 1,
    retry: bool = False,
    stale: bool = True,
    known: dict[str, Prepared] | None = None,
) -> Plan:
    """The plan of these runs. size: of packs (None: by device and memory). retry: begin every failed run again.

    known: what an earlier plan of the same runs has prepared (see `prepare_all`). Raises ValueError for a run that
    could not be trained, before any is.
    """
    known = {} if known is None else known
    runs = prepare_all(cfgs, known)
    states = _States(cfgs)
    wanted = [states.cell(p) for p in runs]
    extra = [dataclasses.replace(states.cell(p), parent=True) for p in states.missing_parents(runs)]
    cells: dict[Any, Cell] = {}
    for cell in sorted([*wanted, *extra], key=lambda cell: cell.cfg.init_from is not None):  # stable: parents first
        cells.setdefault(cell.key or id(cell), cell)
    unique = list(cells.values())
    pending = [
        cell
        for cell in unique
        if cell.state in ("missing", "interrupted")
        or (cell.state == "failed" and (retry or cell.kind in RETRIED))
        or (cell.cfg.force and cell.state == "done")
    ]
    packs = _packs(pending, states.done_parents(runs) | cells, states.claims, size, workers)
    plan = Plan(unique, packs, known, duplicates=len(wanted) + len(extra) - len(unique))
    if stale:
        plan.stale = find_stale(unique, states.records, known)
    return plan


class _States:
    """The states of runs from file names, looked up once per results folder."""

    def __init__(self, cfgs: Sequence[RunConfig]):
        self.folders = {cfg.results_dir for cfg in cfgs}
        self.records: dict[str, dict[str, States]] = {folder: list_states(folder) for folder in self.folders}
        self.claims: dict[Key, tuple[Claim, bool]] = {}
        for folder in self.folders:
            self.claims |= read_claims(folder)

    def cell(self, p: Prepared) -> Cell:
        """The run with its state."""
        cfg = p.cfg
        if self._waits(p):
            return Cell(cfg, None, "waiting")
        found = self._of(p)
        if p.run_id in found.done and _is_whole(record_path(cfg.results_dir, cfg.experiment, p.run_id)):
            return Cell(cfg, p.run_id, "done")
        if p.key in self.claims:
            return Cell(cfg, p.run_id, "running" if self.claims[p.key][1] else "interrupted")
        if p.run_id in found.failed:
            return Cell(cfg, p.run_id, "failed", found.failed[p.run_id])
        return Cell(cfg, p.run_id, "missing")

    def missing_parents(self, runs: Sequence[Prepared]) -> list[Prepared]:
        """What has to be trained before these runs, or have a score: each once. Raises ValueError where
        init_from.if_missing=error."""
        parents: dict[Key, Prepared] = {}
        for p in runs:
            init = p.cfg.init_from
            missing = [parent for parent in p.candidates if not self._done(parent)]
            if missing and init is not None and init.if_missing == "error":
                raise ValueError(f"init_from: no trained parent; make it with: {command(p.cfg, init)}")
            for parent in p.candidates if self._waits(p) else missing:
                parents.setdefault(parent.key, parent)
        return list(parents.values())

    def done_parents(self, runs: Sequence[Prepared]) -> dict[Any, Cell]:
        """Members of the packs that missing parents were begun in."""
        done = [parent for p in runs for parent in p.candidates if self._done(parent)]
        return {parent.key: Cell(parent.cfg, parent.run_id, "done", parent=True) for parent in done}

    def _waits(self, p: Prepared) -> bool:
        """Whether its best parent is not known yet: one of them has no score."""
        if p.cfg.init_from is None or p.cfg.init_from.parent == "same_seed":
            return False
        return any(not self._done(parent) or recorded_score(parent) is None for parent in p.candidates)

    def _done(self, p: Prepared) -> bool:
        return p.run_id in self._of(p).done

    def _of(self, p: Prepared) -> States:
        return self.records[p.cfg.results_dir].get(p.cfg.experiment, States())


def _is_whole(path: Path) -> bool:
    """Whether the file ends like a record: one that was cut short, by a copy for example, is made again."""
    try:
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            whole = file.read() == b"}\n"
    except OSError:
        whole = False
    if not whole:
        log.warning("%s is not whole: the run is made again", path)
    return whole


def _packs(
    pending: Sequence[Cell], cells: Mapping[Any, Cell], claims: Mapping[Key, tuple[Claim, bool]],
    size: int | None, workers: int,
) -> list[PlannedPack]:  # fmt: skip
    """Packs that were begun before, as they were, and the other pending runs in new ones; children after parents."""
    begun: dict[str, PlannedPack] = {}
    taken: set[int] = set()
    for cell in pending:
        if cell.key is None or cell.key not in claims or claims[cell.key][1]:
            continue
        claim = claims[cell.key][0]
        members = [cells.get(key) for key in claim.members]
        if claim.token not in begun and all(member is not None for member in members):
            begun[claim.token] = PlannedPack(tuple(m for m in members if m is not None), whole=True)
            taken |= {id(member) for member in members}
    packs = list(begun.values())
    rest = [cell for cell in pending if id(cell) not in taken]
    made: list[Pack] = pack_runs([cell.cfg for cell in rest], size, workers)
    packs += [PlannedPack(tuple(rest[i] for i in pack.runs), False, pack.why) for pack in made]
    return sorted(packs, key=lambda pack: pack.cells[0].cfg.init_from is not None)


def find_stale(
    cells: Sequence[Cell], states: Mapping[str, Mapping[str, States]], known: Mapping[str, Prepared]
) -> list[Stale]:
    """Records of the same experiment, task, seed, scale and departures as a missing run, but of another identity."""
    wanted = {cell.key for cell in cells}
    missing: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        if cell.state in ("missing", "interrupted"):
            missing.setdefault((cell.cfg.results_dir, cell.cfg.experiment), []).append(cell)
    found = []
    for (folder, experiment), of_experiment in missing.items():
        others = sorted(states[folder].get(experiment, States()).done - {key[1] for key in wanted if key})
        if not others:
            continue
        by_setting: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in of_experiment:
            asked = departures(dataclasses.asdict(cell.cfg))
            cfg = cell.cfg
            key = _asked(cfg.task.name, cfg.seed, cfg.scale.name, cfg.settings, asked)
            by_setting.setdefault(key, []).append(cell)
        for run_id in others:
            try:
                record = read_record(record_path(folder, experiment, run_id))
            except RecordError:
                continue  # the report and the run itself name it
            same = _asked(record["task"], record["seed"], record["scale"], record["settings"], record["departures"])
            for cell in by_setting.get(same, []):
                differs = _differences(record, known[repr(cell.cfg)])
                # Not: another point of the experiment's own sweep, or of a sweep over settings of the user's own.
                if differs <= _BESIDES if experiment == "custom" else not differs <= swept_keys(experiment):
                    found.append(Stale(experiment, run_id, cell.label, tuple(sorted(differs))))
                    break
    return found


def _asked(task: str, seed: int, scale: str, settings: str, changed: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
    return task, seed, scale, settings, repr(sorted((key, both[0]) for key, both in changed.items()))


def _differences(record: Record, p: Prepared) -> set[str]:
    """Dotted keys of the configuration, or data, backbone, result version, parent."""
    config, ours = record["config"], dataclasses.asdict(p.cfg)
    try:
        before, now = flattened(scientific(config)), flattened(scientific(ours))
    except (KeyError, TypeError):
        return {"configuration"}
    differs = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    then = record["identity"]
    differs |= {name for key, name in _OF_IDENTITY.items() if then.get(key) != p.identity.get(key)}
    return differs or {"parent or stand-in"}
