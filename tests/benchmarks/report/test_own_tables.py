"""Our own tables: holes, failures, flags, few seeds and picks are all visible."""

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from peft_bench.records.made import made_record
from peft_bench.records.schema import Record
from peft_bench.records.store import write_record
from peft_bench.report.main import main
from peft_bench.report.page import Inputs, Page
from peft_bench.report.pages import ours
from peft_bench.report.pages.calibration import calibration
from peft_bench.report.reference import paper_tables, read_reference
from peft_bench.report.rows import frame_of
from peft_bench.report.rules.comparability import swept
from peft_bench.report.table import Table, read_tables, table_cells
from peft_bench.sweeps import status

MICRO_TABLES = [table for table in read_tables("micro") if not table.folder]
HOULSBY, LORA = MICRO_TABLES
REFERENCE = read_reference()
FULL, SWEEP, ADAPTERS = (
    "houlsby2019/table1_full",
    "houlsby2019/table1_adapters_8_256",
    "houlsby2019/table1_adapters_64",
)
TASKS = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]


def micro_table(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    return table_cells(frame, table, "paper", swept(REFERENCE))


def micro_page(cells: pd.DataFrame, table: Table) -> str:
    return ours.table_page(cells, table, table.title, swept(REFERENCE))


def small_pages(frame: pd.DataFrame) -> list[Page]:
    return [page for page in ours.pages(Inputs(frame, REFERENCE)) if page.name == "small"]


def cells_of(records: Sequence[Record]) -> pd.DataFrame:
    return micro_table(frame_of(list(records)), HOULSBY).set_index(["row", "column"])


def line_of(records: Sequence[Record], row: str) -> dict[str, str]:
    text = micro_page(micro_table(frame_of(list(records)), HOULSBY), HOULSBY)
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return dict(zip(lines[0], next(line for line in lines if line[0] == row), strict=True))


def seeds(task: str, scores: Sequence[float | None], experiment: str = FULL, **more: Any) -> list[Record]:
    return [made_record(experiment, task, seed, score, **more) for seed, score in enumerate(scores)]


def test_a_table_without_runs_is_all_holes() -> None:
    for table in MICRO_TABLES:
        cells = micro_table(frame_of([]), table)
        assert len(cells) == len(table.rows) * 10
        assert set(cells["state"]) == {"missing"}
        assert "No run yet: every cell is a hole." in micro_page(cells, table)


def test_an_average_is_printed_only_without_a_hole() -> None:
    whole = [record for task in TASKS for record in seeds(task, [0.6 if task == "mnli" else 0.8])]
    line = line_of(whole, "full fine-tuning")
    assert (line["CoLA"], line["MNLI-m"], line["MNLI-mm"]) == ("80.0", "60.0", "60.0")
    assert line["Avg"] == "77.5"  # eight tasks: MNLI counts once
    line = line_of([record for record in whole if record["task"] != "rte"], "full fine-tuning")
    assert (line["RTE"], line["Avg"]) == ("—", "—")


def test_an_average_needs_equal_seeds_and_no_failure() -> None:
    whole = [record for task in TASKS for record in seeds(task, [0.8, 0.8])]
    assert line_of(whole, "full fine-tuning")["Avg"] == "80.0"
    assert line_of([*whole, made_record(FULL, "rte", 2, 0.8)], "full fine-tuning")["Avg"] == "—"
    failed = made_record(FULL, "rte", 2, None, failed="diverged")
    assert line_of([*whole, failed], "full fine-tuning")["Avg"] == "—"


def test_changed_settings_are_named_under_the_table() -> None:
    def page(*records: Record) -> str:
        return micro_page(micro_table(frame_of(list(records)), HOULSBY), HOULSBY)

    cut: dict[str, Any] = {"departures": {"trainer.max_steps": [100, 400]}}
    sizes: dict[str, Any] = {"departures": {"method.bottleneck_dim": [1, 4]}}
    assert "own settings" not in page(*seeds("rte", [0.8]), *seeds("rte", [0.8], SWEEP, **sizes))
    text = page(*seeds("rte", [0.8], **cut), *seeds("rte", [0.8], SWEEP))
    assert "Not the experiments' own settings: trainer.max_steps 100 (not 400) (full fine-tuning)." in text
    both = cut["departures"] | sizes["departures"]
    text = page(*seeds("rte", [0.8], SWEEP, departures=both))
    assert "own settings: trainer.max_steps 100 (not 400) (adapters (8-256))" in text
    assert "bottleneck_dim" not in text.partition("own settings")[2].partition("\n")[0]


def test_runs_in_no_table_cannot_be_in_conflict(tmp_path: Path) -> None:
    for rank in (1, 2):
        write_record(tmp_path, made_record("custom", "rte", 0, 0.7, method={"rank": rank}))
    assert main(["--results", str(tmp_path)]) == 0


def test_calibration_names_what_a_task_misses() -> None:
    head, start = "controls/bert_head_only", "controls/bert_scratch"

    def misses(full: float, head_only: float | None, random: float | None) -> str:
        records = seeds("rte", [full])
        records += [] if head_only is None else seeds("rte", [head_only], head)
        records += [made_record(start, "rte", 0, random)]
        return str(calibration(micro_table(frame_of(records), HOULSBY)).loc["RTE", "misses"])

    assert misses(0.90, 0.75, 0.85) == ""
    assert misses(0.90, 0.76, 0.86) == "head too near, random start too near"
    assert misses(0.94, 0.50, 0.50) == "full too high"
    assert misses(0.84, 0.50, 0.50) == "full too low"
    assert misses(0.90, 0.50, None) == ""  # undefined, not missing: one value throughout
    assert misses(0.90, None, 0.50) == "a run is missing"
    records = [*seeds("rte", [0.9]), *seeds("rte", [0.6], head), *seeds("rte", [0.5], start)]
    text = micro_page(micro_table(frame_of(records), HOULSBY), HOULSBY)
    assert "Met in 1 of 9 columns." in text
    assert "Calibration" not in micro_page(micro_table(frame_of([]), HOULSBY), HOULSBY)


def test_interval_and_number_of_seeds() -> None:
    records = seeds("rte", [0.70, 0.72, 0.74]) + seeds("cola", [0.5, 0.6])
    line = line_of(records, "full fine-tuning")
    assert line["RTE"] == "72.0 ±5.0"  # t(2) 4.303 x 2.0 / sqrt(3)
    assert line["CoLA"].endswith("(n=2)")
    page = micro_page(micro_table(frame_of(records), HOULSBY), HOULSBY)
    assert "3 seeds per cell (n = 3) unless a cell says otherwise" in page
    one = micro_page(micro_table(frame_of(seeds("rte", [0.7])), HOULSBY), HOULSBY)
    assert "One seed per cell (n = 1): no interval." in one
    assert "±" not in one


def test_failed_runs_are_shown_and_never_averaged_away() -> None:
    failed = made_record(FULL, "rte", 2, None, failed="diverged", flags=("nan_loss",))
    assert line_of([failed], "full fine-tuning")["RTE"] == "failed (diverged)"
    some = [*seeds("rte", [0.7, 0.8]), failed, *seeds("cola", [0.7, 0.8, 0.9])]
    assert line_of(some, "full fine-tuning")["RTE"].endswith("(n=2, 1 failed)")
    assert cells_of([failed]).loc[("full fine-tuning", "Avg"), "state"] == "missing"


def test_flags_are_marked_with_a_legend_except_those_of_the_majority() -> None:
    records = [
        *seeds("rte", [0.5], flags=("one_class_predictions", "parameters_did_not_move")),
        *seeds("cola", [0.5], flags=("something_new",)),
        *seeds("rte", [0.5], experiment="controls/majority", flags=("one_class_predictions",)),
    ]
    line = line_of(records, "full fine-tuning")
    assert (line["RTE"], line["CoLA"]) == ("50.0ᶜᵐ", "50.0ˣ")
    assert line_of(records, "majority class")["RTE"] == "50.0"
    page = micro_page(micro_table(frame_of(records), HOULSBY), HOULSBY)
    for words in ("ᶜ a run predicts one class", "ᵐ a run's trained tensors did not move", "ˣ something new"):
        assert words in page
    assert "ⁿ" not in page


def test_a_nan_score_is_shown_as_such() -> None:
    line = line_of(seeds("stsb", [0.8, float("nan"), 0.8]), "full fine-tuning")
    assert line["STS-B"] == "NaN"


def test_a_conflict_gives_no_number() -> None:
    twice = seeds("rte", [0.8]) + seeds("rte", [0.9], experiment=LORA.rows[-1].experiment)
    twice += seeds("rte", [0.7], experiment=LORA.rows[-1].experiment, trainer={"learning_rate": 1.0})
    cells = micro_table(frame_of(twice), LORA).set_index(["row", "column"])
    assert cells.loc[("LoRA", "RTE"), "state"] == "conflict"
    assert cells["score"].isna()[("LoRA", "RTE")]
    assert "two runs for seed 0" in str(cells.loc[("LoRA", "RTE"), "cause"])
    assert "conflict" in micro_page(cells.reset_index(), LORA)


def test_the_sweep_row_shows_its_picks_and_an_incomplete_sweep() -> None:
    def size(task: str, dim: int, validation: float, score: float) -> Record:
        record = made_record(SWEEP, task, 0, score, validation=validation, method={"bottleneck_dim": dim})
        record["params"]["method"] = 100 * dim
        return record

    records = [size("rte", 1, 0.9, 0.70), size("rte", 4, 0.8, 0.75), size("rte", 16, 0.7, 0.80)]
    records += [size("mnli", 1, 0.7, 0.50), size("mnli", 16, 0.9, 0.60)]
    line = line_of(records, "adapters (8-256)")
    assert (line["RTE"], line["MNLI-mm"]) == ("70.0", "60.0 (2 of 3 runs)")
    assert line["trained"] == "100–1,600"
    page = micro_page(micro_table(frame_of(records), HOULSBY), HOULSBY)
    assert "adapters (8-256): picked on validation, MNLI 16, RTE 1." in page


def test_metrics_follow_each_papers_columns() -> None:
    record = made_record("controls/majority", "mrpc", 0, 0.5)
    for score in record["scores"]:
        score["score"] = {"accuracy": 0.6, "f1": 0.8}[score["metric"]]
    scores = [micro_table(frame_of([record]), table).dropna(subset="score")["score"].tolist() for table in MICRO_TABLES]
    assert scores == [[0.8], [0.6]]


def test_the_small_table_holds_whatever_is_there() -> None:
    more: dict[str, Any] = {"scale": "small", "backbone": "minilm_l6", "rows": {"train": 3668, "validation": 408}}
    lora, head = "lora/table2_roberta_base_lora", "controls/roberta_head_only"
    records = [made_record(lora, "mrpc", 0, 0.85, **more), made_record(lora, "cola", 0, 0.4, **more)]
    records += [made_record(head, "mrpc", 0, 0.7, **more)]
    page = small_pages(frame_of(records))[0].text
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert lines[0][2:] == ["CoLA", "MRPC acc", "MRPC F1"]
    assert lines[2][2:] == ["—", "70.0", "70.0"]
    assert lines[3] == [f"{lora} (minilm_l6)", "8,448", "40.0", "85.0", "85.0"]
    assert small_pages(frame_of([])) == []


def test_a_run_that_no_command_makes_any_more_is_marked() -> None:
    """Tokenizer and configuration count beside weights; a shipped backbone has an identity of its own."""
    identity = made_record("small/minilm_lora", "mrpc", 0, 0.5)["identity"]
    for digests, stale in (({}, False), ({"weights": "0"}, True), ({"weights": "0", "files": "0"}, False)):
        more: dict[str, Any] = {"scale": "small", "rows": {"train": 9, "validation": 9}, "identity": identity | digests}
        (page,) = small_pages(frame_of([made_record("small/minilm_lora", "mrpc", 0, 0.5, **more)]))
        assert ("50.0ˢ" in page.text) == ("- ˢ stale: a run from before" in page.text) == stale


def small_run(task: str, metrics: Sequence[str], validation: str = "validation", experiment: str = "custom") -> Record:
    """A run at scale=small on a task that conf/table/small.yaml has no column for."""
    score = {"checkpoint": "best", "epoch": 2.0, "score": 0.7, "n": 9}
    scores = [{**score, "split": split, "metric": name} for split in (validation, "other") for name in metrics]
    selection = {"checkpoint": "best", "split": validation, "metric": metrics[0]}
    more: dict[str, Any] = {"scale": "small", "rows": {"train": 9}, "scores": scores, "selection": selection}
    run_id = hashlib.sha256(task.encode()).hexdigest()[:16]
    return {**made_record(experiment, "rte", 0, 0.5, **more), "task": task, "run_id": run_id}


def test_the_small_table_has_columns_for_tasks_with_labels_that_it_does_not_name() -> None:
    records = [small_run("mine", ["macro_f1", "accuracy"], "dev"), small_run("boolq", ["accuracy"])]
    records += [made_record("custom", "mrpc", 0, 0.6, scale="small", rows={"train": 9, "validation": 9})]
    (page,) = small_pages(frame_of(records))
    header, _, row = [line for line in page.text.splitlines() if line.startswith("|")]
    names = [part.strip() for part in header.split("|")[3:-1]]
    assert names == ["MRPC acc", "MRPC F1", "boolq accuracy", "mine macro_f1", "mine accuracy"]
    assert [part.strip() for part in row.split("|")[3:-1]] == ["60.0", "60.0", "70.0", "70.0", "70.0"]


def test_runs_without_a_column_are_listed_as_in_no_table(tmp_path: Path) -> None:
    """Also of an experiment that a table shows on other tasks."""
    write_record(tmp_path, small_run("mine", ["bleu"]))
    write_record(tmp_path, small_run("boolq", ["accuracy"]))
    write_record(tmp_path, small_run("copy", ["accuracy"], experiment="small/t5_prompt"))
    assert main(["--results", str(tmp_path), "--output", str(tmp_path / "t")]) == 0
    index = (tmp_path / "t" / "README.md").read_text(encoding="utf-8")
    assert "Runs in no table: custom (small): 1, small/t5_prompt (small): 1." in index


def test_report_on_an_empty_folder_writes_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path)]) == 0
    written = sorted(path.name for path in (tmp_path / "tables").iterdir())
    written_in_texts = (
        "micro_e2e",
        "micro_xsum",
        "micro_domain_shift",
        "micro_transfer_qqp_mrpc",
        "micro_transfer_mrpc_qqp",
    )
    assert written == sorted(
        ["README.md"]
        + [
            f"{name}.{kind}"
            for name in (*(table.name for table in paper_tables()), *written_in_texts)
            for kind in ("md", "csv")
        ]
        + [f"{table.name}.{kind}" for table in MICRO_TABLES for kind in ("md", "csv")]
    )
    assert str(tmp_path / "tables" / "README.md") in capsys.readouterr().out
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    assert "expected the results folder" in capsys.readouterr().err


def test_report_prints_our_tables_and_names_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path, made_record(FULL, "rte", 0, 0.7))
    write_record(tmp_path, made_record("custom", "rte", 0, 0.7))
    output = tmp_path / "elsewhere"
    assert main(["--results", str(tmp_path), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "| full fine-tuning" in out
    assert "LoRA" not in out  # nothing was run for that table
    assert "custom (micro): 1" in (output / "README.md").read_text()
    frame = pd.read_csv(output / f"{HOULSBY.name}.csv")
    assert frame.loc[frame["state"] == "done", ["experiment", "task", "score", "seeds"]].values.tolist() == [
        [FULL, "rte", 0.7, 1]
    ]
    bad = tmp_path / "records" / FULL / "0000000000000000.json"
    bad.write_text("{")
    write_record(tmp_path, made_record(LORA.rows[-1].experiment, "rte", 0, 0.7))
    write_record(tmp_path, made_record(LORA.rows[-1].experiment, "rte", 0, 0.7, trainer={"epochs": 1}))
    assert main(["--results", str(tmp_path), "--output", str(output)]) == 1
    errors = capsys.readouterr().err
    assert f"{bad}: is not whole JSON" in errors
    assert "two runs for seed 0" in errors
    assert "is not whole JSON" in (output / "README.md").read_text()
    assert bad.exists()


def test_a_full_disk_leaves_the_tables_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path, made_record(FULL, "rte", 0, 0.7))
    assert main(["--results", str(tmp_path)]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    write_record(tmp_path, made_record(FULL, "cola", 0, 0.7))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "houlsby2019_table1.md" in error
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == before


def test_the_same_records_give_the_same_files(tmp_path: Path) -> None:
    for seed in range(3):
        write_record(tmp_path, made_record(FULL, "rte", seed, 0.7 + 0.01 * seed))
    for name in ("one", "two"):
        main(["--results", str(tmp_path), "--output", str(tmp_path / name)])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_status_by_task_names_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        write_record(tmp_path, made_record(FULL, "rte", seed, 0.7, flags=("one_class_predictions",) * seed))
    write_record(tmp_path, made_record(FULL, "cola", 0, None, failed="diverged"))
    assert status.main(["--results", str(tmp_path), "--tasks"]) == 0
    out = capsys.readouterr().out
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        [FULL, "micro", "cola", "", "1", ""],
        [FULL, "micro", "rte", "2", "", "one_class_predictions (1)"],
    ]
    (tmp_path / "records" / FULL / "0000000000000000.json").write_text("not a record")
    assert status.main(["--results", str(tmp_path), "--tasks"]) == 1
