"""The records of another machine: checked, taken over, and nothing of ours lost."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peft_bench.backbones.hashes import file_sha256
from peft_bench.config.compose import compose_run
from peft_bench.config.recorded import as_recorded
from peft_bench.records.made import made_record
from peft_bench.records.schema import Record
from peft_bench.records.store import predictions_path, read_record, record_path, write_record
from peft_bench.report.other_machine import CONFLICT, LEFT, NEW, REFUSED, REPEATED, Finding, judge, main, take
from peft_bench.report.reference import read_reference
from peft_bench.runs.identity import identity, run_id

LORA = "lora/table2_roberta_base_lora"
COMMITTED = Path(__file__).parents[3] / "results" / "records" / LORA
PREDICTIONS = {"validation": {"prediction": [0, 1], "label": [0, 1]}}


def copied(folder: Path, task: str) -> list[Path]:
    """The committed micro runs of a task, as another machine's; their records."""
    target = folder / "records" / LORA
    target.mkdir(parents=True)
    for path in sorted(COMMITTED.glob("*.json")):
        if path.name.count(".") == 1 and json.loads(path.read_text())["task"] == task:
            for file in (path, path.with_suffix(".predictions.json.gz")):
                shutil.copy(file, target)
    return sorted(path for path in target.glob("*.json") if path.name.count(".") == 1)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    copied(tmp_path / "theirs", "cola")
    return tmp_path / "theirs"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return tmp_path / "ours"


def records(folder: Path) -> Iterator[Path]:
    return (path for path in sorted((folder / "records").rglob("*.json")) if path.name.count(".") == 1)


def states(theirs: Path, ours: Path) -> dict[str, int]:
    return dict(Counter(finding.state for finding in judge(theirs, ours)))


def taken(theirs: Path, ours: Path) -> list[Finding]:
    findings = list(judge(theirs, ours))
    for finding in findings:
        if finding.state == NEW and finding.record:
            take(finding.record, theirs, ours)
    return findings


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(read_record(path) | values))


def test_new_records_come_byte_by_byte_and_a_second_time_are_repetitions(theirs, ours):
    assert states(theirs, ours) == {NEW: 3}
    taken(theirs, ours)
    assert {path.name: path.read_bytes() for path in (ours / "records" / LORA).iterdir()} == {
        path.name: path.read_bytes() for path in (theirs / "records" / LORA).iterdir()
    }
    assert states(theirs, ours) == {REPEATED: 3}


def test_a_record_that_was_edited_is_refused(theirs, ours):
    first, second, _ = records(theirs)
    config = json.loads(first.read_text())["config"]
    changed(first, config=config | {"trainer": config["trainer"] | {"learning_rate": 1.0}})
    changed(second, schema=99)
    assert states(theirs, ours) == {REFUSED: 2, NEW: 1}
    why = [finding.why for finding in judge(theirs, ours) if finding.state == REFUSED]
    assert any("it was edited, or made by code that is not this suite's" in text for text in why)
    assert any("schema 99 is unknown" in text for text in why)


@pytest.mark.parametrize("spoil", ["remove", "cut"])
def test_a_record_without_its_predictions_is_refused(theirs, ours, spoil):
    path = predictions_path(theirs, LORA, next(records(theirs)).stem)
    path.unlink() if spoil == "remove" else path.write_bytes(path.read_bytes()[:-20])
    assert states(theirs, ours) == {REFUSED: 1, NEW: 2}


def test_trained_tensors_come_with_their_record_and_by_their_hash(theirs, ours):
    name = next(records(theirs)).stem
    tensors = theirs / "trained" / LORA / f"{name}.safetensors"
    tensors.parent.mkdir(parents=True)
    tensors.write_bytes(b"others")
    changed(record_path(theirs, LORA, name), trained_sha256="0" * 64)
    assert states(theirs, ours) == {REFUSED: 1, NEW: 2}
    changed(record_path(theirs, LORA, name), trained_sha256=file_sha256(tensors))
    taken(theirs, ours)
    assert (ours / "trained" / LORA / tensors.name).read_bytes() == b"others"


@pytest.mark.parametrize(("apart", "state"), [(0.01, REPEATED), (0.2, CONFLICT)])
def test_other_scores_of_a_run_that_is_here_never_replace_ours(theirs, ours, apart, state):
    taken(theirs, ours)
    path = next(records(theirs))
    scores = json.loads(path.read_text())["scores"]
    changed(path, scores=[score | {"score": score["score"] - apart} for score in scores])
    before = record_path(ours, LORA, path.stem).read_bytes()
    assert dict(Counter(finding.state for finding in taken(theirs, ours))) == {REPEATED: 2} | Counter([state]) + (
        Counter({REPEATED: 2}) if state == REPEATED else Counter()
    )
    assert record_path(ours, LORA, path.stem).read_bytes() == before


def test_a_finished_run_takes_the_place_of_our_failure_and_never_the_other_way(theirs, ours):
    path = next(records(theirs))
    record = read_record(path)
    failed: Any = record | {"status": "failed", "cause": {"kind": "diverged", "message": "x"}, "scores": []}
    write_record(ours, failed)
    taken(theirs, ours)
    assert [each.name for each in (ours / "records" / LORA).glob(f"{path.stem}*json")] == [path.name]
    elsewhere = ours.parent / "elsewhere"
    write_record(elsewhere, failed)
    assert states(elsewhere, ours) == {LEFT: 1}


def test_a_parent_on_neither_machine_is_named(tmp_path, ours):
    theirs = tmp_path / "children"
    copied(theirs, "rte")
    assert all("whose record is on neither machine" in finding.why for finding in judge(theirs, ours))
    copied(tmp_path / "parents", "mnli")
    taken(tmp_path / "parents", ours)
    assert not any("neither machine" in finding.why for finding in judge(theirs, ours))


def made_on_a_gpu(folder: Path, seed: int, score: float) -> None:
    """A made-up run of RoBERTa-base LoRA on all of CoLA at scale=paper."""
    cfg = compose_run([f"experiment={LORA}", "task=glue/cola", "scale=paper", f"seed={seed}"])
    own = identity(cfg, "0" * 64, [], {"weights": "1" * 64, "files": "2" * 64})
    reference = read_reference()
    rows = {split: int(n) for (task, split), n in reference.splits.items() if task == "cola" and split != "test"}
    record: Record = made_record(
        LORA, "cola", seed, score, scale="paper", backbone="roberta_base", published=True, source="glue", rows=rows
    )
    record |= {"run_id": run_id(own), "config": as_recorded(cfg), "parents": []}
    record["identity"] = {key: value for key, value in own.items() if key != "config"}
    record["params"]["backbone"] = int(reference.backbones["roberta_base"])
    write_record(folder, record, PREDICTIONS)


def test_records_at_scale_paper_fill_their_cell(theirs, ours, capsys):
    for seed, score in enumerate((0.61, 0.62, 0.63, 0.64, 0.65)):
        made_on_a_gpu(theirs, seed, score)
    assert main([str(theirs), "--results", str(ours), "--dry-run"]) == 0
    assert not ours.exists()
    assert main([str(theirs), "--results", str(ours)]) == 0
    dry, printed = capsys.readouterr().out.split("8 records would be taken over\n")
    assert printed == dry + "8 records taken over; see peft-bench report\n"
    assert "  lora_table2: paper, RoB_base (LoRA), CoLA, cola, validation, matthews_correlation: — -> 63\n" in printed
    assert "micro_lora_table2: paper, LoRA, CoLA, cola, test, matthews_correlation: — -> 0.6194\n" in printed
    next(records(theirs)).write_text("{")
    assert main([str(theirs), "--results", str(ours)]) == 1


@pytest.mark.parametrize("folder", ["nowhere", "ours"])
def test_a_folder_that_is_none_is_one_sentence(tmp_path, ours, capsys, folder):
    (ours / "records").mkdir(parents=True)
    assert main([str(tmp_path / folder), "--results", str(ours)]) == 2
    assert capsys.readouterr().err.startswith("peft-bench merge: ")
