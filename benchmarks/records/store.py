"""One JSON file per run: how it is written and read (schema.py: what is in it; states.py: what file names say).

    results/records/<experiment>/<run_id>.json                 a finished run
    results/records/<experiment>/<run_id>.<kind>.failed.json   a run that failed: kind and message of its cause
    results/records/<experiment>/<run_id>.predictions.json.gz  the finished run's predictions, example by example

A record is written once, whole, and never edited: whoever sees the file sees all of it. A run is done when its record
exists, so the state of ten thousand runs is read from file names alone. JSON has no NaN: a number that is not finite
is written as null and reads back as None.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from .files import write_files
from .places import RECORDS
from .schema import Record, RecordError, check, migrate
from .states import FAILED, UNREADABLE, Problem, list_states

PREDICTIONS = ".predictions.json.gz"


class RecordWriteError(OSError):
    """A record could not be written; nothing of it was left behind."""


def record_path(results_dir: Path | str, experiment: str, run_id: str, failed: str | None = None) -> Path:
    """Where the record of a run lies; failed: the kind of its cause. (Its predictions: `predictions_path`.)"""
    name = f"{run_id}.json" if failed is None else f"{run_id}.{failed}{FAILED}"
    return Path(results_dir) / RECORDS / experiment / name


def predictions_path(results_dir: Path | str, experiment: str, run_id: str) -> Path:
    """Where the predictions of a finished run lie."""
    return Path(results_dir) / RECORDS / experiment / f"{run_id}{PREDICTIONS}"


def read_predictions(results_dir: Path | str, experiment: str, run_id: str) -> dict[str, Any]:
    """Split -> column -> values, of the selected checkpoint of a finished run."""
    packed = predictions_path(results_dir, experiment, run_id).read_bytes()
    return cast(dict[str, Any], json.loads(gzip.decompress(packed)))


def write_record(results_dir: Path | str, record: Record, predictions: Mapping[str, Any] | None = None) -> Path:
    """Write a record, and before it its predictions, each atomically; return the record's path.

    Both files are complete on disk under temporary names before either gets its own. On an OSError (full disk, no
    permission) what was begun is removed and RecordWriteError raised. Writing the run again replaces its files whole;
    a finished run takes the place of its earlier failure, a failure never that of a finished run.
    """
    record = _plain(record)
    check(record)
    results_dir, experiment, run_id = Path(results_dir), record["experiment"], record["run_id"]
    path = record_path(results_dir, experiment, run_id, record["cause"]["kind"] if record["cause"] else None)
    if record["status"] == "failed" and record_path(results_dir, experiment, run_id).exists():
        raise RecordError(f"run {run_id} of {experiment} is already done; its failed repetition is not recorded")
    contents = {path: json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"}
    if predictions is not None:
        text = json.dumps(_plain(predictions), ensure_ascii=False, allow_nan=False)
        packed = gzip.compress(text.encode(), mtime=0)  # no time stamp: equal predictions are equal files
        contents = {predictions_path(results_dir, experiment, run_id): packed} | contents
    try:
        write_files(contents)
        for earlier in path.parent.glob(f"{run_id}.*{FAILED}"):
            if earlier != path:
                earlier.unlink(missing_ok=True)
    except OSError as error:
        raise RecordWriteError(
            f"cannot write the record of run {run_id} to {path}: {error.strerror or error}; nothing of it was left "
            "there: make room or choose another results folder, then run it again"
        ) from error
    return path


def _plain(value: Any) -> Any:
    """The same value in JSON's own types: numpy scalars and arrays by `tolist`, numbers that are not finite as None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise RecordError(f"{value!r} of type {type(value).__name__} has no place in a record; give JSON types or arrays")


def read_record(path: Path | str) -> Record:
    """Read and check one record. Raises RecordError (one sentence) where it is unreadable or in the wrong place."""
    path = Path(path)
    try:
        record = orjson.loads(path.read_bytes())  # three times as fast as json, which a folder of 10,000 feels
    except OSError as error:
        raise RecordError(f"cannot be opened ({error.strerror})") from error
    except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
        raise RecordError(f"is not whole JSON ({error})") from error
    record = migrate(record)
    check(record)
    cause = record["cause"]
    place = record_path("", record["experiment"], record["run_id"], cause["kind"] if cause else None).as_posix()
    if not path.as_posix().endswith(place.removeprefix(RECORDS)):
        raise RecordError(f"says that it is {place}: it was moved or copied")
    return cast(Record, record)


def iter_records(results_dir: Path | str) -> Iterator[Record | Problem]:
    """Read the records under `results_dir` one by one, in the order of their names; a Problem for an unreadable one."""
    for experiment, states in list_states(results_dir).items():
        kinds: dict[str, str | None] = dict.fromkeys(states.done) | states.failed
        for run_id, kind in sorted(kinds.items()):
            path = record_path(results_dir, experiment, run_id, kind)
            try:
                yield read_record(path)
            except RecordError as error:
                yield Problem(str(path), str(error))


def finished_records(results_dir: Path | str, experiments: str) -> Iterator[Record]:
    """The records of the finished runs of an experiment, or of all that a pattern matches, in the order of their
    names. Raises RecordError for an unreadable one."""
    for path in sorted((Path(results_dir) / RECORDS).glob(f"{experiments}/*.json")):
        if path.name.count(".") == 1:  # neither a failure nor half written
            yield read_record(path)


def set_aside(path: Path | str) -> Path:
    """Rename an unreadable record to <name>.unreadable, so that its run can be made again; return the new path.

    For the verb that runs; the report only skips and names such records. Nothing is deleted: a name already taken
    gets a number.
    """
    path = Path(path)
    target = path.with_name(path.name + UNREADABLE)
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name.removesuffix('.json')}.{number}.json{UNREADABLE}")
    return path.rename(target)
