"""One run's part in a pack: its configuration, its examples, and what the loop does with them.

A backbone with a head classifies; one that writes is trained on the tokens of the answer and answers by writing: a
label in words (`writer`), or a text that is compared with references (`texts`).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from ..config.schema import RunConfig
from .sequences import IGNORED, Sequences
from .texts import TextWriter
from .tokens import TokenizedSplit, collate
from .words import Writer


@dataclass
class Job:
    """writer, texts: None where the run classifies, at most one of them. transfers: the writers of the tasks that the
    run is scored on besides. references, truth: of the inputs of each split,
    for the scores of texts during training."""

    cfg: RunConfig
    data: dict[str, TokenizedSplit]
    pad_token_id: int
    writer: Writer | None = None
    texts: TextWriter | None = None
    transfers: dict[str, Writer] = field(default_factory=dict)
    references: dict[str, list[list[str]]] = field(default_factory=dict)
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def train_split(self) -> TokenizedSplit:
        """What the run trains on."""
        return self.data[self.cfg.task.train_split]

    @property
    def sequences(self) -> Sequences | None:
        """What makes the batches of a backbone that writes."""
        return self.writer or self.texts

    def training_batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The batch of these training rows (B,), `labels` included."""
        return self.labelled_batch(self.train_split, rows)

    def labelled_batch(self, split: TokenizedSplit, rows: np.ndarray) -> dict[str, Tensor]:
        """The batch of these rows (B,), `labels` included."""
        if self.sequences is not None:
            return self.sequences.training_batch(split, rows)
        return collate(split, rows, self.pad_token_id)

    def weight(self, rows: np.ndarray) -> int:
        """What a step's summed loss is divided by: examples, or tokens to be written."""
        if self.sequences is None or self.cfg.trainer.loss_reduction == "example_sum":
            return len(rows)
        return sum(map(len, self.train_split.target_rows(rows)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed over the examples (cross-entropy, or squared error for regression) or the tokens to be written."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 logits, full-precision loss
        if self.sequences is not None:
            smoothing = self.cfg.trainer.label_smoothing
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
            if smoothing:  # LoRA's code: (1 - s) NLL + s times the mean over the vocabulary of -log p
                mean = -F.log_softmax(logits, dim=-1).mean(-1)[labels != IGNORED].sum()
                loss = (1 - smoothing) * loss + smoothing * mean
            if self.cfg.trainer.z_loss:
                log_z = torch.logsumexp(logits, dim=-1)[labels != IGNORED]
                loss = loss + self.cfg.trainer.z_loss * log_z.square().sum()
            return loss
        if self.cfg.task.num_labels == 1:
            return F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="sum")
        return F.cross_entropy(logits, labels, reduction="sum")

    def question_batch(self, split: TokenizedSplit, rows: np.ndarray) -> dict[str, Tensor]:
        """The batch of these rows, to be answered."""
        if self.sequences is not None:
            return self.sequences.question_batch(split, rows)
        return collate(split, rows, self.pad_token_id)

    def answer(self, attached: Attached, k: int, batches: list[Batch | None], split: str) -> np.ndarray:
        """(B,) predicted labels of run k's batch; of a regression its raw values. NaN where logits were not finite."""
        writer = self.transfers.get(split.rpartition("/")[0], self.writer)
        if writer is not None:
            settings = {"max_new_tokens": writer.max_new_tokens, "do_sample": False, "num_beams": 1}
            written = attached.generate(batches, **settings)[k]
            assert written is not None
            return writer.read(written)
        logits = attached(batches)[k]
        assert logits is not None
        values = logits.float().cpu().numpy()
        if self.cfg.task.num_labels == 1:
            return values[:, 0].astype(np.float32)
        return np.where(np.isfinite(values).all(1), values.argmax(1), np.nan)
