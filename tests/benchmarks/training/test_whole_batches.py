"""A step of every kind of answer against transformers' own loss of the whole batch: the loss that is logged, the
gradient, and what clipping and Adafactor make of its size. Ours comes in pieces of unequal numbers of rows and tokens
to write, so that a piece, an example or a token with a wrong weight shows."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForSequenceClassification, PreTrainedModel, RobertaForSequenceClassification
from transformers.trainer_pt_utils import LabelSmoother

from peft_bench.answers.job import Job, make_job
from peft_bench.answers.tokens import Tokens
from peft_bench.backbones.loading import load_backbone
from peft_bench.config.compose import compose_run
from peft_bench.tasks.examples import RunData
from peft_bench.tasks.loading import load_task
from peft_bench.training.loop import Run, data_order, train
from peft_bench.training.optimizers import make_optimizer, make_schedule
from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.baselines import Full
from peft_methods.heads import ClassificationHead
from peft_methods.protocols import ParameterGroup
from tests.benchmarks.conftest import first_rows

UNEQUAL = "task.micro_text.labels=[far from good,good]"
SUMMED, SMOOTHED = "trainer.loss_reduction=example_sum", "trainer.label_smoothing=0.1"
ADAFACTOR = ("trainer.optimizer=adafactor", "trainer.parameter_scaling=true", "trainer.weight_decay=1e-3")
CASES = {
    "a class, BERT": ("backbone=bert_base_uncased", "task=glue/mnli"),
    "a class, RoBERTa": ("backbone=roberta_base", "task=glue/sst2"),
    "a number, BERT": ("backbone=bert_base_uncased", "task=glue/stsb"),
    "a number, RoBERTa": ("backbone=roberta_base", "task=glue/stsb"),
    "words, T5": ("backbone=t5_v1_1_small", "task=glue/sst2", UNEQUAL),
    "words, T5, Adafactor": ("backbone=t5_v1_1_small", "task=glue/sst2", UNEQUAL, *ADAFACTOR),
    "words, T5, sums": ("backbone=t5_v1_1_small", "task=glue/sst2", UNEQUAL, SUMMED),
    "words, GPT-2": ("backbone=gpt2", "task=glue/sst2", UNEQUAL),
    "words, GPT-2, sums": ("backbone=gpt2", "task=glue/sst2", UNEQUAL, SUMMED),
    "text, T5, Adafactor": ("backbone=t5_v1_1_small", "task=e2e", "decoding=greedy", *ADAFACTOR),
    "text, T5, sums, Adafactor": ("backbone=t5_v1_1_small", "task=e2e", "decoding=greedy", SUMMED, *ADAFACTOR),
    "text, BART": ("backbone=bart_large", "task=e2e", "decoding=greedy"),
    "text, BART, sums": ("backbone=bart_large", "task=e2e", "decoding=greedy", SUMMED),
    "text, BART, smoothed": ("backbone=bart_large", "task=e2e", "decoding=greedy", SMOOTHED),
    "text, GPT-2": ("backbone=gpt2", "task=e2e", "decoding=greedy"),
    "text, GPT-2, sums": ("backbone=gpt2", "task=e2e", "decoding=greedy", SUMMED),
}
ROWS, BATCH, STEPS, PIECE = 20, 8, 3, 3  # the last batch has four rows
TRAINER = [
    f"trainer.batch_size={BATCH}", f"trainer.micro_batch_size={PIECE}", "trainer.epochs=1", "trainer.max_length=64",
    "trainer.evaluate_every_steps=1", "trainer.learning_rate=1e-2", "trainer.warmup_ratio=0", "trainer.max_grad_norm=1",
    "trainer.eps=1e-3", "trainer.backbone_dropout=0", "backbone.dtype=float64", "task.test_splits=[]",
]  # fmt: skip
HEADS = {
    "bert": (BertForSequenceClassification, {"out_proj": "classifier"}),
    "roberta": (RobertaForSequenceClassification, {"dense": "classifier.dense", "out_proj": "classifier.out_proj"}),
}


def one_job(*words: str) -> tuple[Attached, Job, PreTrainedModel]:
    """A run of full fine-tuning in float64, without dropout, on the first rows of the task, and its backbone as it was
    before."""
    cfg = compose_run([*TRAINER, *words])
    loaded = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0)
    backbone = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    backbone.model.config.hidden_dropout_prob = 0.0  # of the head
    head = partial(ClassificationHead, backbone.model.config, cfg.task.num_labels)
    heads = [head if backbone.model.config.model_type in HEADS else None]
    attached = attach(backbone.model, [Full()], heads)
    attached.streams[0].backbone = False
    data = first_rows(load_task(cfg.task, cfg.scale, None), ROWS)
    return attached, make_job(cfg, RunData(data, "0"), backbone, attached.positions(0)), copy.deepcopy(loaded.model)


def of_transformers(backbone: PreTrainedModel, head: Any, num_labels: int) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """transformers' own model with the same weights, and its parameters by the names of ours."""
    if head is None:
        return backbone, {f"backbone.{name}": p for name, p in backbone.named_parameters()}
    config = copy.deepcopy(backbone.config)
    config.num_labels = num_labels
    kind, names = HEADS[config.model_type]
    model = kind(config).double().eval()
    base: nn.Module = getattr(model, config.model_type)
    base.load_state_dict(backbone.state_dict(), strict=False)  # RoBERTa's pooler does not train
    found = {f"backbone.{name}": p for name, p in base.named_parameters()}
    for ours, theirs in names.items():
        model.get_submodule(theirs).load_state_dict(head.get_submodule(ours).state_dict())
        found |= {f"head.{ours}.{name}": p for name, p in model.get_submodule(theirs).named_parameters()}
    return model, found


def loss_of_transformers(model: Any, job: Job, rows: np.ndarray) -> Tensor:
    """Of a whole batch, made from the ids alone."""
    tokens, trainer, kind = job.training, job.cfg.trainer, model.config.model_type
    sources = [torch.from_numpy(ids).long() for ids in tokens.rows(rows)]
    if kind in HEADS:
        batch = {"input_ids": padded(sources, model.config.pad_token_id), "attention_mask": mask_of(sources)}
        if tokens.token_type_ids is not None:
            batch["token_type_ids"] = padded(types_of(tokens, rows), 0)
        return model(**batch, labels=torch.from_numpy(tokens.labels[rows])).loss
    targets = [torch.from_numpy(ids).long() for ids in tokens.target_rows(rows)]
    if kind == "gpt2":
        whole = [torch.cat(pair) for pair in zip(sources, targets, strict=True)]
        labels = [torch.cat([torch.full_like(s, -100), t]) for s, t in zip(sources, targets, strict=True)]
        outputs = model(padded(whole, 0), attention_mask=mask_of(whole), labels=padded(labels, -100))
    else:
        outputs = model(padded(sources, 0), attention_mask=mask_of(sources), labels=padded(targets, -100))
    if trainer.label_smoothing:
        return LabelSmoother(trainer.label_smoothing)(outputs, padded(targets, -100))
    summed = trainer.loss_reduction == "example_sum"
    return outputs.loss * sum(map(len, targets)) / len(rows) if summed else outputs.loss


def padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def mask_of(rows: list[Tensor]) -> Tensor:
    return padded([torch.ones_like(ids) for ids in rows], 0)


def types_of(tokens: Tokens, rows: np.ndarray) -> list[Tensor]:
    assert tokens.token_type_ids is not None
    types = torch.from_numpy(tokens.token_type_ids).long()
    return [types[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows]


def steps_of_transformers(model: nn.Module, parameters: dict[str, nn.Parameter], job: Job) -> Iterator[Any]:
    """Each step's loss, its gradients by name, and their norm before it is clipped."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = make_optimizer([ParameterGroup(parameters)], job.cfg.trainer)
    schedule = make_schedule(optimizer, job.cfg.trainer, STEPS)
    order = data_order(job.training.lengths, job.cfg, 0)
    for step in range(STEPS):
        loss = loss_of_transformers(model, job, order[step * BATCH : (step + 1) * BATCH])
        loss.backward()
        gradients = gradients_of(parameters)
        norm = nn.utils.clip_grad_norm_(parameters.values(), job.cfg.trainer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item(), gradients, norm.item()


def gradients_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_whole_batch(case, accelerator, monkeypatch):
    attached, job, plain = one_job(*CASES[case])
    model, theirs = of_transformers(plain, attached.run(0).head, job.cfg.task.num_labels)
    if job.training.targets is not None:
        assert len({*map(len, job.training.target_rows(np.arange(ROWS)))}) > 1
    gradients: list[dict[str, Tensor]] = []
    update: Callable[[Run, Tensor], None] = Run.update

    def look(run: Run, loss: Tensor) -> None:
        gradients.append(gradients_of(run.parameters))
        update(run, loss)

    monkeypatch.setattr(Run, "update", look)
    (run,) = train(attached, [job], accelerator)
    expected = [*steps_of_transformers(model, theirs, job)]
    losses = [point["train_loss"] for point in run.position.history]
    assert losses == pytest.approx([loss for loss, _, _ in expected], rel=1e-5)
    assert max(norm for _, _, norm in expected) > job.cfg.trainer.max_grad_norm  # some are clipped
    assert theirs.keys() == run.parameters.keys()
    for ours, (_, wanted, norm) in zip(gradients, expected, strict=True):
        for name, gradient in wanted.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * norm)
    for name, parameter in theirs.items():
        torch.testing.assert_close(run.parameters[name], parameter, rtol=1e-4, atol=2e-5)
