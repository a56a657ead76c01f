"""Prefix language modelling: the encoder reads the first part of a document, the decoder writes the rest.

The objective of LM adaptation (Lester et al. 2021, arXiv:2104.08691, section 3.2), which continues a checkpoint of
span_corruption.py for a tenth of its steps, here for three quarters. Raffel et al. 2020, section 3.1.4; as in the
released code (t5's prefix_lm and random_prefix_noise_mask), documents are cut into chunks but not joined, and the split
is uniform.

Shapes   B batch, T tokens of the longest part
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_IGNORED = -100  # cross_entropy's index for padding


class PrefixStream:
    """Endless padded batches of split documents; `length` is that of the longest chunk with its </s>."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, length: int, seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        documents = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        cut = [ids[start : start + length - 1] for ids in documents for start in range(0, len(ids), length - 1)]
        self.chunks = [chunk for chunk in cut if len(chunk) > 1]  # one token cannot be split
        self.batch_size = batch_size
        self.end, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.order = np.empty(0, dtype=np.int64)

    def batch(self) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels and decoder_attention_mask (B, T of the encoder's or decoder's part)."""
        while len(self.order) < self.batch_size:
            self.order = np.concatenate([self.order, self.rng.permutation(len(self.chunks))])
        rows, self.order = np.split(self.order, [self.batch_size])
        parts = [split(self.rng, self.chunks[row]) for row in rows]
        prefixes, rests = (padded([[*ids, self.end] for ids in side]) for side in zip(*parts, strict=True))
        return {
            "input_ids": prefixes.masked_fill(prefixes == _IGNORED, self.pad),
            "attention_mask": (prefixes != _IGNORED).long(),
            "labels": rests,
            "decoder_attention_mask": (rests != _IGNORED).long(),
        }


def split(rng: np.random.Generator, ids: list[int]) -> tuple[list[int], list[int]]:
    """Prefix and rest, neither of them empty; the prefix's length is uniform in [1, len(ids))."""
    at = int(rng.integers(1, len(ids)))
    return ids[:at], ids[at:]


def padded(rows: Sequence[list[int]]) -> Tensor:
    """(B, T), filled up with the ignored index."""
    length = max(map(len, rows))
    return torch.tensor([row + [_IGNORED] * (length - len(row)) for row in rows])
