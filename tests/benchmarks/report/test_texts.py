"""E2E in the report: units, curves, claims as intervals, factors of the gap; all from rows made here."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from peft_bench.report.layouts import read_layouts
from peft_bench.report.pages.claims import judge, overall, read_claims, read_papers
from peft_bench.report.pages.curves import curve_page, curve_points, draw, read_curves
from peft_bench.report.pages.e2e_gap import effects, gap_page
from peft_bench.report.pages.ours import table_page
from peft_bench.report.pages.worth import Worth, worth_page, worth_table
from peft_bench.report.reference import DIRECTORY, read_reference
from peft_bench.report.render import points
from peft_bench.report.rows import COLUMNS, ResultRow, typed
from peft_bench.report.table import read_tables, table_cells
from peft_bench.studies.e2e_gap import main as errata

(WORTH,) = read_layouts("worth", Worth)
NO: dict[str, Any] = {field.name: None for field in dataclasses.fields(ResultRow)}


def row(experiment: str, seed: int, metric: str, score: float, **fields: Any) -> ResultRow:
    return ResultRow(
        **NO
        | {
            "experiment": experiment, "scale": "micro", "settings": "paper", "task": "e2e", "seed": seed,
            "run_id": f"{experiment}{seed}{sorted(fields.items())}", "status": "done", "flags": "", "parents": "",
            "selection_checkpoint": "best", "selection_split": "validation", "selection_metric": "loss",
            "method_params": 100, "departures": "", "git_dirty": False, "split": "test", "checkpoint": "best",
            "epoch": 1.0, "metric": metric, "score": score, "n": 500,
        }
        | fields
    )  # fmt: skip


def as_frame(rows: list[ResultRow]) -> pd.DataFrame:
    return typed([dataclasses.asdict(row) for row in rows], COLUMNS)


def test_scores_are_printed_in_the_papers_units():
    assert points(0.6821, "bleu") == "68.2"
    assert points(8.8149, "nist") == "8.81"
    assert points(2.4949, "cider") == "2.49"
    assert points(-0.0123, signed=True) == "-1.2"


def test_the_e2e_table_has_a_hole_where_no_run_is():
    rows = [row("prefix_tuning/table4_prefix", seed, "bleu", 0.7 + seed / 100) for seed in range(3)]
    rows += [row("prefix_tuning/table4_prefix", seed, "nist", 9.0 + seed) for seed in range(3)]
    table = next(table for table in read_tables("texts") if table.name == "micro_e2e")
    cells = table_cells(as_frame(rows), table, "paper", swept=())
    assert len(cells) == len(table.rows) * len(table.columns)
    text = table_page(cells, table, table.title, frozenset())
    (line,) = (line for line in text.split("\n") if line.startswith("| PREFIX"))
    half = stats.t.ppf(0.975, 2) * np.std([0, 1, 2], ddof=1) / 3**0.5
    assert f"71.0 ±{half:.1f}" in line
    assert f"10.00 ±{half:.2f}" in line
    assert line.count("—") == len(table.columns) - 2


@pytest.mark.parametrize("name", ["prefix_e2e", "prefix_e2e_acl", "lora_table3"])
def test_printed_e2e_values_are_all_there(name):
    table = read_reference().tables[name]
    assert (table.groupby(["row", "printed_params"]).size() == 5).all()
    values = table.set_index(["row", "column"])["value"].to_dict()
    expected = {
        "prefix_e2e": {("PREFIX", "BLEU"): 69.7, ("EMB-1", "BLEU"): 48.1, ("INFIX-20", "BLEU"): 66.7},
        "prefix_e2e_acl": {("PREFIX", "BLEU"): 70.3, ("GPT-2 medium, fine-tune", "BLEU"): 68.8},
        "lora_table3": {("GPT-2 M (LoRA)", "BLEU"): 70.4, ("GPT-2 L (LoRA)", "CIDEr"): 2.47},
    }
    assert {key: values[key] for key in expected[name]} == expected[name]


def test_a_curve_has_a_point_per_length_and_counts_failures():
    rows = [
        row("prefix_tuning/length", seed, metric, score + seed / 100, length=length)
        for seed in range(3)
        for length, score in ((1, 0.5), (5, 0.6), (10, 0.62))
        for metric in ("bleu", "loss")
    ]
    failed = dataclasses.replace(rows[0], run_id="f", status="failed", seed=3, score=None, split=None, metric=None)
    (curve,) = (curve for curve in read_curves() if curve.name == "prefix_length")
    table = curve_points(as_frame([*rows, failed]), curve, "micro")
    of_bleu = table[table["metric"] == "bleu"]
    assert of_bleu["x"].tolist() == [1, 5, 10]
    assert of_bleu["mean"].tolist() == pytest.approx([0.51, 0.61, 0.63])
    assert of_bleu["failed"].tolist() == [1, 0, 0]
    assert "3 (1 failed)" in curve_page(table, curve, "micro", "")
    drawing = draw(table, curve, "micro")
    assert drawing.startswith(b"<?xml")
    assert drawing == draw(table, curve, "micro")
    assert curve_points(as_frame(rows), curve, "small").empty


def test_a_curve_borrows_the_points_that_it_lacks_and_no_others():
    """The default length is a run of figure 1: of prompt_tuning/length only where it has runs of its own."""
    rows = [
        row(name, seed, "accuracy", score, length=length, backbone_params=1000, selection_metric="accuracy")
        for seed in range(3)
        for name, length, score in (
            ("prompt_tuning/length", 1, 0.5),
            ("prompt_tuning/length", 5, 0.6),
            ("prompt_tuning/size", 5, 0.9),
            ("prompt_tuning/size", 20, 0.8),
        )
    ]
    (curve,) = (curve for curve in read_curves() if curve.name == "prompt_length")
    table = curve_points(as_frame(rows), curve, "micro")
    assert dict(zip(table["series"], table["mean"], strict=True)) == pytest.approx({1: 0.5, 5: 0.6, 20: 0.8})
    assert (table["n"] == 3).all()
    assert curve_points(as_frame(rows[2::4]), curve, "micro").empty


def test_a_claim_holds_fails_or_stays_open_by_its_interval():
    better, worse, noisy = [0.70, 0.71, 0.72], [0.60, 0.61, 0.62], [0.40, 0.62, 0.85]
    rows = [
        row(name, seed, "bleu", score)
        for name, scores in {"a/better": better, "a/worse": worse, "a/noisy": noisy}.items()
        for seed, score in enumerate(scores)
    ]
    terms = {
        "1 a/better; -1 a/worse": (0.05, "holds"),
        "1 a/worse; -1 a/better": (0.0, "fails"),
        "1 a/better; -1 a/noisy": (0.0, "undecided"),
        "1 a/better; -1 a/missing": (0.0, "not run"),
        "1 max a/worse|a/better; -1 a/worse": (0.05, "holds"),
        "1 min a/*; -1 a/better": (
            0.0,
            "fails" if min(map(np.mean, (worse, noisy))) == np.mean(worse) else "undecided",
        ),
    }
    claims = pd.DataFrame(
        [
            {
                "claim": "X",
                "statement": "",
                "terms": term,
                "metric": "bleu",
                "margin": margin,
                "n": 3,
                "split": "test",
            }
            for term, (margin, _) in terms.items()
        ]
    )
    judged = judge(as_frame(rows), claims, "micro")
    assert judged["verdict"].tolist()[:5] == [verdict for _, verdict in list(terms.values())[:5]]
    welch = stats.ttest_ind(better, worse, equal_var=False).confidence_interval()
    assert (judged["low"][0], judged["high"][0]) == pytest.approx((welch.low, welch.high))
    assert overall(["holds", "undecided"]) == "undecided"
    assert overall(["holds", "fails", "not run"]) == "fails"


def test_what_a_setting_is_worth_is_the_difference_of_one_change():
    """Welch's interval; a change that lacks a run is left out, and so is one whose unchanged runs are missing."""
    published, short, adamw = [0.77, 0.78, 0.775], [0.2, 0.45, 0.1], [0.76, 0.75, 0.77]
    large: dict[str, Any] = {"stands_for": "t5_large_lm_adapt", "init": "class_labels", "target_prefix": ""}
    settings: dict[str, tuple[list[float], dict[str, Any]]] = {
        "prompt_tuning/size": (published, {"length": 20}),
        "prompt_tuning/length": (short, {"length": 1}),
        "prompt_tuning/init": (adamw[:2], {"length": 20, "init": "uniform"}),
        "prompt_tuning/optimizer": (adamw, {"length": 20, "optimizer": "adamw", "learning_rate": 0.3}),
    }
    rows = [
        row(name, seed, "accuracy", score, task="sst2", **large | fields)
        for name, (scores, fields) in settings.items()
        for seed, score in enumerate(scores)
    ]
    table = worth_table(as_frame(rows), WORTH)
    assert table[["setting", "otherwise"]].to_numpy().tolist() == [["rows", "1"]]
    line = table.to_dict("records")[0]
    welch = stats.ttest_ind(short, published, equal_var=False).confidence_interval()
    assert line["difference"] == pytest.approx(np.mean(short) - np.mean(published))
    assert (line["difference_low"], line["difference_high"]) == pytest.approx((welch.low, welch.high))
    half = stats.t.ppf(0.975, 2) * np.std(short, ddof=1) / 3**0.5
    assert f"25.0 ±{100 * half:.1f}" in worth_page(table, WORTH, "")
    rows += [
        row("prompt_tuning/optimizer", seed, "accuracy", 0.78, task="sst2", optimizer="adafactor", learning_rate=0.3)
        for seed in range(3)
    ]
    assert worth_table(as_frame(rows), WORTH)["otherwise"].tolist() == ["1", "AdamW 0.3"]
    assert worth_table(as_frame(rows[:2]), WORTH).empty
    other = row("prompt_tuning/length", 3, "accuracy", 0.3, task="sst2", learning_rate=3.0, **large | {"length": 1})
    assert worth_table(as_frame([*rows, other]), WORTH)["otherwise"].tolist() == ["AdamW 0.3"], "no mean of two rates"


def test_fewer_seeds_than_announced_are_no_result():
    rows = [row("a/x", seed, "bleu", 0.7) for seed in range(2)]
    claims = pd.DataFrame([{"claim": "X", "statement": "", "terms": "1 a/x", "metric": "bleu", "margin": 0.0, "n": 3}])
    claims["split"] = "test"
    assert judge(as_frame(rows), claims, "micro")["verdict"].tolist() == ["not run"]


def test_a_term_takes_the_runs_of_one_setting_and_a_seed_its_mean_over_tasks():
    """A seed without one of the tasks does not count; halves of a split are one score of their run."""
    rows = [
        dataclasses.replace(
            row("a/x", seed, "accuracy", score), run_id=f"{task}{seed}", task=task, split=split, stands_for="big"
        )
        for seed, scores in enumerate(((0.6, 0.7, 0.9), (0.5, 0.7, 0.7), (0.9, 0.8, 0.8)))
        for task, split, score in zip(
            ("sst2", "mnli", "mnli"), ("test", "test_matched", "test_mismatched"), scores, strict=True
        )
    ]
    line = {"claim": "X", "statement": "", "metric": "accuracy", "margin": 0.0, "n": 3, "split": "test"}
    terms = ["1 a/x[stands_for=big]", "1 a/x[stands_for=small]"]
    claims = pd.DataFrame([{**line, "terms": text} for text in terms])
    judged = judge(as_frame(rows), claims, "micro")
    assert judged["sum"][0] == pytest.approx(np.mean([(0.6 + 0.8) / 2, (0.5 + 0.7) / 2, (0.9 + 0.8) / 2]))
    assert judged["verdict"].tolist() == ["holds", "not run"]
    assert judge(as_frame(rows[:-2]), claims, "micro")["verdict"].tolist() == ["not run", "not run"]


def test_what_a_backbone_was_pretrained_to_do_is_a_line_of_its_curve():
    (curve,) = (curve for curve in read_curves() if curve.name == "prompt_pretraining")
    rows = [
        dataclasses.replace(
            row(curve.experiments[0], seed, metric, score + seed / 100),
            run_id=f"{name}{prefix}{seed}", stands_for=name, target_prefix=prefix, backbone_params=1000,
            selection_metric="accuracy",
        )
        for seed in range(3)
        for name, prefix, score in (
            ("t5_v1_1_large", "", 0.5), ("t5_v1_1_large", "<extra_id_0>", 0.6), ("t5_large_lm_adapt", "", 0.7)
        )
        for metric in ("accuracy", "illegal")
    ]  # fmt: skip
    table = curve_points(as_frame(rows), curve, "micro")
    means = table[table["metric"] == "score"].set_index("series")["mean"].round(2).to_dict()
    assert means == {"LM adaptation": 0.71, "span corruption": 0.51, "span corruption + sentinel": 0.61}
    assert b"span corruption + sentinel" in draw(table, curve, "micro")


@pytest.mark.parametrize("name", [claims.name for claims in read_papers()])
def test_every_claim_can_be_read_and_names_experiments_that_exist(name: str):
    from peft_bench.config.compose import choices

    claims = read_claims(DIRECTORY, name)
    assert set(claims["n"]) <= {3, 5}
    known = choices("experiment")
    for terms in claims["terms"]:
        for term in terms.split("; "):
            for named in term.split()[-1].partition("[")[0].split("|"):
                assert [k for k in known if k == named or (named.endswith("*") and k.startswith(named[:-1]))], named
    assert judge(as_frame([row("a/x", 0, "bleu", 0.5)]), claims, "micro")["verdict"].eq("not run").all()


def test_the_worth_of_a_factor_is_its_mean_change():
    lines = [
        {
            "run_id": run,
            "seed": 0,
            "beams": beams,
            "clean_up": clean,
            "only": 1,
            "bleu": 0.6 + 0.02 * (beams == 10) + up,
        }
        for run in "ab"
        for beams in (5, 10)
        for clean, up in ((False, 0.0), (True, -0.01 * (beams == 5)))
    ]
    found = effects(pd.DataFrame(lines))
    assert set(found["factor"]) == {"beams", "clean_up"}
    by_level = {(line.factor, line.level): line for line in found.itertuples()}
    assert by_level["beams", "10"].change == pytest.approx(0.025)
    assert by_level["clean_up", "True"].smallest == pytest.approx(-0.01)
    assert by_level["clean_up", "True"].largest == pytest.approx(0)
    assert "+2.5 (+2.0 to +3.0)" in gap_page(pd.DataFrame(lines))


def test_errata_without_a_run_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"no finished run of errata/e2e_gap .*make some with: peft-bench run -m"):
        errata(["e2e_gap", "--results", str(tmp_path)])
    with pytest.raises(ValueError, match=r"--levels beams=5: expected one of beams, .*a JSON list"):
        errata(["e2e_gap", "--results", str(tmp_path), "--levels", "beams=5"])
