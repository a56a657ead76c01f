"""A toy task for the training loop: ids and labels made here, run configurations without Hydra."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from peft_bench.answers import of
from peft_bench.answers.classes import ClassAnswers
from peft_bench.answers.job import Job, ScoredSplit
from peft_bench.answers.sequences import flat
from peft_bench.answers.tokens import Split, Tokens
from peft_bench.backbones.loading import Backbone
from peft_bench.backbones.origin import Origin
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import (
    BackboneConfig,
    GenerationConfig,
    RunConfig,
    ScaleConfig,
    TaskConfig,
    TrackingConfig,
    TrainerConfig,
)
from peft_bench.tasks.examples import Gold, TaskData
from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora
from peft_methods.prompt import Prompt
from peft_methods.protocols import Method

METHODS: dict[str, Method] = {
    "lora": Lora(rank=2, alpha=4, dropout=0.1, targets=["query", "value"], init_A="kaiming_uniform"),
    "houlsby": Houlsby(4, "gelu_tanh", "truncated_normal", 0.01, train_layer_norms=True),
    "bitfit": BitFit("all"),
    "prompt": Prompt(5, None, "uniform", (-0.5, 0.5), 40, ()),
}

# Ids that begin, pad and end a tiny backbone's texts.
SPECIAL: dict[str, tuple[int | None, int | None, int]] = {
    "t5_gated": (None, 0, 1),
    "bart": (0, 1, 2),
    "gpt2": (60, None, 60),
}


def first_rows(data: TaskData, n: int) -> TaskData:
    """The first n rows of every split, and of what is asked there."""
    texts = {split: rows[:n] for split, rows in data.texts.items()}
    labels = {split: each[:n] for split, each in data.labels.items()}
    asked = {split: int(labels[split].max()) + 1 for split in data.inputs}
    return dataclasses.replace(
        data,
        texts=texts,
        labels=labels,
        inputs={split: lines[: asked[split]] for split, lines in data.inputs.items()},
        references={split: each[: asked[split]] for split, each in data.references.items()},
    )


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture
def toy_split() -> Callable[..., Tokens]:
    """toy_split(n, num_labels, seed): rows of 3 to 9 tokens; the label follows from the first content token."""

    def build(n: int, num_labels: int = 2, seed: int = 0) -> Tokens:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(3, 10, n)
        ids = rng.integers(5, 61, lengths.sum()).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        first = ids[offsets[:-1]]
        labels = first / 61 * 5 if num_labels == 1 else first % num_labels
        return Tokens(ids, offsets, labels.astype(float if num_labels == 1 else np.int64), np.zeros_like(ids))

    return build


@pytest.fixture
def toy_config() -> Callable[..., RunConfig]:
    """toy_config(seed, num_labels, **trainer fields): a run without Hydra; `method` is not read by the loop."""

    def build(seed: int = 0, num_labels: int = 2, **trainer: Any) -> RunConfig:
        task = TaskConfig(
            name="toy", dataset="glue", hub_id="", subset="toy", text_columns=["sentence"], num_labels=num_labels,
            label_range=[0, 5], validation_splits=["validation"], test_splits=["test"],
            metrics=["pearson"] if num_labels == 1 else ["accuracy"],
            selection_metric="pearson" if num_labels == 1 else "accuracy",
        )  # fmt: skip
        settings: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 8, "max_length": 16}
        return RunConfig(
            backbone=BackboneConfig(name="tiny", model_type="bert", hub_id="", pooler=True, architecture={}),
            method={"_target_": "peft_methods.lora.Lora"}, task=task, trainer=TrainerConfig(**settings | trainer),
            scale=ScaleConfig(name="small", data="published"), tracking=TrackingConfig(), seed=seed,
        )  # fmt: skip

    return build


@pytest.fixture
def toy_pack(tiny_backbone, toy_split, toy_config) -> Callable[..., tuple[Attached, list[Job]]]:
    """toy_pack([("lora", {"seed": 1, "learning_rate": 1e-3}), ...]) -> attached runs and their jobs, on a new BERT."""

    def build(
        runs: list[tuple[str, dict[str, Any]]], dtype: torch.dtype = torch.float32, dropout: float = 0.1
    ) -> tuple[Attached, list[Job]]:
        backbone = tiny_backbone("bert", dtype, dropout=dropout)
        cfgs = [toy_config(**fields) for _, fields in runs]
        heads = [partial(ClassificationHead, backbone.config, cfg.task.num_labels) for cfg in cfgs]
        attached = attach(backbone, [METHODS[name] for name, _ in runs], heads, [cfg.seed for cfg in cfgs])
        jobs = []
        for i, cfg in enumerate(cfgs):
            n = cfg.task.num_labels
            answers = ClassAnswers(cfg, cfg.task, cast(Any, SimpleNamespace(pad_token_id=0)))
            asked = toy_split(20, n, seed=99)
            scored = {"validation": ScoredSplit(answers, Split(asked, asked, Gold(asked.labels)))}
            jobs.append(Job(cfg, answers, toy_split(30 + 5 * i, n, seed=i), scored))
        return attached, jobs

    return build


def written(cfg: RunConfig) -> RunConfig:
    """The same run, of a task that is answered in texts and selected by the loss."""
    generation = GenerationConfig(source_column="", target_column="", source="{text}", target="{text}")
    task = dataclasses.replace(cfg.task, generation=generation, metrics=["loss"], selection_metric="loss")
    return dataclasses.replace(cfg, task=task, decoding=compose_run([]).decoding)


def toy_pairs(toy_split: Callable[..., Tokens], n: int, seed: int, begin: int | None, end: int) -> Tokens:
    """n sources of 3 to 9 tokens and an end, and what is to be written: 2 to 8 tokens and an end, or BART's begin."""
    sources, targets = toy_split(n, seed=seed), toy_split(n, seed=100 + seed)
    rows = np.arange(n)
    first = [] if begin is None or begin == end else [begin]
    return Tokens(
        *flat([[*ids, end] for ids in sources.rows(rows)]),
        labels=np.zeros(n),
        targets=flat([[*first, *ids[1:], end] for ids in targets.rows(rows)]),
    )


@pytest.fixture
def toy_texts(tiny_backbone, toy_split, toy_config) -> Callable[..., tuple[Attached, list[Job]]]:
    """toy_texts("gpt2", runs): as toy_pack, of runs that write, in float64."""

    def build(architecture: str, runs: list[tuple[str, dict[str, Any]]]) -> tuple[Attached, list[Job]]:
        model = tiny_backbone(architecture, torch.float64, dropout=0.1)
        begin, pad, end = SPECIAL[architecture]
        tokenizer = cast(Any, SimpleNamespace(bos_token_id=begin, pad_token_id=pad, eos_token_id=end))
        backbone = Backbone(model, tokenizer, "tiny", "tiny", Origin(False), "")
        cfgs = [written(toy_config(**fields)) for _, fields in runs]
        attached = attach(model, [METHODS[name] for name, _ in runs], seeds=[cfg.seed for cfg in cfgs])
        jobs = []
        for i, cfg in enumerate(cfgs):
            answers = of(cfg, cfg.task, backbone)
            training, asked = (toy_pairs(toy_split, n, seed, begin, end) for n, seed in ((30 + 5 * i, i), (20, 99)))
            scored = {"validation": ScoredSplit(answers, Split(asked, asked, Gold(asked.labels)))}
            jobs.append(Job(cfg, answers, training, scored))
        return attached, jobs

    return build


@pytest.fixture
def replace_trainer() -> Callable[..., RunConfig]:
    def build(cfg: RunConfig, **fields: Any) -> RunConfig:
        return dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, **fields))

    return build
