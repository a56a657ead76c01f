"""Which runs become a cell's number, and which must not share a cell. Rows made by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peft_bench.records.made import made_record
from peft_bench.records.schema import Record
from peft_bench.report.rows import frame_of
from peft_bench.report.rules.conflicts import conflicts, of_mean
from peft_bench.report.rules.over_tasks import seed_means
from peft_bench.report.rules.selection import (
    RULES,
    at_checkpoint,
    best_on_validation_over_sweep_and_seeds,
    best_setting_on_validation_then_mean_over_seeds,
    mean_over_seeds_of_best_epoch,
    mean_over_seeds_of_selected_checkpoint,
    median_over_seeds_of_best_epoch,
    median_over_seeds_of_last_epoch,
)
from peft_bench.report.rules.statistics import summarize

LORA = "lora/table2_roberta_base_lora"
SWEEP = "houlsby2019/table1_adapters_8_256"


def on_test(cells: pd.DataFrame, metric: str = "accuracy") -> pd.Series:
    chosen = cells[cells["split"].str.startswith("test") & (cells["metric"] == metric)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def sized(dim: int, seed: int, score: float, validation: float, **more: Any) -> Record:
    return made_record(SWEEP, "rte", seed, score, validation=validation, method={"bottleneck_dim": dim}, **more)


def test_the_interval_is_students() -> None:
    scores = (0.81, 0.84, 0.79, 0.90, 0.85)
    summary = summarize(scores)
    low, high = stats.t.interval(0.95, len(scores) - 1, loc=np.mean(scores), scale=stats.sem(scores))
    assert (summary.n, summary.median) == (5, 0.84)
    np.testing.assert_allclose((summary.mean, summary.std), (np.mean(scores), np.std(scores, ddof=1)))
    np.testing.assert_allclose((summary.low, summary.high), (low, high))
    narrower = summarize(scores, confidence=0.5)
    assert summary.low < narrower.low < narrower.high < summary.high


def test_one_seed_has_no_spread_and_a_nan_no_mean() -> None:
    one = summarize([0.8])
    assert (one.n, one.mean, one.median) == (1, 0.8, 0.8)
    assert all(math.isnan(value) for value in (one.std, one.low, one.high))
    bad = summarize([0.8, float("nan"), 0.9])
    assert bad.n == 3
    assert all(math.isnan(value) for value in (bad.mean, bad.median, bad.std, bad.low, bad.high))
    assert summarize([]).n == 0


def test_an_undefined_score_has_no_mean_over_tasks() -> None:
    lines = [(0, "stsb", "a", np.nan), (0, "rte", "b", 0.9), (1, "stsb", "c", 0.1), (1, "rte", "d", 0.9)]
    scores = pd.DataFrame(lines, columns=["seed", "task", "run_id", "score"])
    both = seed_means(scores)
    assert both.index.tolist() == [0, 1]
    assert both.tolist() == pytest.approx([np.nan, 0.5], nan_ok=True)
    of_stsb = seed_means(scores[scores["task"] == "stsb"])
    assert of_stsb.tolist() == pytest.approx([np.nan, 0.1], nan_ok=True)
    assert seed_means(scores[1:]).index.tolist() == [1]  # seed 0 lacks a task


def test_median_and_mean_over_seeds() -> None:
    frame = frame_of([made_record(LORA, "rte", seed, score) for seed, score in enumerate((0.5, 0.8, 0.9))])
    median, mean = on_test(median_over_seeds_of_best_epoch(frame)), on_test(mean_over_seeds_of_best_epoch(frame))
    assert (median["score"], median["seeds"]) == (0.8, 3)
    assert mean["score"] == pytest.approx(2.2 / 3)
    assert mean["low"] < mean["score"] < mean["high"]
    assert len(median["run_ids"].split()) == 3


def test_best_and_last_epoch_are_different_rules() -> None:
    record = made_record(LORA, "rte", 0, 0.8)
    for score in record["scores"]:
        score["score"] = {"best": 0.9, "last": 0.6}[score["checkpoint"]]
    frame = frame_of([record])
    assert on_test(median_over_seeds_of_best_epoch(frame))["score"] == 0.9
    assert on_test(median_over_seeds_of_last_epoch(frame))["score"] == 0.6


def test_our_tables_and_sweeps_take_the_checkpoint_that_the_run_selects() -> None:
    record = made_record(SWEEP, "rte", 0, 0.8)
    record["selection"]["checkpoint"] = "last"
    for score in record["scores"]:
        score["score"] = {"best": 0.9, "last": 0.6}[score["checkpoint"]]
    for rule in (
        mean_over_seeds_of_selected_checkpoint,
        best_on_validation_over_sweep_and_seeds,
        best_setting_on_validation_then_mean_over_seeds,
    ):
        assert on_test(rule(frame_of([record])))["score"] == 0.6


def test_an_untrained_control_has_one_checkpoint_for_every_rule() -> None:
    record = made_record("controls/majority", "rte", 0, 0.5)
    record["scores"] = [score | {"epoch": None} for score in record["scores"] if score["checkpoint"] == "last"]
    frame = frame_of([record])
    for checkpoint in ("best", "last"):
        assert at_checkpoint(frame, checkpoint)["split"].tolist() == ["validation", "test"]


def test_the_sweep_is_won_on_validation_and_scored_on_test() -> None:
    frame = frame_of(
        [
            sized(8, 0, score=0.99, validation=0.70),  # best on test: must not win
            sized(64, 0, score=0.60, validation=0.80),
            sized(64, 1, score=0.65, validation=0.90),  # the winner
            sized(256, 0, score=0.70, validation=0.85),
        ]
    )
    best = on_test(best_on_validation_over_sweep_and_seeds(frame))
    assert (best["score"], best["seeds"], best["searched"], best["picked"]) == (0.65, 2, 4, "bottleneck_dim 64")
    assert math.isnan(best["std"])
    mean = on_test(best_setting_on_validation_then_mean_over_seeds(frame))
    assert (mean["seeds"], mean["searched"], mean["picked"]) == (2, 4, "bottleneck_dim 64")
    assert mean["score"] == pytest.approx(0.625)


def test_ties_on_validation_do_not_depend_on_the_order_of_files() -> None:
    records = [sized(dim, seed, 0.1 * dim, 0.8) for dim in (8, 4) for seed in (1, 0)]
    for record in records:
        record["params"]["method"] = 1000 * record["config"]["method"]["bottleneck_dim"]
    for order in (records, records[::-1]):
        best = on_test(best_on_validation_over_sweep_and_seeds(frame_of(order)))
        assert best["picked"] == "bottleneck_dim 4"


def test_a_nan_never_wins_a_sweep_and_is_shown_if_nothing_else_is_there() -> None:
    nan = float("nan")
    frame = frame_of([sized(8, 0, nan, nan), sized(64, 0, 0.6, 0.55)])
    assert on_test(best_setting_on_validation_then_mean_over_seeds(frame))["picked"] == "bottleneck_dim 64"
    only = on_test(best_setting_on_validation_then_mean_over_seeds(frame_of([sized(8, 0, nan, nan)])))
    assert math.isnan(only["score"])
    assert only["seeds"] == 1


def test_both_halves_of_mnli_come_from_the_run_chosen_on_the_matched_one() -> None:
    frame = frame_of([made_record(SWEEP, "mnli", 0, 0.7), made_record(SWEEP, "mnli", 1, 0.6, validation=0.9)])
    cells = best_on_validation_over_sweep_and_seeds(frame).set_index("split")["score"]
    assert cells[["test_matched", "test_mismatched"]].tolist() == [0.6, 0.6]


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_bears_its_name_and_an_empty_frame(name: str) -> None:
    rule = RULES[name]
    assert rule.__name__ == name
    failed = frame_of([made_record(LORA, "rte", 0, None, failed="diverged")])
    assert rule(failed).empty
    assert rule(frame_of([])).empty


def causes(*records: Record) -> list[str]:
    return [str(conflict) for conflict in conflicts(frame_of(list(records)), swept={SWEEP})]


def test_runs_that_belong_together_are_no_conflict() -> None:
    seeds = [made_record(LORA, task, seed, 0.8) for seed in range(3) for task in ("rte", "cola")]
    sweep = [sized(dim, seed, 0.8, 0.8) for dim in (8, 64) for seed in range(2)]
    scratch = [
        made_record("controls/bert_scratch", "rte", seed, 0.8)
        | {"backbone": {"name": "micro_bert", "stands_for": "", "published": False, "sha256": "random"}}
        for seed in range(2)
    ]
    failed = made_record(LORA, "rte", 0, None, failed="diverged", trainer={"learning_rate": 1.0})
    assert causes(*seeds, *sweep, *scratch, failed) == []


@pytest.mark.parametrize(
    ("samples", "data", "cause"),
    [
        ([0, 1], ["a", "b"], None),  # subsamples are different data
        ([0, 0], ["a", "b"], "runs on rte differ in data_sha256 (a, b)"),
        ([None, None], ["a", "b"], "runs on rte differ in data_sha256 (a, b)"),
        ([0, 1], ["a", "a"], None),
    ],
)
def test_a_mean_is_over_one_data_set_or_its_subsamples(
    samples: list[float | None], data: list[str], cause: str | None
) -> None:
    frame = frame_of([made_record(LORA, "rte", seed, 0.8) for seed in range(2)])
    first = frame["run_id"] == frame["run_id"].iloc[0]
    frame["data_sha256"] = first.map({True: data[0], False: data[1]})
    frame["train_sample"] = first.map({True: samples[0], False: samples[1]})
    assert of_mean(frame) == cause


def test_the_same_run_twice_is_named() -> None:
    record = made_record(LORA, "rte", 0, 0.8)
    (cause,) = causes(record, record)
    assert cause.startswith(f"{LORA} on rte (micro scale, paper settings): the same run is there twice")
    assert record["run_id"] in cause


def test_two_runs_for_one_seed_are_named_with_what_differs() -> None:
    first = made_record(LORA, "rte", 0, 0.8)
    second = made_record(LORA, "rte", 0, 0.9, trainer={"learning_rate": 5e-3})
    (cause,) = causes(first, second, made_record(LORA, "rte", 1, 0.8))
    assert "two runs for seed 0" in cause
    assert first["run_id"] in cause
    assert second["run_id"] in cause
    assert "learning_rate" in cause
    repeated = [sized(8, 0, 0.8, 0.8), sized(8, 0, 0.7, 0.7) | {"run_id": "f" * 16}]
    (cause,) = causes(*repeated)
    assert "equal in every recorded setting" in cause


def test_seeds_that_differ_in_setting_or_data_are_named() -> None:
    (cause,) = causes(made_record(LORA, "rte", 0, 0.8), made_record(LORA, "rte", 1, 0.8, method={"rank": 2}))
    assert "its seeds differ in rank (nan, 2)" in cause
    cut: dict[str, Any] = {"trainer": {"max_steps": 100}, "departures": {"trainer.max_steps": [100, None]}}
    (cause,) = causes(made_record(LORA, "rte", 0, 0.8), made_record(LORA, "rte", 1, 0.8, **cut))
    assert "its seeds differ in setting (none, trainer.max_steps 100 (not None))" in cause
    (cause,) = causes(sized(8, 0, 0.8, 0.8), sized(64, 1, 0.8, 0.8, **cut))  # in a sweep, too
    assert "its seeds differ in setting" in cause
    half = made_record(LORA, "rte", 1, 0.8)
    half["numerics"]["dtype"] = "bfloat16"
    (cause,) = causes(made_record(LORA, "rte", 0, 0.8), half)
    assert "its seeds differ in dtype (float32, bfloat16)" in cause
    newer = made_record(LORA, "rte", 1, 0.8)
    newer["identity"]["versions"] = {"loop": 2, "method": 1, "task": 1}
    (cause,) = causes(made_record(LORA, "rte", 0, 0.8), newer)
    assert "its seeds differ in result versions or fields of the configuration" in cause
    (cause,) = causes(sized(8, 0, 0.8, 0.8, source="micro-1"), sized(64, 1, 0.8, 0.8, source="micro-2"))
    assert "data_source (micro-1, micro-2)" in cause
