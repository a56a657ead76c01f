"""`peft-bench merge FOLDER`: take over the records that another machine has made, and say which cells they change.

Checked of each: the schema, that its id is the hash of its own configuration, data, versions and parents, that its
predictions are whole, and the hash of its trained tensors where these came with it. No result here is overwritten: a
run that both have is a repetition where its scores lie within the record's tolerance, else a conflict.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..backbones.hashes import file_sha256
from ..config.recorded import run_config
from ..records.files import write_files
from ..records.places import RECORDS, TRAINED
from ..records.schema import Record, RecordError
from ..records.states import FAILED, Problem, list_states
from ..records.store import iter_records, predictions_path, read_predictions, read_record, record_path
from ..runs.identity import identity, run_id
from .main import make_pages, read_inputs
from .page import Inputs, Page
from .reference import DIRECTORY
from .render import HOLE
from .rows import frame_of

NEW, REPEATED, CONFLICT, REFUSED, LEFT = "new", "repeated", "in conflict", "refused", "left out"
_CELL = ("settings", "row", "series", "x", "column", "task", "split", "metric")  # what names a cell, of any page
_VALUE = ("ours", "score", "mean", "difference")  # what it says; the first one that a page has


@dataclass(frozen=True)
class Finding:
    """What becomes of one record of the other machine, and why."""

    record: Record | None
    state: str
    why: str


def main(argv: Sequence[str]) -> int:
    """`peft-bench merge`. 1 where a record was refused or is in conflict, 2 for bad input, else 0."""
    parser = argparse.ArgumentParser(
        prog="peft-bench merge",
        description="Take over the records of another machine: its results folder, or a copy that holds records/. "
        "Names what is refused, repeated or in conflict, and the cells that change. Overwrites no result.",
    )
    parser.add_argument("folder", type=Path, help="the other machine's results folder")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that takes them (results)")
    parser.add_argument("--reference", type=Path, default=DIRECTORY, help="the papers' numbers (results/reference)")
    parser.add_argument("--dry-run", action="store_true", help="say what would become of them, write nothing")
    options = parser.parse_args(argv)
    if problem := _unusable(options.folder, options.results):
        print(f"peft-bench merge: {problem}", file=sys.stderr)
        return 2
    try:
        before, _ = read_inputs(options.results, options.reference)
        findings = list(judge(options.folder, options.results))
        taken = [finding.record for finding in findings if finding.state == NEW and finding.record is not None]
        if not options.dry_run:
            for record in taken:
                take(record, options.folder, options.results)
        _print(findings, changes(before, _with(before, taken)), options.dry_run)
    except (OSError, ValueError) as error:  # a full disk, an unwritable folder, missing reference files
        print(f"peft-bench merge: {error}; what was taken over is whole, the same command goes on", file=sys.stderr)
        return 2
    return 1 if any(finding.state in (REFUSED, CONFLICT) for finding in findings) else 0


def _unusable(folder: Path, results: Path) -> str | None:
    if not (folder / RECORDS).is_dir():
        return f"no folder {folder / RECORDS}: expected the results folder of another machine, which holds {RECORDS}/"
    if results.exists() and folder.resolve() == results.resolve():
        return f"{folder} is the folder that takes the records itself: expected another one; see --results"
    return None


def judge(folder: Path, results: Path) -> Iterator[Finding]:
    """What becomes of each record under `folder`, without touching anything."""
    known = {run for root in (folder, results) for states in list_states(root).values() for run in states.done}
    for found in iter_records(folder):
        if isinstance(found, Problem):
            yield Finding(None, REFUSED, str(found))
            continue
        try:
            check_whole(found, folder)
        except RecordError as error:
            yield Finding(found, REFUSED, f"{_named(found)}: {error}")
            continue
        yield _beside_ours(found, results, known)


def check_whole(record: Record, folder: Path) -> None:
    """Raises RecordError where a record is not what its id says, or a file that belongs to it is not."""
    if record["status"] == "failed":
        return
    parts: dict[str, str] = {name: part for name, part in record["identity"].items() if name in ("weights", "files")}
    try:
        own = identity(run_config(record["config"]), record["identity"]["data"], record["parents"], parts)
        own |= {"versions": record["identity"]["versions"]}
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"has a configuration that this version cannot read ({error})") from error
    if run_id(own) != record["run_id"]:
        raise RecordError(
            f"has the id {record['run_id']}, its configuration, data and versions give {run_id(own)}: it was edited, "
            "or made by code that is not this suite's"
        )
    try:
        predictions = read_predictions(folder, record["experiment"], record["run_id"])
    except (OSError, ValueError, EOFError) as error:
        raise RecordError(f"has no predictions that can be read ({type(error).__name__}): copy them, too") from error
    for split, columns in predictions.items():
        if len({len(values) for values in columns.values()}) > 1:
            raise RecordError(f"has predictions on {split} with columns of different lengths")
    trained = _trained(folder, record)
    if trained.is_file() and record["trained_sha256"] not in (None, file_sha256(trained)):
        raise RecordError(f"has trained tensors of another hash than it says ({trained.name}): copy them again")


def _beside_ours(record: Record, results: Path, known: Collection[str]) -> Finding:
    """A sound record, by what is here of the same run. known: the finished runs of both machines."""
    path = record_path(results, record["experiment"], record["run_id"])
    if record["cause"]:
        there = path.exists() or any(path.parent.glob(f"{record['run_id']}.*{FAILED}"))
        why = "a failure of a run that is here" if there else f"failed there ({record['cause']['kind']})"
        return Finding(record, LEFT if there else NEW, f"{_named(record)}: {why}")
    if not path.exists():
        lost = ", ".join(parent for parent in record["parents"] if parent not in known)
        why = f": starts from {lost}, whose record is on neither machine" if lost else ""
        return Finding(record, NEW, f"{_named(record)}{why}")
    apart = _largest_difference(read_record(path), record)
    if apart is None:
        return Finding(record, CONFLICT, f"{_named(record)}: not the same splits and metrics have scores; ours stays")
    allowed = record["tolerance"]["score"]
    if apart > allowed:
        why = f"scores are up to {apart:.4g} apart, of {allowed:g} allowed; ours stays"
        return Finding(record, CONFLICT, f"{_named(record)}: {why}")
    return Finding(record, REPEATED, f"{_named(record)}: scores are up to {apart:.4g} apart")


def _largest_difference(ours: Record, theirs: Record) -> float | None:
    """Of two records of one run, over all scores; None where they have not the same ones."""
    scores, others = (
        {(s["split"], s["checkpoint"], s["metric"]): s["score"] for s in record["scores"]} for record in (ours, theirs)
    )
    apart = [0.0]
    if scores.keys() != others.keys():
        return None
    for key, score in scores.items():
        other = others[key]
        if score is not None and other is not None:
            apart.append(abs(score - other))
        elif score is not other:
            return None
    return max(apart)


def take(record: Record, folder: Path, results: Path) -> None:
    """Copy a record with what belongs to it, the record last: a run that has one has all of it."""
    experiment, run = record["experiment"], record["run_id"]
    kind = record["cause"]["kind"] if record["cause"] else None
    source, target = (record_path(root, experiment, run, kind) for root in (folder, results))
    contents = {target: source.read_bytes()}
    if kind is None:
        tensors, place = _trained(folder, record), _trained(results, record)
        if tensors.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            scratch = place.with_name(f".{place.name}.tmp")
            shutil.copyfile(tensors, scratch)
            scratch.replace(place)
        predictions = predictions_path(folder, experiment, run).read_bytes()
        contents = {predictions_path(results, experiment, run): predictions} | contents
    write_files(contents)
    for earlier in target.parent.glob(f"{run}.*{FAILED}"):
        if earlier != target:
            earlier.unlink(missing_ok=True)


def _trained(root: Path, record: Record) -> Path:
    return root / TRAINED / record["experiment"] / f"{record['run_id']}.safetensors"


def _with(inputs: Inputs, taken: Sequence[Record]) -> Inputs:
    """The inputs of the report with these records, which take the places of failures."""
    if not taken:
        return inputs
    frame, more = inputs.frame, frame_of(taken)
    return replace(inputs, frame=pd.concat([frame[~frame["run_id"].isin(more["run_id"])], more], ignore_index=True))


def changes(before: Inputs, after: Inputs) -> list[str]:
    """A line for each cell, of any page, that other runs make now: what it said, and what it says."""
    if after is before:
        return []
    old = {page.name: page for page in make_pages(before)}
    lines = []
    for page in make_pages(after):
        was = _cells(old[page.name]) if page.name in old else {}
        for key, (runs, value) in _cells(page).items():
            runs_before, value_before = was.get(key, ("", HOLE))
            if runs != runs_before:
                lines.append(f"{page.name}: {', '.join(part for part in key if part)}: {value_before} -> {value}")
    return lines


def _cells(page: Page) -> dict[tuple[str, ...], tuple[str, str]]:
    """What names a cell -> the runs behind it, and what it says."""
    names = [name for name in _CELL if name in page.cells]
    value = next((name for name in _VALUE if name in page.cells), None)
    if value is None or "run_ids" not in page.cells:
        return {}
    return {
        tuple(_text(cell[name]) for name in names): (str(cell["run_ids"]), _text(cell[value]) or HOLE)
        for cell in page.cells.to_dict("records")
    }


def _text(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _named(record: Record) -> str:
    return f"{record['experiment']} {record['task']} seed {record['seed']} [{record['run_id']}]"


def _print(findings: Sequence[Finding], changed: Sequence[str], dry_run: bool) -> None:
    for state in (REFUSED, CONFLICT, REPEATED, LEFT, NEW):
        of_state = [finding for finding in findings if finding.state == state]
        if of_state:
            print(f"{state}: {len(of_state)}")
            print("\n".join(f"  {finding.why}" for finding in of_state))
    if changed:
        print(f"cells that change: {len(changed)}")
        print("\n".join(f"  {line}" for line in changed))
    taken = sum(finding.state == NEW for finding in findings)
    print(f"{taken} records would be taken over" if dry_run else f"{taken} records taken over; see peft-bench report")
