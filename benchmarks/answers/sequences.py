"""Sources and targets as token ids, and the batches made of them: what every task shares that a backbone writes.

    T5     encoder: source </s>                  decoder: target </s>
    BART   encoder: <s> source </s>              decoder: <s> target </s>
    GPT-2  source <|endoftext|> target <|endoftext|>, as in Li & Liang's and LoRA's released code

N rows of a split, B rows of a batch, T tokens of the longest source, U of the longest target.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config.schema import TrainerConfig
from ..tasks.examples import DataError
from .one_run import all_finite
from .tokens import Tokens, tokenize_texts

IGNORED = -100  # label where nothing is to be predicted: cross_entropy's default


class Sequences:
    """Texts of one task for one backbone. decoder_start: the id that its decoder begins with; None where source and
    target are one sequence (GPT-2). separator: an end token stands behind a source, too."""

    def __init__(
        self,
        trainer: TrainerConfig,
        tokenizer: PreTrainedTokenizerBase,
        decoder_start: int | None,
        separator: bool = True,
    ):
        self.trainer, self.tokenizer, self.decoder_start, self.separator = trainer, tokenizer, decoder_start, separator
        self.decoder_only = decoder_start is None
        self.notes: list[str] = []
        self.end = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.end
        # BART begins every text with a token, T5's tokenizer has none.
        self.begin = [] if self.decoder_only or tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    def pairs(
        self, sources: Sequence[str], targets: Sequence[str], labels: np.ndarray, max_length: int,
        target_tokens: int | None = None,
    ) -> Tokens:  # fmt: skip
        """Sources and targets as ids, an end token behind each. A source that is too long loses tokens at its end, as
        does a target of more than target_tokens, special ones included.

        Raises DataError where max_length leaves no room for a source.
        """
        written = tokenize_texts(targets, self.tokenizer)
        if target_tokens is not None:
            written = [ids[: target_tokens - 1 - len(self.begin)] for ids in written]
        room = self._room(written, max_length)
        self._check_room(room, max_length)
        read = [ids[:room] for ids in tokenize_texts(sources, self.tokenizer)]
        return Tokens(
            *flat([self.ended(ids) for ids in read]),
            labels=labels,
            targets=flat([[*self.begin, *ids, self.end] for ids in written]),
        )

    def room(self, targets: Sequence[str], max_length: int) -> int:
        """How many tokens of a source max_length leaves beside the longest of the targets."""
        return self._room(tokenize_texts(targets, self.tokenizer), max_length)

    def _room(self, written: Sequence[Sequence[int]], max_length: int) -> int:
        longest = max(map(len, written))
        return max_length - 1 - len(self.begin) - (longest + 1 if self.decoder_only else 0)

    def ended(self, source: list[int]) -> list[int]:
        """A source with the tokens that begin and end it, if any do."""
        return [*self.begin, *source, self.end] if self.separator else source

    def read_length(self, positions: int | None = None) -> int:
        """How many tokens a source that is answered may have, those around it included: an encoder has a limit of its
        own there, or none but its positions."""
        if self.decoder_only or self.trainer.eval_max_length is None:
            return self.trainer.max_length
        return self.trainer.eval_max_length or positions or sys.maxsize

    def _check_room(self, room: int, max_length: int) -> None:
        if room < 1 or (self.decoder_only and max_length > self.tokenizer.model_max_length):
            raise DataError(
                f"trainer.max_length={max_length}, expected {max_length - room + 1} to "
                f"{self.tokenizer.model_max_length} tokens for {self.tokenizer.name_or_path}; change "
                "trainer.max_length"
            )

    def training_batch(self, tokens: Tokens, rows: np.ndarray) -> dict[str, Tensor]:
        """input_ids, attention_mask, decoder_input_ids (T5, BART) or boundary (GPT-2), and labels: the token
        to be written next at each position, IGNORED where there is none; all (B, T) or (B, U) int64."""
        return self.batch(tokens.rows(rows), tokens.target_rows(rows))

    def batch(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The same of ids."""
        if not self.decoder_only:
            inputs, mask = padded(sources, self.pad)
            shifted, _ = padded([np.concatenate([[self.decoder_start], ids[:-1]]) for ids in targets], self.pad)
            labels, _ = padded(targets, IGNORED)
            return {"input_ids": inputs, "attention_mask": mask, "decoder_input_ids": shifted, "labels": labels}
        inputs, mask = padded([np.concatenate([s, t[:-1]]) for s, t in zip(sources, targets, strict=True)], self.pad)
        nothing = [np.full(len(s) - 1, IGNORED) for s in sources]
        labels, _ = padded([np.concatenate([n, t]) for n, t in zip(nothing, targets, strict=True)], IGNORED)
        return {"input_ids": inputs, "attention_mask": mask, "boundary": _separators(sources), "labels": labels}

    def flags(self) -> list[str]:
        """What a reader of the record must know of what was read."""
        return []

    def weight(self, tokens: Tokens, rows: np.ndarray) -> int:
        """Tokens to be written; examples where the loss is summed over the tokens of each."""
        if self.trainer.loss_reduction == "example_sum":
            return len(rows)
        return sum(map(len, tokens.target_rows(rows)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy summed over the tokens to be written, with the trainer's smoothing and z-loss."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 logits, full-precision loss
        smoothing = self.trainer.label_smoothing
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        if smoothing:  # LoRA's code: (1 - s) NLL + s times the mean over the vocabulary of -log p
            mean = -F.log_softmax(logits, dim=-1).mean(-1)[labels != IGNORED].sum()
            loss = (1 - smoothing) * loss + smoothing * mean
        if self.trainer.z_loss:
            log_z = torch.logsumexp(logits, dim=-1)[labels != IGNORED]
            loss = loss + self.trainer.z_loss * log_z.square().sum()
        return loss

    def question_batch(self, tokens: Tokens, rows: np.ndarray) -> dict[str, Tensor]:
        """The sources alone, to be answered."""
        sources = tokens.rows(rows)
        inputs, mask = padded(sources, self.pad)
        batch = {"input_ids": inputs, "attention_mask": mask}
        return batch | ({"boundary": _separators(sources)} if self.decoder_only else {})


def target_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) float64: cross-entropy summed over the target tokens of each row, without label smoothing; NaN where their
    logits were not finite, those of other tokens included."""
    each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    unknown = ~all_finite(logits) & (labels != IGNORED)
    return each.view(labels.shape).double().masked_fill(unknown, math.nan).sum(1)


def _separators(sources: Sequence[np.ndarray]) -> Tensor:
    """(B,) the last token of each source: an infix stands before it, so that it predicts the target having seen it."""
    return torch.tensor([len(source) - 1 for source in sources])


def padded(rows: Sequence[np.ndarray], value: int) -> tuple[Tensor, Tensor]:
    """(B, T) int64 ids, padded on the right, and their mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    table = np.full(mask.shape, value, dtype=np.int64)
    table[mask] = np.concatenate(rows)
    return torch.from_numpy(table), torch.from_numpy(mask.astype(np.int64))


def flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all rows one after the other, int32, and the offsets of the rows (N + 1,)."""
    ids = np.fromiter((number for row in rows for number in row), dtype=np.int32)
    return ids, np.cumsum([0, *map(len, rows)])
