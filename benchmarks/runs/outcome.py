"""What becomes of a run: what its record says, or why there is none."""

import dataclasses
import logging

from ..records.schema import NewerRecordError, Record, RecordError
from ..records.store import read_record, record_path, set_aside
from .prepare import Prepared

log = logging.getLogger(__name__)


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


def outcome_of(p: Prepared, status: str, message: str, score: float | None = None) -> Outcome:
    """The outcome of this run."""
    return Outcome(p.cfg.experiment, p.cfg.task.name, p.cfg.seed, p.run_id, status, message, score, 0.0)


def recorded_outcome(p: Prepared) -> Outcome | None:
    """The outcome of a run that is done already, unless it is to be repeated."""
    if p.cfg.force or (record := record_of(p)) is None:
        return None
    return outcome_of(p, "found", "its record exists; force=true repeats it", selected_score(record))


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


def selected_score(record: Record) -> float | None:
    """The validation score of the checkpoint that the run's own configuration selects."""
    chosen = record["selection"]
    for s in record["scores"]:
        if (s["checkpoint"], s["split"], s["metric"]) == (chosen["checkpoint"], chosen["split"], chosen["metric"]):
            return s["score"]
    return None


def recorded_score(p: Prepared) -> float | None:
    """The validation score in a run's record; None without one."""
    record = record_of(p)
    return None if record is None else selected_score(record)
