"""What one run reads of several tasks: those it transfers to, and those of a mixture."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peft_bench.backbones.loading import load_backbone
from peft_bench.config.compose import compose_run
from peft_bench.config.recorded import run_config
from peft_bench.config.schema import RunConfig
from peft_bench.records.store import read_record, record_path
from peft_bench.runs.attach import attach_pack
from peft_bench.runs.checks import check_config
from peft_bench.runs.parents import prepare_all
from peft_bench.runs.run import run_pack
from peft_bench.tasks.loading import load_run_data, load_task


def config(*words: str) -> RunConfig:
    return compose_run(["backbone=t5_v1_1_small", "method=prompt", "decoding=greedy", "scale=small", *words])


def test_a_run_is_scored_on_the_tasks_it_transfers_to(tmp_path: Path):
    """Trained on questions about the town, scored on those about the sea; and from duplicates to paraphrases."""
    short = (
        "scale=micro", "trainer.max_steps=4", "trainer.evaluate_every_steps=2", "trainer.max_length=64",
        "method.length=3", "trainer.optimizer=adafactor", "trainer.learning_rate=0.3", f"results_dir={tmp_path}",
    )  # fmt: skip
    squad = config("task=squad", *short)
    sea = compose_run(["task=squad_sea"]).task
    squad.transfer = {"sea": sea}
    mrpc = config("task=glue/qqp", *short)
    mrpc.transfer = {"mrpc": compose_run(["task=glue/mrpc"]).task}
    for cfg, split, metric, n in ((squad, "sea/validation", "squad_f1", 1000), (mrpc, "mrpc/test", "f1", 2000)):
        (outcome,) = run_pack([cfg])
        record = read_record(record_path(tmp_path, "custom", outcome.run_id))
        found = {(s["split"], s["metric"]): s["n"] for s in record["scores"]}
        assert found[split, metric] == n
        assert f"{split.split('/')[0]}/train" not in record["data"]["rows"]
        assert run_config(record["config"]).transfer == cfg.transfer
        alone = load_task(cfg.task, cfg.scale, None)
        assert load_run_data(cfg).sha256 != alone.sha256
    mrpc.transfer = {"squad": squad.task}
    with pytest.raises(ValueError, match=r"transfer.squad is squad with num_labels=0, the run is trained on qqp"):
        check_config(mrpc)


def test_a_mixture_is_trained_on_together_and_one_task_of_it_is_scored(tmp_path: Path):
    """Each row once, its task's name in front; labels, scores and texts in one mixture."""
    short = (
        "scale=micro", "trainer.max_steps=2", "trainer.evaluate_every_steps=2", "trainer.max_length=64",
        "task.test_splits=[]", "method=full", "trainer.optimizer=adafactor", "trainer.parameter_scaling=true",
        "backbone=t5_v1_1_small",
        f"results_dir={tmp_path}",
    )  # fmt: skip
    cfg = config("task=glue/sst2", *short)
    others = {name: config(f"task={choice}").task for name, choice in (("stsb", "glue/stsb"), ("squad", "squad"))}
    cfg.mixture = others | {"sst2": cfg.task}
    check_config(cfg)
    (p,) = prepare_all([cfg])
    backbone = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0)
    pack = attach_pack([p], backbone)
    pack.attached.detach()
    (job,) = pack.jobs
    rows = [
        len(load_task(task, cfg.scale, None).texts["train"]) for task in (cfg.task, others["squad"], others["stsb"])
    ]
    assert len(job.training) == sum(rows)

    def shown(row: int) -> tuple[str, str]:
        ids = (job.training.rows(np.array([row]))[0], job.training.target_rows(np.array([row]))[0])
        source, target = (backbone.tokenizer.decode(each, skip_special_tokens=True) for each in ids)
        return source, target

    first = np.cumsum([0, *rows[:-1]])
    for row, name in zip(first, ("sst2", "squad", "stsb"), strict=True):
        source, target = shown(int(row))
        assert source.startswith(f"{name} ")
        assert target
    assert shown(int(first[2]))[1].replace(".", "").isdigit()
    assert backbone.tokenizer.decode(job.scored["validation"].split.questions.rows(np.array([0]))[0]).startswith(
        "sst2 "
    )
    assert {*job.scored} == {"validation"}
    (outcome,) = run_pack([cfg])
    record = read_record(record_path(tmp_path, "custom", outcome.run_id))
    assert record["data"]["rows"] == {"train": 2400, "validation": 500} | {
        f"{name}/train": n for name, n in zip(("squad", "stsb"), rows[1:], strict=True)
    }
    assert {score["split"] for score in record["scores"]} == {"validation"}
    assert run_config(record["config"]).mixture == cfg.mixture
    alone = config("task=glue/sst2", *short)
    assert prepare_all([alone])[0].run_id != outcome.run_id
    boolq = config("task=super_glue/boolq").task
    refused: list[tuple[dict[str, Any], str]] = [
        ({"transfer": {"cola": config("task=glue/cola").task}}, "no task to transfer to"),
        ({"mixture": {"a/b": others["stsb"]}}, "no slash in the name"),
        ({"mixture": {"boolq": boolq}}, "has no text form at scale=micro"),
    ]
    for change, message in refused:
        with pytest.raises(ValueError, match=message):
            check_config(dataclasses.replace(cfg, **change))
