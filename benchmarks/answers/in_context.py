"""Prompts in words: instructions and k examples before every question, for a frozen backbone (conf/in_context/)."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..config.schema import InContextConfig
from ..tasks.examples import DataError

LIKELIHOODS = ("per_token", "sum")
_BLANKS = {"prompt": ("{source}",), "example": ("{source}", "{target}")}


def check_in_context(cfg: InContextConfig) -> None:
    """Raises ValueError for a prompt without its placeholders, or with others."""
    if cfg.shots < 0:
        raise ValueError(f"in_context.shots={cfg.shots}: expected 0 or more")
    if cfg.likelihood not in LIKELIHOODS:
        raise ValueError(f"in_context.likelihood={cfg.likelihood}: expected one of {', '.join(LIKELIHOODS)}")
    for name, blanks in _BLANKS.items():
        wanted = (*blanks, "{examples}") if name == "prompt" and cfg.shots else blanks
        text = getattr(cfg, name)
        try:
            text.format(**{blank[1:-1]: "" for blank in wanted})
            missing = [blank for blank in wanted if blank not in text]
            problem = f"no {missing[0]}" if missing else ""
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise ValueError(
                f"in_context.{name}={text!r}: expected {' and '.join(wanted)} in it and no other braces ({problem}); "
                f"change conf/in_context/{cfg.name}.yaml"
            )


@dataclass
class InContext:
    """The prompt of one run. examples: (source, target) texts, as drawn. fewer: questions that left no room for all of
    them, and cut: those that lost words of their own."""

    cfg: InContextConfig
    examples: Sequence[tuple[str, str]]
    fewer: int = 0
    cut: int = 0

    def flags(self) -> list[str]:
        """What a reader of the run's record has to know of the texts that it has read."""
        return [*(["fewer_examples"] if self.fewer else []), *(["questions_cut_off"] if self.cut else [])]

    def read(self, source: str, tokenizer: PreTrainedTokenizerBase, room: int) -> str:
        """The whole text for a question, of at most `room` tokens: with as many examples as fit; where it is too long
        without any, the question loses words at its end.

        Raises DataError where not even the instructions fit.
        """

        def length(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False).input_ids)

        if length(whole := self._text(source, len(self.examples))) <= room:
            return whole
        self.fewer += bool(self.examples)
        fitting = bisect_right(range(len(self.examples)), room, key=lambda shots: length(self._text(source, shots)))
        if fitting:  # as many numbers of examples fit, 0 among them
            return self._text(source, fitting - 1)
        self.cut += 1
        over = length(self._text(source, 0)) - room
        ids = tokenizer(source, add_special_tokens=False).input_ids
        while over > 0 and ids:
            ids = ids[:-over]
            text = self._text(tokenizer.decode(ids), 0)
            over = length(text) - room
        if over > 0:
            raise DataError(
                f"in_context={self.cfg.name}: the prompt alone has {over} tokens more than the {room} there are; "
                f"shorten conf/in_context/{self.cfg.name}.yaml or raise trainer.max_length"
            )
        return text

    def _text(self, source: str, shots: int) -> str:
        told = [self.cfg.example.format(source=s, target=t) for s, t in self.examples[:shots]]
        examples = self.cfg.separator.join([*told, ""]) if told else ""
        return self.cfg.prompt.format(source=source, examples=examples)


def draw(rows: int, shots: int, seed: int) -> list[int]:
    """Which training rows are the examples, in their order."""
    if shots > rows:
        raise DataError(f"in_context.shots={shots} with {rows} training rows: expected at most as many")
    return [int(i) for i in np.random.Generator(np.random.PCG64([20210418, seed])).choice(rows, shots, replace=False)]
