"""A task whose answers are texts, as ids for one backbone."""

import sys

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..config.schema import GenerationConfig
from ..tasks.examples import DataError, TaskData
from .sequences import Sequences, flat
from .tokens import TokenizedSplit, tokenize_texts

INPUTS = " inputs"  # behind a split's name: its different sources, to be decoded


class TextWriter(Sequences):
    """Source and target texts of a task with references, as ids for one backbone."""

    def __init__(
        self, generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, decoder_only: bool, prefix: str = ""
    ):
        super().__init__(tokenizer, decoder_only, generation.separator)
        self.generation, self.prefix = generation, prefix

    def tokenize(
        self,
        data: TaskData,
        max_length: int,
        max_new_tokens: int,
        positions: int | None = None,
        read_length: int | None = None,
    ) -> dict[str, TokenizedSplit]:
        """Every split's pairs, and as "<split> inputs" its different sources, which lose tokens at their end where they
        leave no room for the output. positions: those that the method leaves to the text. read_length: instead of
        max_length for what an encoder is to answer (0: any).

        Raises DataError where max_length leaves no room for a source, or the positions none before the output.
        """
        splits = {}
        for name, rows in data.texts.items():
            sources, targets = zip(*rows, strict=True)
            splits[name] = self.pairs(
                [self.generation.source.format(text=text) for text in sources],
                [self._target(text) for text in targets],
                data.labels[name],
                max_length,
                self.generation.target_tokens,
            )
        most = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        around = len(self.ended([]))
        if not self.decoder_only and read_length is not None:
            max_length = read_length or positions or sys.maxsize
        room = (most - max_new_tokens if self.decoder_only else max_length) - max(around, 1)
        if room < 1:
            raise DataError(
                f"decoding.max_new_tokens={max_new_tokens} leaves no room for a source among {most} positions (a "
                "prompt or prefix has had its own); lower it"
            )
        for name, lines in data.inputs.items():
            ids = tokenize_texts([self.generation.source.format(text=text) for text in lines], self.tokenizer)
            splits[name + INPUTS] = TokenizedSplit(
                *flat([self.ended(row[: min(room, max_length - around)]) for row in ids]),
                labels=np.arange(len(lines)),
            )
        return splits

    def _target(self, text: str) -> str:
        target = self.generation.target.format(text=text)
        return f"{self.prefix} {target}" if self.prefix else target

    def read(self, text: str) -> str:
        """An output without the prefix of every target."""
        return text.removeprefix(self.prefix).strip() if self.prefix else text
