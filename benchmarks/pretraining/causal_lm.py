"""Causal language modelling: the next token, on documents that <|endoftext|> ends, packed to one length.

Radford et al. 2019 (GPT-2). A chunk may begin or end within a document and holds several, all of which a token sees.

Shapes   B batch, T tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .chunks import Packing


class CausalStream:
    """Endless batches of chunks of `length` tokens; the model shifts the labels."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int, length: int, seed: int
    ) -> None:
        end = tokenizer.eos_token_id
        documents = [[*ids, end] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        self.packing = Packing(documents, np.random.default_rng(seed))
        self.batch_size, self.length = batch_size, length

    def batch(self) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels (B, T)."""
        ids = torch.from_numpy(self.packing.chunks(self.batch_size, self.length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
