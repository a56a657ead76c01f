"""Denoising, BART's own objective: the text again, from one whose sentences are shuffled and whose spans are masked.

    text     to the baker the soup was fine. the bread was stale.
    input    <s> the bread <mask> stale. to the <mask> was fine. </s>
    target   <s> to the baker the soup was fine. the bread was stale. </s>

Lewis et al. 2020, section 2.2 and 4: 30% of the tokens, in spans whose lengths follow a Poisson distribution of mean 3,
each replaced by one <mask> (a span of length 0 puts one between two tokens); all sentences in random order. Here a text
is one document, or two, of which every sentence is one of the shuffled ones. The released code does not mask across
words' ends; here words are single tokens nearly always.

Shapes   B batch, T tokens of the longest corrupted text, U of the longest text
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..answers.sequences import IGNORED, padded

MASKED = 0.3
MEAN_SPAN = 3.0


class DenoisingStream:
    """Endless batches; `length`: most tokens of a text, <s> and </s> included."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Sequence[str]],
        batch_size: int,
        length: int,
        seed: int,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        lines = [f" {line}" for sentences in texts for line in sentences]  # a space before each, wherever it comes
        ids = iter(tokenizer(lines, add_special_tokens=False)["input_ids"])
        self.documents = [[next(ids) for _ in sentences] for sentences in texts]
        self.batch_size, self.length = batch_size, length
        self.short = False  # one document each, its sentences in their order
        self.begin, self.end = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
        self.pad, self.mask = int(tokenizer.pad_token_id), int(tokenizer.mask_token_id)
        self.waiting: list[int] = []

    def batch(self) -> dict[str, Tensor]:
        """input_ids, attention_mask (B, T), decoder_input_ids, decoder_attention_mask and labels (B, U)."""
        corrupted, texts = [], []
        for _ in range(self.batch_size):
            sentences = self._next() if self.short else [*self._next(), *self._next()]
            text = [token for sentence in sentences for token in sentence][: self.length - 2]
            order = np.arange(len(sentences)) if self.short else self.rng.permutation(len(sentences))
            shuffled = [token for i in order for token in sentences[i]][: self.length - 2]
            corrupted.append(np.array([self.begin, *infill(self.rng, shuffled, self.mask), self.end]))
            texts.append(np.array([self.begin, *text, self.end]))
        inputs, mask = padded(corrupted, self.pad)
        labels, _ = padded(texts, IGNORED)
        shifted, decoder_mask = padded([np.concatenate([[self.end], ids[:-1]]) for ids in texts], self.pad)
        return {
            "input_ids": inputs,
            "attention_mask": mask,
            "decoder_input_ids": shifted,
            "decoder_attention_mask": decoder_mask,
            "labels": labels,
        }

    def _next(self) -> list[list[int]]:
        if not self.waiting:
            self.waiting = self.rng.permutation(len(self.documents)).tolist()
        return self.documents[self.waiting.pop()]


def infill(rng: np.random.Generator, ids: Sequence[int], mask: int) -> list[int]:
    """The tokens with MASKED of them (rounded) in spans replaced by `mask`, one for each span.

    Spans are drawn until they hold enough tokens; the last one is cut. They lie anywhere, with at least one token that
    is kept between two of them.
    """
    budget, lengths = round(MASKED * len(ids)), []
    while budget > 0:
        lengths.append(min(int(rng.poisson(MEAN_SPAN)), budget))
        budget -= lengths[-1]
    kept = len(ids) - sum(lengths)
    lengths = lengths[: kept + 1]  # more spans than gaps between kept tokens: an empty one or two is left out
    gaps = set(np.sort(rng.choice(kept + 1, len(lengths), replace=False)).tolist())
    spans, out, at = iter(lengths), [], 0
    for gap in range(len(ids) - sum(lengths) + 1):
        if gap in gaps:
            at += next(spans)
            out.append(mask)
        if at < len(ids):
            out.append(ids[at])
            at += 1
    return out
