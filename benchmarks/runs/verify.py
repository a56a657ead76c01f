"""`peft-bench verify RUN`: make a recorded run again, elsewhere, and compare.

In the numerics class of the record (device, threads, pack, library versions) everything must come out bit by bit:
trained tensors, predictions, history, scores. In another one, losses and scores must lie within the record's tolerance.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.recorded import run_config
from ..config.schema import TrackingConfig
from ..records.files import files_below
from ..records.places import RECORDS, TRAINED
from ..records.schema import Record, RecordError
from ..records.store import predictions_path, read_record, record_path
from . import parents

_SAME_CLASS = ("device", "device_name", "dtype", "threads", "members", "micro_batch_size", "processes", "versions")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """differs: what makes it another numerics class; wrong: what did not come out. Both empty: bit by bit the same."""

    differs: tuple[str, ...]
    wrong: tuple[str, ...]
    largest: dict[str, float]  # the largest difference in loss and score


def main(argv: Sequence[str]) -> int:
    """0 where the run comes out as recorded, 1 where it does not, 2 where it cannot be made again."""
    parser = argparse.ArgumentParser(
        prog="peft-bench verify",
        description="Make a recorded run again in a temporary folder and compare: bit by bit with the same device, "
        "threads, pack and library versions, within the record's tolerance elsewhere.",
    )
    parser.add_argument("run", nargs="+", help="run id (the record's file name), or its first digits")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument("--data-dir", help="local data in hub layout, as data_dir= of peft-bench run")
    parser.add_argument("--backbone-dir", help="local checkpoints, as backbone_dir= of peft-bench run")
    options = parser.parse_args(argv)
    failed = False
    for name in options.run:
        path = find(options.results, name)
        try:
            record = read_record(path)
        except RecordError as error:
            raise ValueError(f"{path} {error}") from error
        print(f"{record['experiment']} {record['task']} seed {record['seed']} [{record['run_id']}]", flush=True)
        with tempfile.TemporaryDirectory(prefix="peft-bench-verify-") as folder:
            places = {"data_dir": options.data_dir, "backbone_dir": options.backbone_dir}
            again = repeat(options.results, record, Path(folder), places)
            verdict = compare(record, again, options.results, Path(folder))
        print(text(verdict, record), file=sys.stderr if verdict.wrong else sys.stdout)
        failed = failed or bool(verdict.wrong)
    return int(failed)


def find(results: Path, name: str) -> Path:
    """The record whose run id begins with `name`. Raises ValueError where there is none or more than one."""
    if not name.isalnum():
        raise ValueError(
            f"{name}: expected a run id, or its beginning, as in the records' file names; give its folder "
            "with --results"
        )
    files = (path for path in files_below(results / RECORDS) if path.name.startswith(name))
    found = sorted(path for path in files if path.suffix == ".json" and path.name.count(".") == 1)
    if len(found) != 1:
        raise ValueError(
            f"{name}: {len(found)} finished records in {results / RECORDS} begin with it, expected one; give a run id "
            "as in the records' file names, and the folder with --results"
        )
    return found[0]


def repeat(results: Path, record: Record, folder: Path, places: Mapping[str, str | None]) -> Record:
    """Make the record's whole pack again in `folder`; raises ValueError where that is not possible."""
    from .run import How, run_pack

    members = _members(results, record)
    cfgs = []
    for member in members:
        cfg = dataclasses.replace(run_config(member["config"]), results_dir=str(folder), force=False)
        cfg = dataclasses.replace(cfg, data_dir=places["data_dir"], backbone_dir=places["backbone_dir"])
        if member["numerics"]["device"] == "cpu":
            cfg = dataclasses.replace(cfg, threads=member["numerics"]["threads"])
        cfgs.append(dataclasses.replace(cfg, tracking=TrackingConfig()))
        for parent in member["parents"]:
            _bring_parent(results, parent, folder)
    outcomes = run_pack(cfgs, How(micro_batch_size=record["numerics"]["micro_batch_size"]))
    for member, outcome in zip(members, outcomes, strict=True):
        if member["run_id"] != record["run_id"]:
            continue
        if outcome.status != "done":
            raise ValueError(f"it could not be made again: {outcome.message}")
        if outcome.run_id != record["run_id"]:
            raise ValueError(
                f"made again it is the run {outcome.run_id}: data, weights, result versions or the shipped backbone "
                f"are not those of the record; check out the commit {record['provenance']['git_commit']}, or give "
                "--data-dir and --backbone-dir"
            )
        return read_record(record_path(folder, record["experiment"], record["run_id"]))
    raise ValueError(f"{record['run_id']} is not in its own pack: the record was changed by hand")


def _members(results: Path, record: Record) -> list[Record]:
    """The records of the pack, in order; the run alone where they are not all there (another numerics class)."""
    ids = record["numerics"]["members"] or [record["run_id"]]
    try:
        return [record if i == record["run_id"] else read_record(find(results, i)) for i in ids]
    except (ValueError, RecordError):
        return [record]


def _bring_parent(results: Path, run_id: str, folder: Path) -> None:
    """Copy the parent's record and tensors; without them it is trained again."""
    path = find(results, run_id)
    experiment = path.parent.relative_to(results / RECORDS).as_posix()
    tensors = results / TRAINED / experiment / f"{run_id}.safetensors"
    if parents.is_whole(tensors):
        for source in (path, tensors):
            target = folder / source.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def compare(record: Record, again: Record, results: Path, folder: Path) -> Verdict:
    """What differs between a record and its repetition."""
    before, now = typing.cast(dict[str, Any], record), typing.cast(dict[str, Any], again)
    differs = tuple(name for name in _SAME_CLASS if before["numerics"][name] != now["numerics"][name])
    largest = {
        "train_loss": _largest(_losses(record), _losses(again)),
        "score": _largest(_scores(record), _scores(again)),
    }
    if differs:
        wrong = [name for name in largest if not largest[name] <= before["tolerance"][name]]
        return Verdict(differs, tuple(wrong), largest)
    wrong = [name for name in ("scores", "history", "flags", "params") if before[name] != now[name]]
    if record["trained_sha256"] not in (None, again["trained_sha256"]):
        wrong.append("trained tensors")
    kept = predictions_path(results, record["experiment"], record["run_id"])
    made = predictions_path(folder, record["experiment"], record["run_id"])
    if kept.exists() and kept.read_bytes() != made.read_bytes():
        wrong.append("predictions")
    return Verdict(differs, tuple(wrong), largest)


def _losses(record: Record) -> list[float | None]:
    return [point["train_loss"] for point in record["history"]]


def _scores(record: Record) -> list[float | None]:
    return [score["score"] for score in record["scores"] if score["checkpoint"] == "last"]


def _largest(before: Sequence[float | None], now: Sequence[float | None]) -> float:
    """The largest difference; infinite where one is a number and the other is none."""
    if len(before) != len(now):
        return float("inf")
    pairs = zip(before, now, strict=True)
    return max((_distance(a, b) for a, b in pairs), default=0.0)


def _distance(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return abs(a - b)


def text(verdict: Verdict, record: Record) -> str:
    """The verdict in one or two sentences."""
    sizes = f"largest difference: train loss {verdict.largest['train_loss']:.2g}, score {verdict.largest['score']:.2g}"
    if not verdict.differs:
        if verdict.wrong:
            return f"  NOT the same in {', '.join(verdict.wrong)}, though the numerics class is the same; {sizes}"
        return "  the same, bit by bit"
    allowed = record["tolerance"]
    bounds = f"allowed {allowed['train_loss']:g} and {allowed['score']:g}"
    where = f"another numerics class ({', '.join(verdict.differs)}); {sizes}; {bounds}"
    return f"  NOT within tolerance: {where}" if verdict.wrong else f"  within tolerance: {where}"
