"""The papers' tables: the printed numbers themselves, and a difference only where it is allowed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from peft_bench.config.compose import compose_run, task_choice
from peft_bench.config.pins import pins
from peft_bench.records.made import made_record
from peft_bench.records.schema import Record
from peft_bench.report.main import index, make_pages, write_pages
from peft_bench.report.page import Inputs
from peft_bench.report.pages import paper, parameters
from peft_bench.report.reference import Reference, paper_tables, read_reference
from peft_bench.report.rows import frame_of
from peft_bench.report.rules.comparability import reachable
from peft_bench.report.rules.selection import RULES

LORA = "lora/table2_roberta_base_lora"
TABLES = {table.name: table for table in paper_tables()}


def beside_paper(frame: pd.DataFrame, name: str, reference: Reference, settings: str = "paper") -> pd.DataFrame:
    return paper.beside_paper(frame, TABLES[name], reference, settings)


COMMIT = "ab" * 20


@pytest.fixture(scope="module")
def reference() -> Reference:
    return read_reference()


def published(
    reference: Reference,
    task: str,
    seed: int,
    score: float | None,
    experiment: str = LORA,
    splits: tuple[str, ...] = ("train", "validation"),
    layers: int | None = None,  # of a stand-in that bears the published backbone's name
    **more: Any,
) -> Record:
    """A made-up run on the published RoBERTa-base and all of the published data."""
    sizes = reference.splits.items()
    rows = {split: int(n) for (of, split), n in sizes if of == task and split.split("_")[0] in splits}
    fixed: dict[str, Any] = {"scale": "paper", "backbone": "roberta_base", "published": True, "source": "glue"}
    record = made_record(experiment, task, seed, score, **({"rows": rows} | fixed | more))
    if layers is None:
        record["params"]["backbone"] = int(reference.backbones.get(record["backbone"]["name"], 0))
    return record


def cell(table: pd.DataFrame, column: str, experiment: str = LORA) -> pd.Series:
    return table[(table["experiment"] == experiment) & (table["column"] == column)].iloc[0]


def five(
    reference: Reference, task: str, scores: Sequence[float] = (0.85, 0.86, 0.87, 0.88, 0.89), **more: Any
) -> list[Record]:
    return [published(reference, task, seed, score, **more) for seed, score in enumerate(scores)]


def test_all_printed_cells_are_there(reference: Reference) -> None:
    houlsby, lora = (reference.tables[name] for name in ("houlsby2019_table1", "lora_table2"))
    assert {*TABLES} == {*reference.tables}
    assert houlsby.groupby("experiment", sort=False).size().tolist() == [10, 10, 10]
    assert lora.groupby("experiment", sort=False).size().tolist() == [9] * 14
    for table in (houlsby, lora):
        assert not table.duplicated(["experiment", "column"]).any()
        assert table["value"].between(50, 100).all()
        assert set(table["selection_rule"]) <= {*RULES, "leaderboard_submission", "copied_unverified"}


@pytest.mark.parametrize("name", ["prompt_tuning_table1", "prompt_tuning_table2", "prompt_tuning_released"])
def test_every_printed_cell_is_scored_by_its_experiment(reference: Reference, name: str) -> None:
    """A split or metric by another name would stay "not run" for ever."""
    for (experiment, task), printed in reference.tables[name].groupby(["experiment", "task"]):
        at = task_choice("squad" if task == "squad" else "glue", str(task))
        cfg = compose_run([f"experiment={experiment}", f"task={at}", "scale=paper"])
        others = {f"{other}/": part for other, part in cfg.transfer.items()}
        scored = {
            (prefix + split, metric)
            for prefix, part in {"": cfg.task, **others}.items()
            for split in part.validation_splits
            for metric in part.metrics
        }
        assert set(zip(printed["split"], printed["metric"], strict=True)) <= scored, experiment


def test_printed_averages_of_lora_are_the_means_of_their_columns(reference: Reference) -> None:
    lora = reference.tables["lora_table2"]
    for experiment, row in lora.groupby("experiment"):
        printed = row.loc[row["column"] == "Avg", "value"].item()
        mean = row.loc[row["column"] != "Avg", "value"].mean()
        assert abs(printed - mean) <= 0.05 + 1e-9, experiment  # half a unit of the last printed digit


def test_printed_totals_of_houlsby_are_not_the_means_of_their_columns(reference: Reference) -> None:
    houlsby = reference.tables["houlsby2019_table1"]
    for _, row in houlsby.groupby("experiment"):
        mean = row.loc[row["column"] != "Total", "value"].mean()
        assert mean - row.loc[row["column"] == "Total", "value"].item() > 1.4


# Of each table: how many cells a run could be compared with, and what keeps the others from it.
REACH = {
    "houlsby2019_table1": (
        0,
        {"scored on the test server, whose labels are hidden": 27, "score of the GLUE server": 3},
    ),
    "lora_table2": (
        90,  # 10 rows of 8 tasks with their averages: the authors' own, and fine-tuning, whose MNLI is likely matched
        {"the paper copied it from work whose seeds and selection are not known": 36},
    ),
    "lora_table3": (
        10,
        {
            "the paper copied it from work whose seeds and selection are not known": 35,
            "nobody published the learning rate of the row, ours is that of another": 15,
        },
    ),
    "prefix_e2e": (60, {"nobody published the learning rate of the row, ours is that of another": 10}),
    "prefix_e2e_acl": (60, {"nobody published the learning rate of the row, ours is that of another": 10}),
    "prefix_xsum": (
        0,
        {
            "the released code selects by validation ROUGE-2, here it is validation loss": 6,
            "the paper copied it from work whose seeds and selection are not known": 3,
        },
    ),
    "prompt_tuning_table1": (0, {"the paper does not say which size of the backbone": 14}),
    "prompt_tuning_table2": (0, {"the paper does not say which size of the backbone": 8}),
    "prompt_tuning_table3": (36, {}),
    "prompt_tuning_released": (
        0,
        {"one released prompt: how many were trained, and which was chosen, is not said": 4},
    ),
    "prompt_design": (
        0,
        {"the weights of GPT-3 are not published": 1, "a score of the SuperGLUE server, whose labels are hidden": 1},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_how_many_cells_can_be_compared_and_why_the_others_cannot(reference: Reference, name: str) -> None:
    reasons = reachable(reference.tables[name], reference)
    assert (int((reasons == "").sum()), reasons[reasons != ""].value_counts().to_dict()) == REACH[name]
    text = paper.paper_page(beside_paper(frame_of([]), name, reference), TABLES[name], "", "")
    can, others = REACH[name]
    assert f"- {can} of {len(reasons)} cells can be compared with a run" in text
    assert all(f"{number} ({reason})" in text for reason, number in others.items())


def test_a_row_whose_learning_rate_nobody_published_is_not_compared(reference: Reference) -> None:
    adapters = {
        f"lora/table3_gpt2_{name}" for name in ("medium_adapter_h", "large_adapter_l_0_88m", "large_adapter_l_23m")
    }
    assert {name for name in reference.without_rate if "/table" in name} == adapters | {
        "lora/table2_deberta_xxl_full",
        "prefix_tuning/table1_large_full", "prefix_tuning/table1_large_prefix",
    }  # fmt: skip
    frame = frame_of(five(reference, "rte"))
    unknown = dataclasses.replace(reference, without_rate=frozenset({LORA}))
    reason = cell(beside_paper(frame, "lora_table2", unknown), "RTE")["reason"]
    assert reason.startswith("not comparable (nobody published the learning rate")


def test_a_cell_whose_split_is_likely_is_compared_and_marked(reference: Reference) -> None:
    experiment = "lora/table2_roberta_base_full"
    scores = (0.87, 0.872, 0.874, 0.876, 0.878)
    runs = five(reference, "mnli", scores, experiment=experiment, split="validation_matched")
    table = beside_paper(frame_of(runs), "lora_table2", reference)
    mnli = cell(table, "MNLI", experiment)
    assert mnli["difference"] == pytest.approx(87.4 - 87.6)
    text = paper.paper_page(table, TABLES["lora_table2"], "", "")
    assert "Likely of validation_matched: the paper does not say which split" in text
    assert cell(table, "MNLI", "lora/table2_roberta_base_bitfit")["never"].startswith("the paper copied it")


def test_a_comparable_cell_gets_its_difference(reference: Reference) -> None:
    table = beside_paper(frame_of(five(reference, "rte")), "lora_table2", reference)
    rte = cell(table, "RTE")
    assert (rte["printed"], rte["seeds"], rte["reason"]) == (86.6, 5, "")
    assert rte["ours"] == pytest.approx(87.0)  # the median
    assert rte["difference"] == pytest.approx(0.4)
    assert table["difference"].notna().sum() == 1


@pytest.mark.parametrize(
    ("pinned", "commits", "marks"),
    [
        (True, {}, []),
        (False, {"backbone": COMMIT}, [f"ᵘ unpinned weights, commit {COMMIT}"]),
        (True, {"data": COMMIT}, [f"ᵈ unpinned data, commit {COMMIT}"]),
        (True, {"data": pins()["nyu-mll/glue"].revision}, []),
    ],
)
def test_an_unpinned_commit_is_compared_and_marked(
    reference: Reference, pinned: bool, commits: dict[str, str], marks: list[str]
) -> None:
    records = five(reference, "rte")
    for record in records:
        record["backbone"] |= {"pinned": pinned, "commit": commits.get("backbone")}
        record["data"]["commit"] = commits.get("data")
    table = beside_paper(frame_of(records), "lora_table2", reference)
    assert cell(table, "RTE")["difference"] == pytest.approx(0.4)
    legend = paper.paper_page(table, TABLES["lora_table2"], "", "").splitlines()
    assert [line[2 : 2 + len(mark)] for line in legend for mark in ("ᵘ", "ᵈ") if line.startswith(f"- {mark}")] == [
        mark[0] for mark in marks
    ]
    assert all(any(mark in line for line in legend) for mark in marks)


def test_mnli_is_compared_on_the_matched_set(reference: Reference) -> None:
    records = five(reference, "mnli", scores=(0.87,) * 5)
    for record in records:
        for score in record["scores"]:
            score["score"] = {"validation_matched": 0.87, "validation_mismatched": 0.5}[score["split"]]
    mnli = cell(beside_paper(frame_of(records), "lora_table2", reference), "MNLI")
    assert mnli["ours"] == pytest.approx(87.0)
    assert mnli["difference"] == pytest.approx(-0.5)


def test_our_average_needs_every_column(reference: Reference) -> None:
    tasks = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]
    records = [record for task in tasks for record in five(reference, task, scores=(0.9,) * 5)]
    average = cell(beside_paper(frame_of(records), "lora_table2", reference), "Avg")
    assert (average["ours"], average["difference"]) == pytest.approx((90.0, 2.8))
    without_one = [record for record in records if record["task"] != "cola"]
    average = cell(beside_paper(frame_of(without_one), "lora_table2", reference), "Avg")
    assert pd.isna(average["ours"])
    assert average["reason"] == "not comparable (some column is not)"


REFUSALS: list[tuple[str, Callable[[Reference], list[Record]], bool]] = [
    # reason, runs, whether our number is shown beside it
    ("not run: peft-bench run -m experiment=lora/table2_roberta_base_lora scale=paper", lambda r: [], False),
    ("not comparable (3 of 5 seeds)", lambda r: five(r, "rte", scores=(0.8,) * 3), True),
    ("not comparable (backbone minilm_l6, the paper's is rob", lambda r: five(r, "rte", backbone="minilm_l6"), False),
    ("not comparable (the weights of roberta_base are not", lambda r: five(r, "rte", published=False), False),
    ("not comparable (250,000 of the backbone's 124,055,040 parameters)", lambda r: five(r, "rte", layers=1), False),
    ("not comparable (data micro-1, the paper's are glue)", lambda r: five(r, "rte", source="micro-1"), False),
    (
        "not comparable (100 of 2,490 train examples)",
        lambda r: five(r, "rte", rows={"train": 100, "validation": 277}),
        False,
    ),
    (
        "not comparable (20 of 277 validation examples)",
        lambda r: five(r, "rte", rows={"train": 2490, "validation": 20}),
        False,
    ),
    ("failed (diverged)", lambda r: [published(r, "rte", 0, None, failed="diverged")], False),
    ("conflict (two runs for seed 0", lambda r: [*five(r, "rte"), *five(r, "rte", trainer={"epochs": 1})], False),
    (
        "not comparable (not the published settings: trainer.max_steps 100 (not None))",
        lambda r: [
            *five(r, "rte", scores=(0.8,) * 4),
            published(r, "rte", 4, 0.8, departures={"trainer.max_steps": [100, None]}),
        ],
        True,
    ),
    (
        "not comparable (a run is flagged: parameters did not",
        lambda r: five(r, "rte", flags=("parameters_did_not_move",)),
        True,
    ),
    (
        "not comparable (2 more runs failed: diverged, error)",
        lambda r: [
            *five(r, "rte"),
            published(r, "rte", 5, None, failed="diverged"),
            published(r, "rte", 6, None, failed="error"),
        ],
        True,
    ),
    (
        "not comparable (made by code that no commit holds",
        lambda r: five(r, "rte", provenance={"git_commit": "0" * 40, "git_dirty": True, "created": ""}),
        True,
    ),
    ("not comparable (NaN)", lambda r: five(r, "rte", scores=(0.8, 0.8, float("nan"), 0.8, 0.8)), True),
]


@pytest.mark.parametrize(("reason", "runs", "shown"), REFUSALS, ids=[reason[:40] for reason, _, _ in REFUSALS])
def test_no_difference_without_comparability(
    reference: Reference, reason: str, runs: Callable[[Reference], list[Record]], shown: bool
) -> None:
    rte = cell(beside_paper(frame_of(runs(reference)), "lora_table2", reference), "RTE")
    assert rte["reason"].startswith(reason)
    assert pd.isna(rte["difference"])
    assert bool(rte["run_ids"]) == shown


def test_micro_and_small_runs_never_reach_a_papers_table(reference: Reference) -> None:
    records = five(reference, "rte", scale="micro") + five(reference, "cola", scale="small")
    table = beside_paper(frame_of(records), "lora_table2", reference)
    assert table["ours"].isna().all()
    assert cell(table, "RTE")["reason"].startswith("not run")


def test_houlsbys_numbers_are_of_the_test_server(reference: Reference) -> None:
    experiment = "houlsby2019/table1_adapters_64"
    more: dict[str, Any] = {"experiment": experiment, "backbone": "bert_large_uncased"}
    on_dev = beside_paper(frame_of(five(reference, "mrpc", **more)), "houlsby2019_table1", reference)
    mrpc = cell(on_dev, "MRPC", experiment)
    assert (mrpc["reason"], mrpc["split"]) == ("not comparable (test server split)", "validation")
    assert mrpc["ours"] == pytest.approx(89.0)  # the best run on validation
    # MRPC's test labels are public: the one test split that can be scored
    both = five(reference, "mrpc", splits=("train", "validation", "test"), **more)
    mrpc = cell(beside_paper(frame_of(both), "houlsby2019_table1", reference), "MRPC", experiment)
    assert (mrpc["reason"], mrpc["split"]) == ("", "test")
    assert mrpc["difference"] == pytest.approx(-0.6)
    qnli = beside_paper(frame_of(five(reference, "qnli", **more)), "houlsby2019_table1", reference)
    assert cell(qnli, "QNLI", experiment)["reason"] == "not comparable (QNLI version 1 in the paper, 2 here)"


def test_copied_rows_are_not_compared(reference: Reference) -> None:
    bitfit = "lora/table2_roberta_base_bitfit"
    table = beside_paper(frame_of(five(reference, "mrpc", experiment=bitfit)), "lora_table2", reference)
    mrpc = cell(table, "MRPC", bitfit)
    assert mrpc["likely_metric"] == "f1"
    assert "seeds and selection are not known" in mrpc["reason"]


def test_script_settings_are_apart_from_the_papers(reference: Reference, tmp_path: Path) -> None:
    frame = frame_of(five(reference, "rte", settings="script"))
    assert cell(beside_paper(frame, "lora_table2", reference), "RTE")["reason"].startswith("not run")
    assert cell(beside_paper(frame, "lora_table2", reference, "script"), "RTE")["reason"] == ""
    pages = make_pages(Inputs(frame, reference))
    write_pages(pages, tmp_path)
    assert not [page for page in pages if page.on_screen]
    assert "+0.4" in (tmp_path / "lora_table2_script.md").read_text()
    assert "+0.4" not in (tmp_path / "lora_table2.md").read_text()
    assert "(script settings)](lora_table2_script.md)" in index(frame, pages, [])


def test_the_page_shows_printed_ours_difference_and_reasons(reference: Reference) -> None:
    records = five(reference, "rte") + five(reference, "sst2", flags=("one_class_predictions",))
    records += five(reference, "cola", scores=(0.6, 0.61))
    table = beside_paper(frame_of(records), "lora_table2", reference)
    text = paper.paper_page(table, TABLES["lora_table2"], "", "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # aligned
    assert len(lines) == 2 + 14 * 2 + 1
    row = next(number for number, line in enumerate(lines) if line.startswith("| RoB_base (LoRA) 0.3M "))
    printed, ours, difference = ([part.strip() for part in line.split("|")] for line in lines[row : row + 3])
    assert (printed[9], ours[9], difference[9]) == ("86.6", "87.0 ±1.6 (5)", "+0.4")
    assert ours[4].startswith("87.0 ±1.6ᶜ (5) [")
    assert difference[4] == ""
    assert ours[6].startswith("60.5 ±0.7 (2) [")
    assert difference[6] == ""
    assert "Not comparable (2 of 5 seeds)." in text
    assert "ᶜ a run predicts one class throughout." in text
    assert ours[5] == "—"
    assert "— not run. To run a row: `peft-bench run -m experiment=<experiment> scale=paper" in text


def test_counts_stand_beside_the_printed_ones(reference: Reference) -> None:
    uncounted = parameters.beside_printed(reference, TABLES["lora_table2"], None)
    assert uncounted["ours"].isna().all()
    assert "run `peft-bench params`" in parameters.parameters_markdown(uncounted)
    figures = [("lora/table2_roberta_base_lora", "0.3M", "0.3M", "yes", 294912, 294912, 887811)]
    counts = pd.DataFrame(figures, columns=[*parameters._KEY, *parameters._COUNTED])
    counted = parameters.beside_printed(reference, TABLES["lora_table2"], counts)
    assert counted["ours"].notna().sum() == 1
    assert "|    0.3M |    0.3M |    yes | 294,912 | 294,912 |   887,811 |".replace(" ", "") in (
        parameters.parameters_markdown(counted).replace(" ", "")
    )
    assert (
        len(parameters.beside_printed(reference, TABLES["houlsby2019_table1"], None)) == 6
    )  # share and total of three rows


def test_a_missing_reference_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"houlsby2019_table1.csv.*--reference"):
        read_reference(tmp_path)
