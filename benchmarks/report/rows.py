"""Records as flat rows: one run, one checkpoint, one split, one metric."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from ..config.pins import pins
from ..config.science import digest_apart_from_search
from ..records.schema import Record
from ..records.states import Problem
from ..records.store import iter_records
from .marks import unpinned


@dataclass(frozen=True)
class ResultRow:
    """One number a paper could print. No nesting, no sentinel values; what is unknown or undefined is None.

    A failed run is one row with its cause and neither split, metric nor score.
    """

    experiment: str  # "houlsby2019/table1_adapters_64": one printed row
    scale: str  # paper, small, micro
    settings: str  # paper, script
    task: str  # "mnli"
    seed: int
    run_id: str
    status: str  # done, failed
    cause: str | None  # of a failed run, one word
    flags: str  # what is suspicious about the run, joined by spaces; "" if nothing is
    selection_checkpoint: str | None  # the checkpoint that counts, and the split and metric that chose it
    selection_split: str | None
    selection_metric: str | None
    method_params: int | None  # trained, head excluded
    head_params: int | None
    stored_params: int | None
    backbone_params: int | None
    layers_params: int | None  # of the backbone's Transformer layers alone
    backbone: str | None
    stands_for: str | None
    published: bool | None  # the backbone has its published weights
    backbone_sha256: str | None
    data_source: str | None
    data_sha256: str | None
    train_rows: int | None
    setting: str | None  # equal for the seeds and the sweep points of one setting: config/science.py
    departures: str | None  # from the experiment's own configuration, "; " between them; "" if none, None if unknown
    optimizer: str | None
    learning_rate: float | None
    batch_size: int | None
    epochs: float | None
    bottleneck_dim: int | None
    rank: int | None
    alpha: float | None
    length: int | None  # of a prefix, infix or prompt
    words: str | None  # that a prefix starts from; "" for a random start
    init: str | None  # what a prompt starts from
    target_prefix: str | None  # before everything that a backbone writes
    in_context: str | None  # the prompt in words of a frozen backbone
    shots: float | None  # examples in it
    train_sample: float | None  # which subsample of the training rows
    source_form: str | None  # of a task answered in texts: what stands around a source
    parents: str  # run_ids this run started from, joined by spaces
    device: str | None
    dtype: str | None
    threads: int | None
    pack: int | None
    train_seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    git_commit: str | None
    git_dirty: bool | None  # made by code that differs from that commit; None: not from a checkout
    # One score of the run:
    split: str | None
    checkpoint: str | None  # best, last
    epoch: float | None  # None where nothing was trained
    metric: str | None
    score: float | None  # in the metric's own range; only render.py multiplies by 100
    n: int | None  # examples scored


COLUMNS = [column.name for column in fields(ResultRow)]
_SCORE = ("split", "checkpoint", "epoch", "metric", "score", "n")
_FIELDS = {  # the part of the record -> the row's field -> its key there
    "cause": {"cause": "kind"},
    "selection": {"selection_checkpoint": "checkpoint", "selection_split": "split", "selection_metric": "metric"},
    "params": {f"{name}_params": name for name in ("method", "head", "stored", "backbone", "layers")},
    "backbone": {"backbone": "name", "stands_for": "stands_for", "published": "published", "backbone_sha256": "sha256"},
    "data": {"data_source": "source", "data_sha256": "sha256"},
    "data.rows": {"train_rows": "train"},
    "config.trainer": {name: name for name in ("optimizer", "learning_rate", "batch_size", "epochs")},
    "config.task": {"target_prefix": "target_prefix"},
    "config.in_context": {"in_context": "name", "shots": "shots"},
    "config.method": {name: name for name in ("bottleneck_dim", "rank", "alpha", "length", "words", "init")},
    "numerics": {name: name for name in ("device", "dtype", "threads", "pack")},
    "cost": {name: name for name in ("train_seconds", "tokens_per_second", "peak_memory_bytes")},
    "provenance": {"git_commit": "git_commit", "git_dirty": "git_dirty"},
}
_PLAN = [(path.split("."), list(names.items())) for path, names in _FIELDS.items()]
PINNED_DATA = {pin.revision for pin in pins().values() if pin.kind == "datasets" and pin.revision}
_NO_SCORE = dict.fromkeys(_SCORE)
_NUMBERS = [
    column.name
    for column in fields(ResultRow)
    if str(column.type).startswith(("int", "float")) and column.name != "seed"
]


def frame_of(records: Iterable[Record]) -> pd.DataFrame:
    """The DataFrame of ResultRows that every report function takes: a line per score of each record, or one without a
    score for a failed run.

    What all scores of a run share is typed once per run and then repeated: ten times faster than row by row.
    """
    runs: list[dict[str, Any]] = []
    scores: list[list[dict[str, Any]]] = []
    for record in records:
        runs.append(_run_fields(record))
        scores.append(_scores(record))
    index = [number for number, of_run in enumerate(scores) for _ in of_run]
    per_run = typed(runs, [name for name in COLUMNS if name not in _SCORE])
    per_score = typed([score for of_run in scores for score in of_run], list(_SCORE))
    return pd.concat([per_run.take(index).reset_index(drop=True), per_score], axis=1)[COLUMNS]


def results_frame(results_dir: Path | str) -> tuple[pd.DataFrame, list[Problem]]:
    """All records under `results_dir` as one DataFrame of ResultRows, and the records that could not be read."""
    problems: list[Problem] = []

    def readable() -> Iterator[Record]:
        for record in iter_records(results_dir):
            if isinstance(record, Problem):
                problems.append(record)
            else:
                yield record

    collecting = gc.isenabled()
    gc.disable()  # parsing makes no cycles, and scanning for them again and again doubles its time
    try:
        return frame_of(readable()), problems
    finally:
        if collecting:
            gc.enable()


def typed(lines: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Numbers as numbers, also where a column is empty or unknown throughout; text as plain objects, None included."""
    frame = pd.DataFrame({name: pd.Series([line[name] for line in lines], dtype=object) for name in columns})
    types = {name: "float64" for name in _NUMBERS if name in frame} | ({"seed": "int64"} if "seed" in frame else {})
    return frame.astype(types)


def _scores(record: Record) -> list[dict[str, Any]]:
    return [dict(score) for score in record["scores"]] if record["status"] == "done" else [_NO_SCORE]


def _run_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that all rows of a record share. A failed record may lack any of the nested objects."""
    run = {name: record[name] for name in ("experiment", "scale", "settings", "task", "seed", "run_id", "status")}
    run["flags"] = " ".join([*(record.get("flags") or ()), *_stale(record), *_unpinned(record)])
    run["parents"] = " ".join(record.get("parents") or ())
    run["setting"] = _setting(record)
    generation = _generation(record)
    run["source_form"], run["train_sample"] = generation.get("source"), generation.get("train_sample")
    changed = record.get("departures")
    run["departures"] = None if changed is None else "; ".join(f"{k} {v[0]} (not {v[1]})" for k, v in changed.items())
    for path, names in _PLAN:
        part: Any = record
        for key in path:
            part = part.get(key) or {}
        for name, key in names:
            run[name] = part.get(key)
    return run


def _stale(record: Mapping[str, Any]) -> tuple[str, ...]:
    """A flag where no command of today makes the record's run: tokenizer and configuration count beside weights."""
    parts = record.get("identity") or {}
    return ("stale",) if "weights" in parts and "files" not in parts else ()


def _unpinned(record: Mapping[str, Any]) -> Iterator[str]:
    """Flags where a run's weights or data are the hub's, at a commit that nobody has pinned."""
    backbone, data = record.get("backbone") or {}, record.get("data") or {}
    if backbone.get("published") and not backbone.get("pinned", record["scale"] != "paper"):
        yield unpinned("weights", backbone.get("commit"))
    if (commit := data.get("commit")) and commit not in PINNED_DATA:
        yield unpinned("data", commit)


def _generation(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the run's task says of texts at its scale; empty for other tasks."""
    config = record.get("config") or {}
    data = (config.get("scale") or {}).get("data", record["scale"])  # which of the two forms a scale reads
    return (config.get("task") or {}).get("micro_generation" if data == "micro" else "generation") or {}


def _setting(record: Mapping[str, Any]) -> str | None:
    """None for a configuration that lacks a part: a record made by hand, or of a run that failed early."""
    try:
        return digest_apart_from_search(record["config"], record["identity"]["versions"])
    except (KeyError, TypeError, AttributeError):
        return None
