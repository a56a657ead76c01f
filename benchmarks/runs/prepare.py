"""From a configuration to a run that may be trained: config -> data -> parent -> identity. Nothing is trained here."""

import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backbones.folders import weights_of
from ..config.schema import RunConfig, is_control
from ..records.schema import NewerRecordError, Record, RecordError
from ..records.store import read_record, record_path, set_aside
from ..tasks.examples import RunData
from ..tasks.loading import load_run_data
from . import parents
from .checks import check_config
from .identity import identity, run_id

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Prepared:
    """A run that has passed every check: its data, its parent and its identity."""

    cfg: RunConfig
    data: RunData
    parent: Path | None
    identity: dict[str, Any]
    run_id: str
    departures: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Experiment and run id: what names a run in a results folder."""
        return self.cfg.experiment, self.run_id


def prepare(cfg: RunConfig, parent_score: Callable[[RunConfig], tuple[str, float]]) -> Prepared:
    """Check, load, identify. Raises ValueError for whatever can be refused before a backbone is built.

    parent_score: the run id and validation score of a possible parent, found, made or refused.
    """
    check_config(cfg)
    data = load_run_data(cfg)
    weights = None if is_control(cfg) else weights_of(cfg.backbone, cfg.scale, cfg.backbone_dir)
    if cfg.init_from is None:
        made = identity(cfg, data.sha256, [], weights)
        return Prepared(cfg, data, None, made, run_id(made))
    parent_id = parents.parent_of(cfg, parent_score)
    made = identity(cfg, data.sha256, [parent_id], weights)
    parent = parents.trained_path(dataclasses.replace(cfg, experiment=cfg.init_from.experiment), parent_id)
    return Prepared(cfg, data, parent, made, run_id(made))


def check_writable(results_dir: str) -> None:
    """Now rather than after the training. Raises ValueError."""
    if not results_dir:
        return  # check_config says so
    folder = Path(results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"results_dir={folder}: cannot write there ({error.strerror}); name another folder") from error


def record_of(p: Prepared) -> Record | None:
    """The record of a run that is done already; an unreadable one is set aside, and the run is made again.

    Raises ValueError for a record of a later version: it is sound, and must not be replaced.
    """
    path = record_path(p.cfg.results_dir, p.cfg.experiment, p.run_id)
    if not path.exists():
        return None
    try:
        return read_record(path)
    except NewerRecordError as error:
        raise ValueError(f"results_dir={p.cfg.results_dir}: {path.name}: {error}; or name another folder") from error
    except RecordError as error:
        log.warning("%s %s: set aside as %s, the run is made again", path, error, set_aside(path).name)
        return None


def recorded_score(cfg: RunConfig) -> tuple[str, float]:
    """Run id and validation score of a possible parent, from its record; minus infinity without one."""
    p = prepare(cfg, recorded_score)
    record = record_of(p)
    score = None if record is None else selected_score(record)
    return p.run_id, -math.inf if score is None else score


def selected_score(record: Record) -> float | None:
    """The validation score of the checkpoint that the run's own configuration selects."""
    chosen = record["selection"]
    for s in record["scores"]:
        if (s["checkpoint"], s["split"], s["metric"]) == (chosen["checkpoint"], chosen["split"], chosen["metric"]):
            return s["score"]
    return None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run. status: done, found (its record was there), failed, or busy (another process makes it).

    kind: of the cause of a failure. score: selected validation score.
    """

    experiment: str
    task: str
    seed: int
    run_id: str
    status: str
    message: str
    score: float | None
    seconds: float
    kind: str | None = None


def found_done(p: Prepared) -> Outcome | None:
    """The outcome of a run that is done already."""
    if p.cfg.force or (record := record_of(p)) is None:
        return None
    return outcome_of(p, "found", "its record exists; force=true repeats it", selected_score(record), 0.0)


def outcome_of(p: Prepared, status: str, message: str, score: float | None, seconds: float) -> Outcome:
    """The outcome of this run."""
    return Outcome(p.cfg.experiment, p.cfg.task.name, p.cfg.seed, p.run_id, status, message, score, seconds)
