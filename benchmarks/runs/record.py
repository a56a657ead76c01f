"""From a finished (or failed) run to its record: every number of the record is put together here."""

import dataclasses
import functools
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from peft_methods.state import file_sha256, save_trained

from ..backbones.loading import describe
from ..config.recorded import as_recorded
from ..config.schema import RunConfig
from ..records.schema import SCHEMA, Record, RecordError, tolerance_for
from ..records.store import write_record
from ..training.devices import Machine
from ..training.loop import Run
from .attach import Pack
from .lease import NO_LEASE, Lease
from .outcome import Outcome, outcome_of, recorded_outcome, selected_score
from .parents import prepare_all
from .prepare import Prepared
from .score import Scored


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why a run failed. kind: diverged, out_of_memory, worker_lost or error."""

    kind: str
    message: str


def record(pack: Pack, trained: Run, scored: Scored | None, machine: Machine) -> Outcome:
    """Save a run's trained tensors and write its record, or the record of its failure where it diverged."""
    p, tracker, position = pack.runs[trained.k], pack.trackers[trained.k], trained.position
    if scored is None:
        tracker.finish({"diverged": position.diverged}, failed=True)
        return record_failure(p, Cause("diverged", str(position.diverged)), position.history, pack.lease)
    pack.lease.check()
    if machine.accelerator.is_main_process:
        save_trained(pack.attached, p.trained, trained.k)  # before the record: done means all there
        scored.trained_sha256 = file_sha256(p.trained)
    content = assemble(p, describe(pack.backbone), machine.numerics(p.cfg, pack.run_ids), scored)
    if machine.accelerator.is_main_process:
        write_record(p.cfg.results_dir, content, scored.columns)
    tracker.finish({"validation": selected_score(content)})
    return done(p, content)


def done(p: Prepared, content: Record) -> Outcome:
    """The outcome of a run that has just been recorded."""
    return outcome_of(p, "done", ", ".join(content["flags"]), selected_score(content))


def record_lost(cfg: RunConfig, cause: Cause) -> None:
    """The failed record of a run that could not write its own; nothing where it has a record by now."""
    (p,) = prepare_all([cfg])
    if recorded_outcome(p) is None:
        record_failure(p, cause)


def record_failure(
    p: Prepared, cause: Cause, history: Sequence[Mapping[str, Any]] = (), lease: Lease = NO_LEASE
) -> Outcome:
    """Write the record of a failure. history: as far as the run had come."""
    lease.check()
    message = f"{cause.kind}: {cause.message}"
    flags = ["nan_loss"] if cause.kind == "diverged" else []
    failed = {"status": "failed", "cause": dataclasses.asdict(cause), "history": list(history), "flags": flags}
    try:
        write_record(p.cfg.results_dir, cast(Record, _common(p) | failed | {"scores": []}))
    except RecordError as error:  # a forced repetition failed: the record of the run that finished stays
        message = f"{message} ({error})"
    return dataclasses.replace(outcome_of(p, "failed", message), kind=cause.kind)


def assemble(p: Prepared, backbone: dict[str, Any], numerics: dict[str, Any], scored: Scored) -> Record:
    """The record of a finished run."""
    cfg, data = p.cfg, p.data
    entries = [
        {
            "split": split,
            "checkpoint": checkpoint,
            "epoch": scored.epochs[checkpoint],
            "metric": metric,
            "score": value,
            "n": n,
        }
        for checkpoint, by_split in scored.scores.items()
        for split, scores in by_split.items()
        for metric, (value, n) in scores.items()
    ]
    content = _common(p) | {
        "status": "done",
        "cause": None,
        "backbone": backbone,
        "data": {
            "source": data.own.source,
            "sha256": data.sha256,
            "rows": data.rows(),
            "commit": data.own.commit,
        },
        "selection": {
            "checkpoint": cfg.trainer.selection,
            "split": cfg.task.validation_splits[0],
            "metric": cfg.task.selection_metric,
        },
        "scores": entries,
        "history": scored.history,
        "params": scored.params,
        "trained_sha256": scored.trained_sha256,
        "flags": scored.flags,
        "numerics": numerics,
        "tolerance": tolerance_for(numerics["dtype"]),
        "cost": _COST | scored.cost,
    }
    return cast(Record, content)


def _common(p: Prepared) -> dict[str, Any]:
    cfg = p.cfg
    commit, dirty = _git()
    return {
        "schema": SCHEMA,
        "run_id": p.run_id,
        "experiment": cfg.experiment,
        "scale": cfg.scale.name,
        "settings": cfg.settings,
        "task": cfg.task.name,
        "seed": cfg.seed,
        "identity": {key: value for key, value in p.identity.items() if key != "config"},
        "parents": p.identity["parents"],
        "departures": p.departures,
        "config": as_recorded(cfg),
        "provenance": {
            "git_commit": commit,
            "git_dirty": dirty,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


_COST = {
    "train_seconds": None,
    "eval_seconds": None,
    "train_tokens": None,
    "tokens_per_second": None,
    "peak_memory_bytes": None,
}


@functools.cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the repository that holds this code and whether the code differs from it; None where none does: an
    installed package, an archive within another project. Read once: the code in memory is of now."""
    package = Path(__file__).resolve().parents[1]
    root = package.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    code = [package.name, *(name for name in ("peft_methods", "conf") if (root / name).is_dir())]
    if git("ls-files", "--error-unmatch", "--", *code) is None:
        return None, None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *code)
    return commit, None if changes is None else bool(changes)
