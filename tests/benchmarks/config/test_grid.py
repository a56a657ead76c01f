"""The grid has every method on every micro backbone that has its sites, and tunes each with the same budget."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from peft_bench.backbones.loading import load_backbone
from peft_bench.config.compose import backbone_choice, build_method, choices, compose_run, method_choice, register
from peft_bench.config.departures import departures
from peft_bench.config.kinds import writes_text
from peft_bench.config.multirun import expand, load_sweep
from peft_bench.config.schema import CONF_DIR
from peft_bench.report.main import main
from peft_bench.report.table import read_tables
from peft_bench.report.tuning import chosen_rates
from peft_methods.attach import attach

BACKBONES = {"bert": "bert_base_uncased", "roberta": "roberta_base", "t5": "t5_large_lm_adapt", "gpt2": "gpt2"}
GRID = [name for name in choices("experiment") if name.startswith("grid/") and "ablation" not in name]
SHORT = {"prompt": "length=3", "embedding_only": "length=3", "pfeiffer_shared": "bottleneck_dim=4"}


@pytest.mark.parametrize("model_type", BACKBONES)
def test_a_method_is_in_the_grid_where_it_can_be_attached(model_type: str):
    register()
    scale = compose_run([]).scale
    backbone = load_backbone(backbone_choice(BACKBONES[model_type]), scale, None, torch.device("cpu"), 0)
    found = set()
    for name in choices("method"):
        in_the_grid = any(row.endswith(f"_{name}") for row in GRID)  # a new method need not be: it has no rate yet
        if not in_the_grid or (name == "head_only" and writes_text(model_type)):
            continue
        method = build_method(method_choice(name, SHORT.get(name, "")))
        try:
            attached = attach(backbone.model, [method], tokenizer=backbone.tokenizer)
        except ValueError:
            continue
        attached.detach()
        found.add(name)
    assert {name.rpartition("/")[2] for name in GRID if f"/{model_type}_" in name} == {
        f"{model_type}_{m}" for m in found
    }


def test_every_method_has_the_same_tuning_budget():
    jobs = [job for multirun in load_sweep("grid_tuning") for job in expand(multirun)]
    budget = Counter(next(word for word in job if word.startswith("experiment=")) for job in jobs)
    assert set(budget) == {f"experiment={name}" for name in GRID}
    assert set(budget.values()) == {4 * 3}
    assert {word for job in jobs for word in job if word.startswith("seed=")} == {"seed=1000"}


def test_the_sweep_runs_the_whole_matrix():
    jobs = [job for multirun in load_sweep("grid") for job in expand(multirun)]
    assert len(jobs) == 8 * len(GRID) == 8 * 59
    ablation = [job for multirun in load_sweep("lora_ablation") for job in expand(multirun)]
    assert len(ablation) == 8 * 19


@pytest.mark.parametrize("name", GRID)
def test_a_cell_of_the_grid_is_its_own_setting(name: str):
    kind, _, row = name.removeprefix("grid/").partition("/")
    model_type, _, method = row.partition("_")
    cfg = compose_run([f"experiment={name}", "task=glue/rte"])
    assert (cfg.experiment, cfg.scale.name, cfg.backbone.name) == (name, "micro", BACKBONES[model_type])
    assert cfg.method["_target_"] == method_choice(method)["_target_"]
    assert kind == {"t5": "text_to_text", "gpt2": "generation"}.get(model_type, "classification")


def test_the_ablation_has_equal_budgets_and_ranks():
    sizes = {}
    for name in choices("experiment"):
        if name.startswith("grid/lora_ablation/"):
            cfg = compose_run([f"experiment={name}", "task=glue/rte"])
            row = name.rpartition("/")[2]
            assert cfg.method["alpha"] == cfg.method["rank"] == int(row.partition("_r")[2])
            sizes[row] = cfg.method["rank"] * len(cfg.method["targets"])
    equal = ("q_r8", "k_r8", "v_r8", "o_r8", "qk_r4", "qv_r4", "qkvo_r2")
    assert {sizes[row] for row in equal} == {8}
    assert {(t, r) for t in ("q", "qv", "qkvo") for r in (1, 2, 4, 8, 64)} <= {
        (row.partition("_r")[0], int(row.partition("_r")[2])) for row in sizes
    }


def test_a_grid_run_reaches_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from dataclasses import asdict

    from peft_bench.runs.run import How, run

    words = ["task=glue/cola", f"results_dir={tmp_path}", "trainer.max_steps=2", "trainer.evaluate_every_steps=2"]
    cfg = compose_run(["experiment=grid/text_to_text/t5_lora", *words])
    assert run(cfg, How(show_progress=False)).status == "done"
    assert set(departures(asdict(cfg))) == {"trainer.max_steps", "trainer.evaluate_every_steps"}
    assert main(["--results", str(tmp_path)]) == 0
    page = (tmp_path / "tables" / "grid_text_to_text.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| t5 lora")]
    assert line.count("—") == 9  # seven tasks, MNLI twice, and no average over what is not there
    assert not (tmp_path / "tables" / "grid_generation.md").exists()
    cells = pd.read_csv(tmp_path / "tables" / "grid_text_to_text.csv")
    assert set(cells["experiment"]) == {
        row.experiment for t in read_tables("micro") if t.name == "grid_text_to_text" for row in t.rows
    }
    capsys.readouterr()


def test_tuning_chooses_by_experiment():
    lines = [
        {"experiment": e, "task": t, "learning_rate": rate, "score": score, "split": "v", "metric": "m",
         "checkpoint": "best", "selection_split": "v", "selection_metric": "m", "selection_checkpoint": "best"}
        for e, best in (("grid/generation/gpt2_lora", 0.01), ("grid/generation/gpt2_full", 0.001))
        for t in ("cola", "mnli")
        for rate in (0.001, 0.01)
        for score in [1.0 if rate == best else 0.5]
    ]  # fmt: skip
    assert chosen_rates(pd.DataFrame(lines))["best"].to_dict() == {
        "grid/generation/gpt2_lora": 0.01,
        "grid/generation/gpt2_full": 0.001,
    }
    assert (CONF_DIR / "sweep" / "grid.yaml").is_file()
