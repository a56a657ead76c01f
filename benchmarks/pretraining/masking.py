"""Masked language modelling on sentence pairs: batches and loss.

Dynamic masking: a share of the tokens, drawn anew for every batch; of these 80% become the mask token, 10% another,
10% stay. Devlin et al. 2019, arXiv:1810.04805, section 3.1; Liu et al. 2019, arXiv:1907.11692, section 4.1.

Shapes   B batch, T tokens, H hidden_size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertForPreTraining, PreTrainedModel, PreTrainedTokenizerBase

_IGNORED = -100  # cross_entropy's index for tokens that were not masked


class PairStream:
    """Endless masked batches of adjacent sentence pairs, in an order and with masks that the seed fixes.

    The generator draws on numpy alone, so that the data does not depend on how the model uses torch's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        documents: Sequence[Sequence[str]],
        batch_size: int,
        seed: int,
        next_sentence: bool,
        mask_probability: float = 0.3,
    ) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.next_sentence, self.mask_probability = next_sentence, mask_probability
        self.foreign = 0.0  # share of the pairs whose second sentence is from another document
        self.single = False  # one sentence of each pair instead of both
        self.rng = np.random.default_rng(seed)
        lines = [line for document in documents for line in document]
        self.ids: list[list[int]] = tokenizer(lines, add_special_tokens=False)["input_ids"]
        ends = np.cumsum([len(document) for document in documents])
        self.firsts = np.setdiff1d(np.arange(len(lines)), ends - 1)  # sentences that another one follows
        self.lengths = np.array([len(ids) for ids in self.ids])
        self.order = np.empty(0, dtype=np.int64)
        self.waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def batch(self) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels, token_type_ids (B, T) and follows (B,): 0 yes, 1 another document."""
        if not self.waiting:
            self._refill()
        firsts, seconds, foreign = self.waiting.pop()
        return self.mask(self._pairs(firsts, seconds)) | {"follows": torch.from_numpy(foreign.astype(np.int64))}

    def _refill(self, pool: int = 32) -> None:
        """Draw the pairs of `pool` batches and sort them by length before cutting: padding costs a third otherwise."""
        size = self.batch_size
        while len(self.order) < pool * size:
            self.order = np.concatenate([self.order, self.rng.permutation(self.firsts)])
        firsts, self.order = self.order[: pool * size], self.order[pool * size :]
        foreign = self.rng.random(len(firsts)) < self.foreign
        seconds = np.where(foreign, self.rng.integers(len(self.ids), size=len(firsts)), firsts + 1)
        by_length = np.argsort(self.lengths[firsts] + self.lengths[seconds], kind="stable")
        batches = by_length.reshape(pool, size)
        self.waiting = [(firsts[rows], seconds[rows], foreign[rows]) for rows in self.rng.permutation(batches)]

    def _pairs(self, firsts: np.ndarray, seconds: np.ndarray) -> dict[str, np.ndarray]:
        tokenizer = self.tokenizer
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        middle = [end] if self.next_sentence else [end, end]  # <s> a </s></s> b </s>
        rows, types = [], []
        for first, second in zip(firsts, seconds, strict=True):
            if self.single:
                sentence = self.ids[first if self.rng.random() < 0.5 else second]
                rows.append([start, *sentence, end])
                types.append([0] * len(rows[-1]))
                continue
            a, b = [start, *self.ids[first], *middle], [*self.ids[second], end]
            rows.append(a + b)
            types.append([0] * len(a) + [int(self.next_sentence)] * len(b))
        length = max(map(len, rows))
        pad = tokenizer.pad_token_id
        return {
            "input_ids": np.array([row + [pad] * (length - len(row)) for row in rows]),
            "token_type_ids": np.array([row + [0] * (length - len(row)) for row in types]),
        }

    def mask(self, pairs: dict[str, np.ndarray]) -> dict[str, Tensor]:
        ids, tokenizer = pairs["input_ids"], self.tokenizer
        candidates = ~np.isin(ids, tokenizer.all_special_ids)
        chosen = candidates & (self.rng.random(ids.shape) < self.mask_probability)
        if not chosen.any():  # a batch of one short pair; a loss over nothing is not a number
            chosen.flat[np.flatnonzero(candidates)[0]] = True
        fate = self.rng.random(ids.shape)
        corrupted = np.where(chosen & (fate < 0.8), tokenizer.mask_token_id, ids)
        random_ids = self.rng.integers(len(tokenizer), size=ids.shape)
        corrupted = np.where(chosen & (fate >= 0.9), random_ids, corrupted)
        arrays = pairs | {
            "input_ids": corrupted,
            "labels": np.where(chosen, ids, _IGNORED),
            "attention_mask": (ids != tokenizer.pad_token_id).astype(np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def mlm_loss(model: PreTrainedModel, batch: dict[str, Tensor], next_sentence: bool = True) -> Tensor:
    """Mean cross-entropy of the masked tokens, plus for BERT that of "does it follow?".

    The vocabulary's logits are computed for masked positions only: (masked, V) instead of (B, T, V).
    """
    names = ["input_ids", "attention_mask", "token_type_ids"]
    outputs = model.base_model(**{name: batch[name] for name in names})
    masked = batch["labels"] != _IGNORED
    hidden = outputs.last_hidden_state[masked]  # (masked, H)
    if not isinstance(model, BertForPreTraining):
        return F.cross_entropy(model.lm_head(hidden), batch["labels"][masked])
    loss = F.cross_entropy(model.cls.predictions(hidden), batch["labels"][masked])
    if next_sentence and batch["follows"].any():
        loss = loss + F.cross_entropy(model.cls.seq_relationship(outputs.pooler_output), batch["follows"])
    return loss
