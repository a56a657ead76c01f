"""From a finished (or failed) run to its record: every number of the record is put together here."""

import dataclasses
import functools
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from ..config.recorded import as_recorded
from ..config.schema import RunConfig
from ..records import leases
from ..records.schema import SCHEMA, Record, RecordError, tolerance_for
from ..records.store import write_record
from ..tasks.examples import RunData
from .prepare import Outcome, Prepared, found_done, outcome_of, prepare, recorded_score, selected_score
from .score import RunOutput


def record_done(
    p: Prepared, backbone: dict[str, Any], numerics: dict[str, Any], output: RunOutput, write: bool
) -> Outcome:
    """The record of a finished run, written by the main process, and its outcome."""
    record = assemble(p.cfg, p.identity, p.run_id, p.departures, p.data, backbone, numerics, output)
    if write:
        write_record(p.cfg.results_dir, record, output.columns)
    return outcome_of(p, "done", ", ".join(record["flags"]), selected_score(record), 0.0)


def record_failure(cfg: RunConfig, kind: str, message: str) -> None:
    """The failed record of a run that could not write its own; nothing where it has a record by now."""
    p = prepare(cfg, recorded_score)
    if found_done(p) is None:
        record_failed(p, kind, message, [])


def record_failed(
    p: Prepared, kind: str, message: str, history: Sequence[Any], held: leases.Held | None = None
) -> Outcome:
    """The failed record of a run of this process, and its outcome."""
    if held is not None:
        held.check()
    try:
        failure = assemble_failure(p.cfg, p.identity, p.run_id, p.departures, kind, message, history)
        write_record(p.cfg.results_dir, failure)
    except RecordError as error:  # a forced repetition failed: the record of the run that finished stays
        message = f"{message} ({error})"
    return dataclasses.replace(outcome_of(p, "failed", f"{kind}: {message}", None, 0.0), kind=kind)


def assemble(
    cfg: RunConfig, identity: dict[str, Any], run_id: str, departures: dict[str, list[Any]], data: RunData,
    backbone: dict[str, Any], numerics: dict[str, Any], output: RunOutput,
) -> Record:  # fmt: skip
    """The record of a finished run."""
    entries = [
        {
            "split": split,
            "checkpoint": checkpoint,
            "epoch": output.epochs[checkpoint],
            "metric": metric,
            "score": value,
            "n": n,
        }
        for checkpoint, by_split in output.scores.items()
        for split, scores in by_split.items()
        for metric, (value, n) in scores.items()
    ]
    record = _common(cfg, identity, run_id, departures) | {
        "status": "done",
        "cause": None,
        "backbone": backbone,
        "data": {"source": data.own.source, "sha256": data.sha256, "rows": data.rows()},
        "selection": {
            "checkpoint": cfg.trainer.selection,
            "split": cfg.task.validation_splits[0],
            "metric": cfg.task.selection_metric,
        },
        "scores": entries,
        "history": output.history,
        "params": output.params,
        "trained_sha256": output.trained_sha256,
        "flags": output.flags,
        "numerics": numerics,
        "tolerance": tolerance_for(numerics["dtype"]),
        "cost": _COST | output.cost,
    }
    return cast(Record, record)


def assemble_failure(
    cfg: RunConfig, identity: dict[str, Any], run_id: str, departures: dict[str, list[Any]],
    kind: str, message: str, history: Sequence[Any],
) -> Record:  # fmt: skip
    """The record of a run that failed: its cause, its history so far, no scores."""
    flags = ["nan_loss"] if kind == "diverged" else []
    cause = {"kind": kind, "message": message}
    failed = {"status": "failed", "cause": cause, "history": list(history), "flags": flags, "scores": []}
    return cast(Record, _common(cfg, identity, run_id, departures) | failed)


def _common(cfg: RunConfig, identity: dict[str, Any], run_id: str, departures: dict[str, list[Any]]) -> dict[str, Any]:
    commit, dirty = _git()
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "experiment": cfg.experiment,
        "scale": cfg.scale.name,
        "settings": cfg.settings,
        "task": cfg.task.name,
        "seed": cfg.seed,
        "identity": {key: value for key, value in identity.items() if key != "config"},
        "parents": identity["parents"],
        "departures": departures,
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
    """Commit and whether the tree differs from it; None outside a checkout. Read once: the code in memory is of now."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = (
        git("rev-parse", "HEAD"),
        git("status", "--porcelain", "--", ":/peft_methods", ":/benchmarks", ":/conf"),
    )
    return commit, None if changes is None else bool(changes)
