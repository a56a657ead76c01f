"""Span corruption, T5's own objective: 15% of the tokens in spans of 3 on average. Raffel et al. 2020, section 3.1.4.

    text     to the baker the soup was fine and the bread was stale
    input    to the baker <extra_id_0> was fine and the <extra_id_1> </s>
    target   <extra_id_0> the soup <extra_id_1> bread was stale </s>

As in the released code (t5/data/preprocessors.py: span_corruption, random_spans_noise_mask), read and not copied: all
masks with these numbers of tokens and spans are equally likely, kept and dropped spans alternate, and the first is
kept. So the last is always dropped, a target ends with it and </s>, and there is none of the sentinel <Z> with which
the paper's figure 2 ends. Documents are joined without a token between them and cut so that an input fills its length.

Shapes   B batch, T tokens, N of them dropped, S spans
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .chunks import Packing

NOISE_DENSITY = 0.15
MEAN_SPAN = 3.0
SHORT = 24  # length of an input with one span, about one document


class SpanStream:
    """Endless batches of corrupted chunks; `length` is that of the encoder's input, with sentinels and </s>."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, length: int, seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.packing = Packing(tokenizer(list(texts), add_special_tokens=False)["input_ids"], self.rng)
        self.batch_size, self.length = batch_size, length
        self.short = False  # inputs of length SHORT, and as many more of them
        self.end = tokenizer.eos_token_id
        self.first_sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")

    def batch(self) -> dict[str, Tensor]:
        """input_ids and attention_mask (B, T - N + S + 1), labels and decoder_attention_mask (B, N + S + 1)."""
        length = min(SHORT, self.length) if self.short else self.length
        ids = self.packing.chunks(self.batch_size * self.length // length, text_length(length))
        noise = noise_mask(self.rng, *ids.shape)
        inputs, targets = (self._ended(replace_spans(ids, mask, self.first_sentinel)) for mask in (noise, ~noise))
        return {
            "input_ids": inputs,
            "attention_mask": torch.ones_like(inputs),
            "labels": targets,
            "decoder_attention_mask": torch.ones_like(targets),
        }

    def _ended(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(np.pad(ids, [(0, 0), (0, 1)], constant_values=self.end))


def noise_counts(tokens: int) -> tuple[int, int]:
    """N and S of a text of T tokens; at least one token is dropped and one kept."""
    dropped = min(max(round(tokens * NOISE_DENSITY), 1), tokens - 1)
    return dropped, max(round(dropped / MEAN_SPAN), 1)


def text_length(inputs_length: int) -> int:
    """The most tokens whose corrupted and ended input fits into `inputs_length` (t5: random_spans_helper)."""

    def needed(tokens: int) -> int:
        dropped, spans = noise_counts(tokens)
        return tokens - dropped + spans + 1

    tokens = max(inputs_length - 1, 2)
    while needed(tokens + 1) <= inputs_length:
        tokens += 1
    return tokens


def noise_mask(rng: np.random.Generator, rows: int, tokens: int) -> np.ndarray:
    """(B, T), true where a token is dropped."""
    dropped, spans = noise_counts(tokens)
    kept_lengths = _segments(rng, rows, tokens - dropped, spans)
    dropped_lengths = _segments(rng, rows, dropped, spans)
    lengths = np.stack([kept_lengths, dropped_lengths], axis=2)  # (B, S, 2): kept and dropped in turn
    return np.repeat(np.tile([False, True], rows * spans), lengths.ravel()).reshape(rows, tokens)


def _segments(rng: np.random.Generator, rows: int, items: int, segments: int) -> np.ndarray:
    """(B, S) lengths, none of them zero, that sum to `items`; every way to cut is equally likely."""
    cuts = np.zeros((rows, items - 1), dtype=np.int64)
    cuts[:, : segments - 1] = 1
    segment = np.pad(rng.permuted(cuts, axis=1), [(0, 0), (1, 0)]).cumsum(axis=1)  # (B, items): which one each is in
    return (segment[:, :, None] == np.arange(segments)).sum(axis=1)


def replace_spans(ids: np.ndarray, mask: np.ndarray, first_sentinel: int) -> np.ndarray:
    """(B, T) with every masked span as one sentinel; first_sentinel, then one id less for each further span.

    Every row must mask as many tokens in as many spans as the others: their results have one length.
    """
    before = np.pad(mask[:, :-1], [(0, 0), (1, 0)])
    starts = mask & ~before
    sentinels = first_sentinel + 1 - starts.cumsum(axis=1)
    return np.where(starts, sentinels, ids)[~(mask & before)].reshape(len(ids), -1)
