"""One JSON file per run: how it is written, read and listed (record_schema.py: what is in it). No torch, no pandas.

    results/records/<experiment>/<run_id>.json                 a finished run
    results/records/<experiment>/<run_id>.<kind>.failed.json   a run that failed: kind and message of its cause
    results/records/<experiment>/<run_id>.predictions.json.gz  the finished run's predictions, example by example

A record is written once, whole, and never edited: whoever sees the file sees all of it. A run is done when its record
exists, so the state of ten thousand runs is read from file names alone. JSON has no NaN: a number that is not finite
is written as null and reads back as None.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from .schema import SCHEMA as SCHEMA
from .schema import NewerRecordError as NewerRecordError
from .schema import Record, RecordError, check, migrate

RECORDS = "records"  # the folder under results/ that holds them
FAILED, UNREADABLE, PREDICTIONS = ".failed.json", ".unreadable", ".predictions.json.gz"


class RecordWriteError(OSError):
    """A record could not be written; nothing of it was left behind."""


@dataclass(frozen=True)
class Problem:
    """Something a reader of the results must know: which file (or cell), and what is wrong with it."""

    where: str
    cause: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}"


@dataclass
class States:
    """The run ids of one experiment by state, read from file names. A run that failed and later finished is done."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)  # run id -> kind of its cause
    unreadable: set[str] = field(default_factory=set)  # set aside, to be run again


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


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write all files of one folder or none: temporaries beside their targets, fsync, then renames in the order given.

    Raises OSError that names the file.
    """
    try:
        next(iter(contents)).parent.mkdir(parents=True, exist_ok=True)
        _write_together(contents)
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(next(iter(contents)))) from error
        raise


def _write_together(contents: Mapping[Path, bytes]) -> None:
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    new = [path for path in contents if not path.exists()]
    try:
        for path, content in contents.items():
            with temporaries[path].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
        folder = os.open(next(iter(contents)).parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the renames themselves survive a power cut
        finally:
            os.close(folder)
    except BaseException:  # also a keyboard interrupt
        for path in [*temporaries.values(), *new]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise


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
        found: dict[str, str | None] = dict.fromkeys(states.done) | states.failed
        for run_id, kind in sorted(found.items()):
            path = record_path(results_dir, experiment, run_id, kind)
            try:
                yield read_record(path)
            except RecordError as error:
                yield Problem(str(path), str(error))


def read_records(results_dir: Path | str) -> tuple[list[Record], list[Problem]]:
    """Every readable record under `results_dir`, and the unreadable ones by name and cause."""
    records: list[Record] = []
    problems: list[Problem] = []
    for found in iter_records(results_dir):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            records.append(found)
    return records, problems


def list_states(results_dir: Path | str) -> dict[str, States]:
    """The states of all runs by experiment, from file names alone; an empty or missing folder gives no experiment."""
    states: dict[str, States] = {}
    for experiment, name in sorted(_names(Path(results_dir) / RECORDS)):
        run_id = name.split(".", maxsplit=1)[0]
        found = states.setdefault(experiment, States())
        if name.endswith(UNREADABLE):
            found.unreadable.add(run_id)
        elif name.endswith(FAILED):
            found.failed[run_id] = name.removeprefix(f"{run_id}.").removesuffix(FAILED)
        else:
            found.done.add(run_id)
    for found in states.values():
        found.failed = {run_id: kind for run_id, kind in found.failed.items() if run_id not in found.done}
    return states


def _names(folder: Path) -> Iterator[tuple[str, str]]:
    for parent, _, names in os.walk(folder):
        experiment = Path(parent).relative_to(folder).as_posix()
        for name in names:
            if name.endswith((".json", f".json{UNREADABLE}")) and not name.startswith("."):
                yield experiment, name


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
