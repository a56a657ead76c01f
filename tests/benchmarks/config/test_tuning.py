"""Which learning rate a tuning sweep chooses."""

import pandas as pd
import pytest

from peft_bench.config.compose import choices
from peft_bench.config.many import compose_all
from peft_bench.config.multirun import expand, load_sweep
from peft_bench.config.schema import CONF_DIR
from peft_bench.records.schema import Record
from peft_bench.report.pages.curves import CURVES
from peft_bench.report.pages.micro import MICRO_TABLES
from peft_bench.report.pages.texts import E2E_MICRO_ROWS, XSUM_MICRO_ROWS
from peft_bench.report.rows import frame_of
from peft_bench.report.tuning import chosen_rates, runs_table
from peft_bench.studies.report_overhead import made_record

LORA = "lora/table2_roberta_base_lora"


def run(task: str, rate: float, score: float | None, failed: str | None = None) -> Record:
    return made_record(LORA, task, 1000, score, trainer={"learning_rate": rate}, failed=failed)


def test_the_best_mean_over_tasks_wins():
    records = [run("sst2", 1e-3, 0.9), run("qnli", 1e-3, 0.5), run("sst2", 1e-2, 0.8), run("qnli", 1e-2, 0.7)]
    chosen = chosen_rates(frame_of(records))
    assert chosen.loc[LORA, "best"] == 1e-2
    assert chosen[1e-3][LORA] == pytest.approx(0.70)
    assert chosen[1e-2][LORA] == pytest.approx(0.75)


@pytest.mark.parametrize("hole", [[], [run("qnli", 1e-2, None, failed="out_of_memory")]])
def test_a_rate_with_a_hole_cannot_win(hole: list[Record]):
    records = [run("sst2", 1e-3, 0.6), run("qnli", 1e-3, 0.6), run("sst2", 1e-2, 0.99), *hole]
    assert chosen_rates(frame_of(records)).loc[LORA, "best"] == 1e-3


def test_a_setting_with_other_tasks_does_not_count_against_another():
    """And one that a cut-off sweep has no whole rate of has no best one."""
    other = made_record("lora/table2_roberta_base_full", "rte", 1000, 0.8, trainer={"learning_rate": 1e-4})
    failed = made_record("controls/roberta_scratch", "rte", 1000, None, trainer={"learning_rate": 1e-4}, failed="bug")
    chosen = chosen_rates(frame_of([run("sst2", 1e-3, 0.6), other, failed]))
    assert chosen["best"].dropna().to_dict() == {LORA: 1e-3, "lora/table2_roberta_base_full": 1e-4}


def test_the_runs_of_a_choice_are_written_with_their_scores():
    table = runs_table(frame_of([run("sst2", 1e-2, 0.8), run("sst2", 1e-3, 0.9)]))
    assert table[["task", "learning_rate", "seed", "score"]].to_numpy().tolist() == [
        ["sst2", 1e-3, 1000, 0.9],
        ["sst2", 1e-2, 1000, 0.8],
    ]


def test_the_committed_rates_of_prompt_tuning_are_those_that_won():
    """conf/sweep/prompt_tuning.yaml names, of each setting, the rate with the best score in the committed runs."""
    runs = pd.read_csv(
        CONF_DIR.parent / "results" / "tuning" / "prompt_tuning.csv", keep_default_na=False, dtype={"length": str}
    )
    tuned = runs[runs["task"] != "mnli"]  # whose plateau tells no rates apart
    assert set(tuned["seed"]) == {1000}
    axes = ["experiment", "stands_for", "init", "length", "target_prefix"]
    best = tuned.sort_values("learning_rate").groupby(axes)["score"].idxmax()  # of equal ones the smallest rate
    chosen = dict(zip(best.index, tuned.loc[best, "learning_rate"], strict=True))
    assert tuned.groupby(axes).size().unique().tolist() == [3], "one equal budget"
    found = set()
    for cfg in compose_all([job for line in load_sweep("prompt_tuning") for job in expand(line) if "seed=0" in job]):
        start, length = cfg.method.get("init", ""), str(cfg.method.get("length", ""))
        key = (cfg.experiment, cfg.backbone.name, start, length, cfg.task.target_prefix)
        if key in chosen:
            assert cfg.trainer.learning_rate == chosen[key], key
            found.add(key)
    assert found == set(chosen)


@pytest.mark.parametrize("sweep", ["quickstart", "micro"])
def test_the_micro_sweeps_make_the_rows_of_the_micro_tables_and_no_others(sweep: str):
    jobs = [job for line in load_sweep(sweep) for job in expand(line)]
    made = {word.removeprefix("experiment=") for job in jobs for word in job if word.startswith("experiment=")}
    assert made == {row.experiment for table in MICRO_TABLES for row in table.rows}


def test_an_empty_folder_is_named():
    with pytest.raises(ValueError, match="no records: expected those of `peft-bench sweep micro_tuning"):
        chosen_rates(frame_of([]))


def test_every_trained_row_of_a_micro_table_has_its_file_of_the_scale_and_every_file_its_row():
    """Hydra skips a misnamed optional file without a word, and the trainer's default rate would take its place."""
    rows = {row.experiment for table in MICRO_TABLES for row in table.rows} | {
        row.experiment for row in (*E2E_MICRO_ROWS, *XSUM_MICRO_ROWS)
    }
    rows |= {experiment for curve in CURVES for experiment in curve.experiments}
    rows |= {f"prompt_tuning/{name}" for name in choices("experiment/prompt_tuning")}
    trained = rows - {"controls/majority", "controls/bag_of_words"}
    folder = CONF_DIR / "at" / "micro"
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    of_tasks = {name.removeprefix("task/") for name in files if name.startswith("task/")}
    assert of_tasks <= set(choices("task"))
    assert {name for name in files if not name.startswith(("grid/", "task/"))} == trained
    assert {name for name in files if name.startswith("grid/")} <= set(choices("experiment"))
