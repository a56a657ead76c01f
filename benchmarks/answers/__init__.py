"""How a task is put to a backbone, and what its outputs mean: by a head, by a label in words, or by a text."""

import dataclasses
from typing import Protocol

import numpy as np
from torch import Tensor

from ..backbones.loading import Backbone
from ..config.kinds import kind_of
from ..config.schema import RunConfig, TaskConfig, generation_of
from ..tasks.examples import TaskData
from .classes import ClassAnswers
from .in_context import InContextAnswers
from .one_run import OneRun
from .predictions import Predictions
from .texts import TextAnswers
from .tokens import Split, Tokens
from .words import WordAnswers


class Answers(Protocol):
    """One task for one backbone. notes: what the log should say of what was read. B rows of a batch."""

    task: TaskConfig
    notes: list[str]

    def tokenize(self, data: TaskData) -> dict[str, Split]:
        """Every split as ids. Raises DataError for what cannot be read or answered."""

    def training_batch(self, tokens: Tokens, rows: np.ndarray) -> dict[str, Tensor]:
        """The batch of these rows (B,), `labels` included."""

    def weight(self, tokens: Tokens, rows: np.ndarray) -> int:
        """What a step's summed loss is divided by: examples, or tokens to be written."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, summed."""

    def predict(self, one: OneRun, split: Split, title: str | None = None) -> Predictions | None:
        """What a run answers to a split; None where the model gave no finite numbers. title: of a progress bar."""

    def validate(self, one: OneRun, split: Split) -> dict[str, float] | None:
        """A run's scores on a validation split during training; None where the model gave no finite numbers."""

    def flags(self) -> list[str]:
        """What a reader of the run's record must know of what was read."""


def of(
    cfg: RunConfig, task: TaskConfig, backbone: Backbone, positions: int | None = None, own: Answers | None = None
) -> Answers:
    """How a run answers a task. positions: those that its method leaves to the text. own: how it answers the task that
    it was trained on, where this is one that it transfers to."""
    config, tokenizer = backbone.model.config, backbone.tokenizer
    kind = kind_of(config.model_type)
    if kind.model is None:
        return ClassAnswers(cfg, task, tokenizer, with_token_types=getattr(config, "type_vocab_size", 0) > 1)
    start = None if kind.decoder_only else int(config.decoder_start_token_id)
    task = dataclasses.replace(task, target_prefix=cfg.task.target_prefix)
    if generation_of(task, cfg.scale) is not None:
        return TextAnswers(cfg, task, tokenizer, start, positions)
    if cfg.in_context is not None:
        return InContextAnswers(cfg, task, tokenizer, start)
    return WordAnswers(cfg, task, tokenizer, start, own if isinstance(own, WordAnswers) else None)
