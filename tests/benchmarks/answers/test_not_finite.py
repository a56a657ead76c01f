"""Logits that are no numbers: whatever kind of answer they stand for, the run has diverged."""

import copy
import dataclasses
import math
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peft_bench.answers.job import make_job
from peft_bench.answers.one_run import OneRun, all_finite
from peft_bench.answers.sequences import IGNORED, target_losses
from peft_bench.answers.texts import TextAnswers
from peft_bench.backbones.loading import load_backbone
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig
from peft_bench.records.store import read_record
from peft_bench.runs.run import How, run_pack
from peft_bench.tasks.examples import RunData
from peft_bench.tasks.loading import load_task
from peft_bench.training.loop import Run
from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.baselines import Full
from peft_methods.heads import ClassificationHead
from peft_methods.inputs import Batch
from tests.benchmarks.conftest import first_rows

IN_CONTEXT = ("experiment=prompt_tuning/in_context", "in_context=micro_cloze", "task=glue/sst2")
KINDS = {
    "a class": ("backbone=bert_base_uncased", "task=glue/sst2"),
    "a number": ("backbone=roberta_base", "task=glue/stsb"),
    "a label in words": ("backbone=t5_v1_1_small", "task=glue/sst2"),
    "a label in words behind the source": ("backbone=gpt2", "task=glue/sst2"),
    "a number in words": ("backbone=t5_v1_1_small", "task=glue/stsb"),
    "a text": ("backbone=t5_v1_1_small", "task=squad", "decoding=greedy", "task.selection_metric=squad_f1"),
    "a text of a search": (
        "backbone=gpt2", "task=e2e", "decoding=lora_e2e", "decoding.beams=3", "task.metrics=[loss,rouge_l]",
        "task.selection_metric=rouge_l",
    ),
    "a label in context": IN_CONTEXT,
}  # fmt: skip


def config(*words: str) -> RunConfig:
    return compose_run(["threads=1", "device=cpu", *words])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_is_enough(value):
    logits = torch.zeros(2, 3, 5)
    logits[1, 2, 4] = value
    assert all_finite(logits).tolist() == [[True] * 3, [True, True, False]]
    labels = torch.tensor([[1, 2, 3], [1, 2, 3]])
    losses = target_losses(logits, labels)  # at a token that is not the target, where -inf would count nothing
    assert losses[0].item() == pytest.approx(3 * math.log(5))
    assert not losses[1].isfinite()
    labels[1, 2] = IGNORED  # nor is it read
    assert target_losses(logits, labels).isfinite().all()


class Echo(nn.Module):
    """A backbone that gives the logits that it gets."""

    def forward(self, logits: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("step", "hypothesis"), [(0, 2), (1, 3)])
def test_one_hypothesis_at_one_token_is_enough(step, hypothesis, accelerator):
    """Two rows of two hypotheses that write two tokens: the row has diverged, not its neighbor; logits of what was read
    before the last token choose nothing."""
    logits = torch.zeros(2, 4, 3, 5)  # tokens written, hypotheses, tokens read, vocabulary
    logits[:, :, :-1] = math.nan
    logits[step, hypothesis, -1, 0] = math.nan
    backbone = Echo()

    def write(attached: Attached, batches: list[Batch | None]) -> list[Tensor | None]:
        return [torch.stack([backbone(each).logits[::2, -1].argmax(-1) for each in logits], 1)]

    one = OneRun(cast(Attached, SimpleNamespace(backbone=backbone, runs=[None])), 0, accelerator)
    ids, finite = one.generate({"input_ids": torch.zeros(2, 3, dtype=torch.long)}, write)
    assert ids.shape == (2, 2)
    assert finite.tolist() == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_broken_row_are_none(kind, accelerator, monkeypatch):
    """One question of the split holds a token whose embedding is NaN."""
    cfg = config(*KINDS[kind])
    backbone = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0)
    backbone = dataclasses.replace(backbone, model=copy.deepcopy(backbone.model))  # the cached one stays whole
    classifies = kind in ("a class", "a number")
    head = partial(ClassificationHead, backbone.model.config, cfg.task.num_labels) if classifies else None
    attached = attach(backbone.model, [Full()], [head])
    data = first_rows(load_task(cfg.task, cfg.scale, None), 5)
    job = make_job(cfg, RunData(data, "0"), backbone, attached.positions(0))
    scored, one = job.scored["validation"], OneRun(attached, 0, accelerator)
    assert scored.answers.predict(one, scored.split) is not None
    assert scored.answers.validate(one, scored.split) is not None
    assert not backbone.model._forward_hooks  # nothing goes on looking
    questions = scored.split.questions
    counts = Counter(token for row in range(len(questions)) for token in {*questions.rows(np.array([row]))[0].tolist()})
    token = min(token for token, of_rows in counts.items() if of_rows == 1)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[token] = math.nan
    assert scored.answers.predict(one, scored.split) is None
    assert scored.answers.validate(one, scored.split) is None
    if isinstance(scored.answers, TextAnswers):  # either is enough: what it writes, and the loss
        assert scored.answers.decode(one, questions) is None
        monkeypatch.setattr(scored.answers, "decode", lambda *_: [("a text", True)] * len(questions))
        assert scored.answers.predict(one, scored.split) is None


@pytest.mark.parametrize("words", [KINDS["a class"], KINDS["a label in words"], KINDS["a text"]])
def test_a_last_step_to_nan_is_a_diverged_run(words, tmp_path: Path, monkeypatch):
    """The losses before it are numbers, so that only what the run predicts tells."""
    update = Run.update

    def to_nan(run: Run, loss: torch.Tensor) -> None:
        update(run, loss)
        if not run.active:
            with torch.no_grad():
                next(iter(run.parameters.values())).fill_(math.nan)

    monkeypatch.setattr(Run, "update", to_nan)
    short = ("trainer.max_steps=2", "trainer.max_length=64", "trainer.learning_rate=1e-3", "method=lora")
    cfg = config(*words, *short, f"results_dir={tmp_path}")
    (outcome,) = run_pack([cfg], How(show_progress=False))
    assert (outcome.status, outcome.kind) == ("failed", "diverged")
    assert "the predictions on validation were not finite at step 2" in outcome.message


@pytest.mark.parametrize("broken", ["validation", "test"])
def test_a_checkpoint_without_numbers_on_a_split_is_a_diverged_run(broken, tmp_path: Path, monkeypatch):
    """Of a run that trains nothing, or on a split that is scored only at the end."""
    cfg = config(*IN_CONTEXT, f"results_dir={tmp_path}")
    sizes = {split: len(rows) for split, rows in load_task(cfg.task, cfg.scale, None).texts.items()}
    by_batches = OneRun.by_batches

    def on_one_split(one, tokens, size, answer, title=None):
        answers = by_batches(one, tokens, size, answer, title)
        return [math.nan, *answers[1:]] if len(tokens) == sizes[broken] else answers

    assert len({*sizes.values()}) == len(sizes)
    monkeypatch.setattr(OneRun, "by_batches", on_one_split)
    (outcome,) = run_pack([cfg], How(show_progress=False))
    assert (outcome.status, outcome.kind) == ("failed", "diverged")
    assert f"the predictions of the last checkpoint on {broken} were not finite" in outcome.message
    (record,) = (read_record(path) for path in tmp_path.rglob("*.failed.json"))
    assert record["flags"] == ["nan_loss"]
