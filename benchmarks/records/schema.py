"""The schema of a record: everything kept about one run, and the check that a JSON object follows it."""

from __future__ import annotations

import math
from typing import Any, Literal, NotRequired, TypedDict

from ..config.metrics import metric

SCHEMA = 2


class Cause(TypedDict):
    """Why a run failed."""

    kind: str  # one word for the tables: "diverged", "out_of_memory", "bad_input", ...
    message: str


class Backbone(TypedDict):
    """The pretrained model the run used, and the one it stands for."""

    name: str
    stands_for: str
    published: bool  # the published weights, not a stand-in
    sha256: str | None
    commit: NotRequired[str | None]  # on the hub; None of a folder
    pinned: NotRequired[bool]  # conf/pins.yaml names that commit or, of a folder, the hashes


class Data(TypedDict):
    """The data the run used; `source` is "glue" for the published data, "micro-2" for the generated language."""

    source: str
    sha256: str
    rows: dict[str, int]  # split -> number of examples
    commit: NotRequired[str | None]  # on the hub; None of a folder and of the generated language


class Selection(TypedDict):
    """Which checkpoint of the run counts, and the split and metric that chose it."""

    checkpoint: Literal["best", "last"]
    split: str
    metric: str


class Score(TypedDict):
    """One metric on one split at one checkpoint; `score` in the metric's own range (mostly a fraction),
    None if undefined or, of texts, where the machine could not compute it."""

    split: str
    checkpoint: Literal["best", "last"]
    epoch: float | None  # None where nothing was trained
    metric: str
    score: float | None
    n: int  # examples scored


class HistoryPoint(TypedDict):
    """The state of the run at one evaluation; scores by split, then metric."""

    epoch: float
    step: int
    train_loss: float | None
    learning_rate: float
    scores: dict[str, dict[str, float | None]]


class Params(TypedDict):
    """Numbers of parameters."""

    method: int  # trained, head apart
    head: int
    added: int  # did not exist in the backbone
    stored: int  # what the checkpoint holds
    backbone: int
    layers: int  # of the backbone's Transformer layers alone


class Numerics(TypedDict):
    """What two runs must share to be bit-identical; recorded, not part of a run's identity."""

    device: str
    device_name: str
    dtype: str
    threads: int
    pack: int  # runs trained together on the one backbone
    members: list[str] | None  # their run_ids, in order
    micro_batch_size: int | None  # halved after running out of memory; None: as configured
    processes: int  # data-parallel
    versions: dict[str, str]


class Tolerance(TypedDict):
    """How far a repetition in another numerics class may lie, at any evaluation and at the end."""

    train_loss: float
    score: float


# float32 measured between one and two threads and between packs of one and of four, the others chosen: docs/runs.md.
TOLERANCES: dict[str, Tolerance] = {
    "float64": {"train_loss": 1e-3, "score": 0.01},
    "float32": {"train_loss": 0.1, "score": 0.05},
    "bfloat16": {"train_loss": 0.2, "score": 0.1},
}


def tolerance_for(dtype: str) -> Tolerance:
    """The tolerance of a run whose forward pass takes numbers of this type (numerics.dtype)."""
    return TOLERANCES[next((name for name in TOLERANCES if dtype.startswith(name)), "bfloat16")]


class Cost(TypedDict):
    """What the run took; None where it was not measured."""

    train_seconds: float | None
    eval_seconds: float | None
    train_tokens: int | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None


class Provenance(TypedDict):
    """The code that made the record; `created` is ISO 8601 in UTC."""

    git_commit: str | None
    git_dirty: bool | None
    created: str


class Record(TypedDict):
    """Everything kept about one run (one seed of one setting on one task)."""

    schema: int
    run_id: str  # 16 hex digits, hash of `identity`
    experiment: str
    scale: str  # a file of conf/scale/
    settings: Literal["paper", "script"]  # whose hyperparameters: the paper's text or its released scripts
    task: str
    seed: int
    status: Literal["done", "failed"]
    cause: Cause | None
    identity: dict[str, Any]
    parents: list[str]  # run_ids this run started from
    departures: dict[str, list[Any]]  # key -> [given, expected]: where config is not the experiment's own
    config: dict[str, Any]
    backbone: Backbone
    data: Data
    selection: Selection
    scores: list[Score]
    history: list[HistoryPoint]
    params: Params
    trained_sha256: str | None  # of the file of trained tensors
    flags: list[str]
    numerics: Numerics
    tolerance: Tolerance
    cost: Cost
    provenance: Provenance


# A failed run may have failed before it knew its data, parameters or cost: only these are asked of it.
_OF_FAILED = {"schema", "run_id", "experiment", "scale", "settings", "task", "seed", "status", "cause"}
_OBJECTS_OF_DONE = ("departures", "config", "backbone", "data", "selection", "params", "numerics", "cost", "provenance")


class RecordError(ValueError):
    """A record that cannot be read or must not be written; the message says why."""


class NewerRecordError(RecordError):
    """A record written by a later version of the suite: sound, but not for this one to read or replace."""


def migrate(record: Any) -> Any:
    """A record of an older schema as one of this version; anything else as it is.

    1 -> 2: the runs of the pack, the micro-batch after a retry and the hash of the trained tensors were not kept; the
    tolerance is that of today.
    """
    if not isinstance(record, dict) or record.get("schema") != 1:
        return record
    record |= {"schema": 2, "trained_sha256": None}
    if isinstance(record.get("numerics"), dict):
        alone = record["numerics"].get("pack") == 1
        record["numerics"] |= {"members": [record.get("run_id")] if alone else None, "micro_batch_size": None}
        record["tolerance"] = tolerance_for(str(record["numerics"].get("dtype")))
    return record


def check(record: object) -> None:
    """Raise RecordError with one sentence if `record` does not follow the schema of this version."""
    if not isinstance(record, dict):
        raise RecordError(f"a record is a JSON object, this is a {type(record).__name__}")
    schema = record.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise (NewerRecordError if newer else RecordError)(
            f"schema {schema!r} is unknown, this version reads schema {SCHEMA} and older; "
            "read it with the version of peft-bench that wrote it"
        )
    done = record.get("status") == "done"
    if missing := sorted((Record.__annotations__.keys() if done else _OF_FAILED) - record.keys()):
        raise RecordError(f"lacks {', '.join(missing)}")
    if record["status"] not in ("done", "failed") or done == bool(record["cause"]):
        raise RecordError(
            f"status {record['status']!r} with cause {record['cause']!r}: expected 'done' without or 'failed' with one"
        )
    if not done and not (isinstance(record["cause"], dict) and {"kind", "message"} <= record["cause"].keys()):
        raise RecordError(f"cause {record['cause']!r}: expected an object with kind and message")
    if wrong := [key for key in _OBJECTS_OF_DONE if done and not isinstance(record[key], dict)]:
        raise RecordError(f"{', '.join(wrong)}: expected objects")
    _check_types(record)
    scores = record.get("scores") or []
    if not isinstance(scores, list) or done != bool(scores):
        raise RecordError(f"a {record['status']} run {'without' if done else 'with'} scores")
    fields = Score.__annotations__.keys()
    if not all(isinstance(score, dict) and score.keys() >= fields for score in scores):
        raise RecordError(f"a score lacks one of {', '.join(fields)}")
    for score in scores:
        value = score["score"]
        limit = 1 + 1e-9 if metric(score["metric"]).fraction else math.inf
        if not (value is None or (isinstance(value, int | float) and not abs(value) > limit)):
            raise RecordError(f"score {value!r} of {score['metric']} on {score['split']}: expected a fraction or null")
        if not isinstance(score["n"], int) or not isinstance(score["epoch"], int | float | None):
            raise RecordError(
                f"a score on {score['split']} with n={score['n']!r}, epoch={score['epoch']!r}: no numbers"
            )


# What the report reads: where in the record, and the types it may have. Absent is as good as null.
_TYPES: dict[tuple[type, ...], list[str]] = {
    (str,): ["run_id", "experiment", "scale", "settings", "task"],
    (int,): ["seed"],
    (list,): ["parents", "flags", "history"],
    (dict,): [
        *("departures", "config", "identity", "backbone", "data", "params", "numerics", "cost", "provenance"),
        *("config.trainer", "config.method", "data.rows"),
    ],
    (int, float): [
        *(f"config.trainer.{name}" for name in ("learning_rate", "batch_size", "epochs")),
        *(f"config.method.{name}" for name in ("bottleneck_dim", "rank", "alpha")),
        *(f"params.{name}" for name in Params.__annotations__),
        *(f"cost.{name}" for name in Cost.__annotations__),
        *("data.rows.train", "numerics.threads", "numerics.pack"),
    ],
}
_PATHS = [(path, path.split("."), types) for types, paths in _TYPES.items() for path in paths]


def _check_types(record: dict[str, Any]) -> None:
    for path, keys, types in _PATHS:
        value: Any = record
        for key in keys:
            value = value.get(key)
            if value is None:
                break
        if not isinstance(value, types) and (value is not None or path in _OF_FAILED):
            raise RecordError(f"{path} is {value!r}: expected {' or '.join(t.__name__ for t in types)}")
    for name in ("parents", "flags"):
        if not all(isinstance(item, str) for item in record.get(name) or ()):
            raise RecordError(f"{name} is {record[name]!r}: expected a list of texts")
    if not all(isinstance(both, list) and len(both) == 2 for both in (record.get("departures") or {}).values()):
        raise RecordError(f"departures is {record['departures']!r}: expected [given, expected] by key")
