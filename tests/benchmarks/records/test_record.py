"""Records: written whole or not at all, read with a cause for every file that cannot be, listed from names."""

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from peft_bench.records.made import made_record
from peft_bench.records.schema import Record, RecordError
from peft_bench.records.states import Problem, list_states
from peft_bench.records.store import (
    RecordWriteError,
    iter_records,
    predictions_path,
    read_record,
    record_path,
    set_aside,
    write_record,
)
from peft_bench.report.rows import COLUMNS, frame_of, results_frame
from peft_bench.runs import record as recording
from peft_bench.runs.verify import find

EXPERIMENT = "houlsby2019/table1_adapters_64"


def read_records(folder: Path) -> tuple[list[Record], list[Problem]]:
    found = list(iter_records(folder))
    return [r for r in found if not isinstance(r, Problem)], [r for r in found if isinstance(r, Problem)]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_record_and_its_predictions_come_back_as_written(tmp_path: Path) -> None:
    record = made_record(EXPERIMENT, "mrpc", 0, 0.8)
    predictions = {"test": {"predictions": np.array([0, 1, 1]), "labels": [0, 1, 0]}}
    path = write_record(tmp_path, record, predictions)
    assert path == tmp_path / "records" / EXPERIMENT / f"{record['run_id']}.json"
    assert read_record(path) == record
    packed = predictions_path(tmp_path, EXPERIMENT, record["run_id"])
    assert json.loads(gzip.decompress(packed.read_bytes())) == {"test": {"predictions": [0, 1, 1], "labels": [0, 1, 0]}}
    assert len(files(tmp_path)) == 2


def test_numbers_that_are_not_finite_are_null_in_the_file_and_none_or_nan_when_read(tmp_path: Path) -> None:
    path = write_record(tmp_path, made_record(EXPERIMENT, "stsb", 0, float("nan"), validation=0.5))
    assert "NaN" not in path.read_text()
    record = read_record(path)
    assert {score["score"] for score in record["scores"]} == {None, 0.5}
    scores = frame_of([record])["score"]
    assert (scores.isna().sum(), {*scores.dropna()}) == (4, {0.5})


@pytest.mark.parametrize("already_there", [False, True])
@pytest.mark.parametrize("fails_at", [1, 2, 3])  # fsync of the predictions, of the record, of the folder
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, already_there: bool
) -> None:
    record = made_record(EXPERIMENT, "rte", 0, 0.7)
    if already_there:
        write_record(tmp_path, record, {"test": [0]})
    before = files(tmp_path)
    calls, fsync = [], os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordWriteError, match=f"{record['run_id']}.*No space left on device.*make room"):
        write_record(tmp_path, record, {"test": [1]})
    assert files(tmp_path) == before
    records, problems = read_records(tmp_path)
    assert (len(records), problems) == (int(already_there), [])


def test_a_folder_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file in the way")
    with pytest.raises(RecordWriteError, match="cannot write the record"):
        write_record(tmp_path, made_record(EXPERIMENT, "rte", 0, 0.7))


def test_a_finished_run_replaces_its_failure_and_never_the_reverse(tmp_path: Path) -> None:
    failed = made_record(EXPERIMENT, "rte", 0, None, failed="diverged")
    path = write_record(tmp_path, failed)
    assert path.name.endswith(".diverged.failed.json")
    assert list_states(tmp_path)[EXPERIMENT].failed == {failed["run_id"]: "diverged"}
    done = made_record(EXPERIMENT, "rte", 0, 0.7)
    assert done["run_id"] == failed["run_id"]
    write_record(tmp_path, done)
    states = list_states(tmp_path)[EXPERIMENT]
    assert (states.done, states.failed) == ({done["run_id"]}, {})
    with pytest.raises(RecordError, match="already done"):
        write_record(tmp_path, failed)
    assert [record["status"] for record in read_records(tmp_path)[0]] == ["done"]


def changed(**keys: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | keys)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda text: text[: len(text) // 2], "not whole JSON"),
        (lambda text: "", "not whole JSON"),
        (lambda text: text.replace('"schema": 2', '"schema": 99'), "schema 99 is unknown, this version reads schema 2"),
        (lambda text: "[]", "a record is a JSON object"),
        (lambda text: text.replace('"scores":', '"score":'), "lacks scores"),
        (lambda text: text.replace('"status": "done"', '"status": "running"'), "status 'running'"),
        (lambda text: text.replace('"metric": "accuracy"', '"metrics": "accuracy"'), "a score lacks one of"),
        (changed(seed="zero"), "seed is 'zero': expected int"),
        (changed(task=None), "task is None: expected str"),
        (changed(scale=3), "scale is 3: expected str"),
        (changed(flags=[3]), r"flags is [3]: expected a list of texts"),
        (changed(departures={"x": 5}), "expected [given, expected] by key"),
        (changed(data={"rows": [1]}), "data.rows is [1]: expected dict"),
        (changed(config={"trainer": [1]}), "config.trainer is [1]: expected dict"),
        (changed(params={"method": "many"}), "params.method is 'many': expected int or float"),
        (lambda text: text.replace('"score": 0.7', '"score": 73.2'), "score 73.2 of accuracy on "),
        (lambda text: text.replace('"score": 0.7', '"score": "high"'), "score 'high' of accuracy on "),
        (lambda text: text.replace(EXPERIMENT, "houlsby2019/table1_full"), "it was moved or copied"),
    ],
)
def test_an_unreadable_record_is_named_with_its_cause_and_left_alone(tmp_path: Path, spoil, cause: str) -> None:
    write_record(tmp_path, made_record(EXPERIMENT, "rte", 1, 0.7))
    path = write_record(tmp_path, made_record(EXPERIMENT, "rte", 0, 0.7))
    spoiled = spoil(path.read_text())
    path.write_text(spoiled)
    records, problems = read_records(tmp_path)
    assert [record["seed"] for record in records] == [1]
    assert len(problems) == 1
    assert str(path) in str(problems[0])
    assert cause in str(problems[0])
    assert path.read_text() == spoiled
    frame, same = results_frame(tmp_path)
    assert set(frame["seed"]) == {1}
    assert same == problems


def test_a_folder_of_records_may_be_a_link(tmp_path: Path) -> None:
    """Moved to a larger disk; states, report and verify find what the run itself finds, and no loop catches them."""
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    record = made_record("lora/x", "rte", 0, 0.5)
    path = write_record(results, record)
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(results / "records")
    assert {name: states.done for name, states in list_states(results).items()} == {"lora/x": {record["run_id"]}}
    assert [found["run_id"] for found in iter_records(results) if not isinstance(found, Problem)] == [record["run_id"]]
    assert find(results, record["run_id"][:6]) == path


def test_only_a_repository_that_holds_the_code_gives_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive unpacked in another project has none, nor has an environment that the project ignores."""

    def git(*words: str) -> str:
        words = ("-c", "user.name=n", "-c", "user.email=n@example.org", *words)
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout

    file = tmp_path / "third_party" / "peft_bench" / "runs" / "record.py"
    for path in (file, tmp_path / "third_party" / "conf" / "config.yaml", tmp_path / "thesis.tex"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n")
    monkeypatch.setattr(recording, "__file__", str(file))
    found = recording._git.__wrapped__
    assert found() == (None, None)  # no repository at all
    git("init", "-q")
    git("add", "thesis.tex")
    git("commit", "-qm", "thesis")
    assert found() == (None, None)
    (tmp_path / ".gitignore").write_text("third_party\n")
    assert found() == (None, None)
    git("add", "-f", "third_party")
    git("commit", "-qm", "vendored")
    assert found() == (git("rev-parse", "HEAD").strip(), False)
    (tmp_path / "thesis.tex").write_text("two\n")
    assert found()[1] is False
    file.write_text("two\n")
    assert found()[1] is True


def test_setting_aside_keeps_every_file(tmp_path: Path) -> None:
    path = record_path(tmp_path, EXPERIMENT, "0123456789abcdef")
    path.parent.mkdir(parents=True)
    for content in ("first", "second"):
        path.write_text(content)
        set_aside(path)
    assert sorted(file.read_text() for file in path.parent.iterdir()) == ["first", "second"]
    states = list_states(tmp_path)[EXPERIMENT]
    assert (states.done, states.failed, states.unreadable) == (set(), {}, {"0123456789abcdef"})
    assert read_records(tmp_path) == ([], [])


def test_states_come_from_names_and_ignore_temporaries_and_predictions(tmp_path: Path) -> None:
    folder = tmp_path / "records" / EXPERIMENT
    folder.mkdir(parents=True)
    for name in (
        "a.json",
        "b.error.failed.json",
        "a.error.failed.json",
        ".c.json.12.tmp",
        "a.predictions.json.gz",
        "notes.txt",
    ):
        (folder / name).write_text("not JSON")
    states = list_states(tmp_path)
    assert list(states) == [EXPERIMENT]
    assert (states[EXPERIMENT].done, states[EXPERIMENT].failed) == ({"a"}, {"b": "error"})
    assert list_states(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"cause": {"kind": "diverged", "message": ""}}, "expected 'done' without"),
        ({"scores": []}, "without scores"),
        ({"schema": 3}, "schema 3"),
        ({"config": {"method": object()}}, "no place in a record"),
    ],
)
def test_a_record_against_the_schema_is_not_written(tmp_path: Path, change: dict, cause: str) -> None:
    with pytest.raises(RecordError, match=cause):
        write_record(tmp_path, made_record(EXPERIMENT, "rte", 0, 0.7) | change)  # type: ignore[arg-type]
    assert files(tmp_path) == []


def test_rows_are_flat_and_the_frame_holds_the_same(tmp_path: Path) -> None:
    records = [
        made_record(EXPERIMENT, "mnli", 0, 0.7, method={"bottleneck_dim": 4}, flags=("one_class_predictions",)),
        made_record(EXPERIMENT, "rte", 3, None, failed="out_of_memory"),
    ]
    rows = frame_of(records)
    assert list(rows.columns) == COLUMNS
    assert len(rows) == 8 + 1
    first, last = rows.iloc[0], rows.iloc[-1]
    assert (first.task, first.split, first.metric, first.score) == ("mnli", "validation_matched", "accuracy", 0.7)
    assert (first.bottleneck_dim, first.learning_rate) == (4, 1e-3)
    assert (first.method_params, first.backbone, first.published, first.train_rows) == (8448, "micro_bert", False, 2000)
    assert (last.status, last.cause, last.metric) == ("failed", "out_of_memory", None)
    assert pd.isna([first["rank"], last.score]).all()
    for record in records:
        write_record(tmp_path, record)
    frame, problems = results_frame(tmp_path)
    assert problems == []
    order = ["task", "split", "checkpoint"]
    ours, theirs = (each.sort_values(order, ignore_index=True) for each in (frame, rows))
    assert ours.equals(theirs)


def test_a_failed_record_may_lack_what_the_run_never_knew(tmp_path: Path) -> None:
    failed = made_record(EXPERIMENT, "rte", 0, None, failed="bad_input")
    for name in ("data", "params", "numerics", "cost", "backbone", "selection", "history", "scores"):
        del failed[name]  # type: ignore[misc]
    write_record(tmp_path, failed)
    frame, problems = results_frame(tmp_path)
    assert problems == []
    assert frame["cause"].tolist() == ["bad_input"]


def test_records_and_report_import_no_torch() -> None:
    code = (
        "import sys, peft_bench.records.store, peft_bench.report.main, peft_bench.records.made\n"
        "print([name for name in ('torch', 'transformers', 'hydra') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
