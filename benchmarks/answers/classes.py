"""A task with labels that a head answers: a class, or a number for regression."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config.schema import RunConfig, TaskConfig
from ..metrics.scores import label_scores
from ..tasks.examples import TaskData
from .one_run import OneRun
from .predictions import Labels
from .tokens import Split, Tokens, collate, tokenize


class ClassAnswers:
    """with_token_types: the backbone tells a row's first and second text apart."""

    def __init__(
        self, cfg: RunConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, with_token_types: bool = False
    ):
        self.task, self.trainer, self.tokenizer, self.with_token_types = task, cfg.trainer, tokenizer, with_token_types
        self.notes: list[str] = []
        self.regression = task.num_labels == 1

    def tokenize(self, data: TaskData) -> dict[str, Split]:
        """Every split as ids, special ones included. Raises DataError for an impossible length."""
        splits = tokenize(data, self.tokenizer, self.trainer.max_length, self.with_token_types)
        return {name: Split(tokens, tokens, data.gold(name)) for name, tokens in splits.items()}

    def training_batch(self, tokens: Tokens, rows: np.ndarray) -> dict[str, Tensor]:
        """The batch of these rows (B,), `labels` included."""
        return collate(tokens, rows, self.tokenizer.pad_token_id)

    def weight(self, tokens: Tokens, rows: np.ndarray) -> int:
        """Examples."""
        return len(rows)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or squared error for regression, summed over the examples."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 logits, full-precision loss
        if self.regression:
            return F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="sum")
        return F.cross_entropy(logits, labels, reduction="sum")

    def predict(self, one: OneRun, split: Split, title: str | None = None) -> Labels | None:
        """The class of the highest logit, or the raw value; None where the logits were not finite."""

        def answer(rows: np.ndarray) -> np.ndarray:
            values = one(self.training_batch(split.questions, rows)).float().cpu().numpy()
            if self.regression:
                return values[:, 0].astype(np.float32)
            return np.where(np.isfinite(values).all(1), values.argmax(1), np.nan)

        values = np.array(one.by_batches(split.questions, self.trainer.eval_batch_size, answer), dtype=np.float64)
        if not np.isfinite(values).all():
            return None
        return Labels(values.astype(np.float32 if self.regression else np.int64))

    def validate(self, one: OneRun, split: Split) -> dict[str, float] | None:
        """Every metric of the task; None where the logits were not finite."""
        labels = self.predict(one, split)
        return None if labels is None else label_scores(self.task, labels.values, split.gold.labels, split.gold.groups)

    def flags(self) -> list[str]:
        """Nothing is lost in reading."""
        return []
