"""Prompts in words: instructions and k examples before every question, for a frozen backbone (conf/in_context/). The
label whose words are the most probable is the answer."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config.schema import InContextConfig, RunConfig, TaskConfig
from ..tasks.examples import DataError, TaskData
from ..tasks.loading import examples_of
from .one_run import OneRun
from .predictions import Labels
from .sequences import IGNORED, target_losses
from .tokens import Split, Tokens, tokenize_texts
from .words import WordAnswers

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


class InContextAnswers(WordAnswers):
    """A frozen backbone that is told how to answer: the prompt stands before every question."""

    def __init__(self, cfg: RunConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, decoder_start: int | None):
        super().__init__(cfg, task, tokenizer, decoder_start)
        assert cfg.in_context is not None
        self.separator = not self.decoder_only  # the answer goes on where the prompt stops
        self.told = InContext(cfg.in_context, self._shots(cfg, cfg.in_context))

    def tokenize(self, data: TaskData) -> dict[str, Split]:
        """As words, the prompt before every question. Raises DataError also where not even the prompt has room."""
        splits = super().tokenize(data)
        if self.told.fewer or self.told.cut:
            self.notes.append(
                f"{self.told.fewer} questions have room for fewer than {len(self.told.examples)} examples, "
                f"{self.told.cut} lost words of their own"
            )
        return splits

    def _shots(self, cfg: RunConfig, in_context: InContextConfig) -> list[tuple[str, str]]:
        """The examples of the prompt, as (source, target) texts."""
        writer: WordAnswers = self
        if in_context.of is not None:
            writer = WordAnswers(cfg, in_context.of, self.tokenizer, self.decoder_start)
        data = examples_of(in_context, writer.task, cfg)
        rows, labels = data.texts[writer.task.train_split], data.labels[writer.task.train_split]
        chosen = draw(len(rows), in_context.shots, cfg.seed)
        return [(writer.source(rows[i]), writer.target(labels[i]).strip()) for i in chosen]

    def _asked(self, sources: list[str], targets: list[str], length: int) -> list[str]:
        """The prompt with each of the questions."""
        if length > self.tokenizer.model_max_length:
            raise DataError(
                f"in_context={self.told.cfg.name}: trainer.max_length={length}, expected at most "
                f"{self.tokenizer.model_max_length}, what {self.tokenizer.name_or_path} was pretrained to read"
            )
        room = self.room(targets, length)
        return [self.told.read(text, self.tokenizer, room) for text in sources]

    def predict(self, one: OneRun, split: Split, title: str | None = None) -> Labels | None:
        """The label of each row whose words are the most probable (in_context.likelihood); None where the logits were
        not finite."""

        def answer(rows: np.ndarray) -> np.ndarray:
            losses = np.stack([self._losses(one, split.questions, rows, i) for i in range(len(self.text.labels))], 1)
            return np.where(np.isfinite(losses).all(1), losses.argmin(1), np.nan)

        values = np.array(one.by_batches(split.questions, self.batch_size, answer), dtype=np.float64)
        return Labels(self._labels(values)) if np.isfinite(values).all() else None

    def _losses(self, one: OneRun, questions: Tokens, rows: np.ndarray, label: int) -> np.ndarray:
        """(B,) how improbable the words of a label are after each question."""
        batch = self.labelled_as(questions, rows, label)
        labels = batch.pop("labels").to(one.accelerator.device)
        summed = target_losses(one(batch), labels)
        per_token = self.told.cfg.likelihood == "per_token"
        return (summed / (labels != IGNORED).sum(1) if per_token else summed).cpu().numpy()

    def labelled_as(self, tokens: Tokens, rows: np.ndarray, label: int) -> dict[str, Tensor]:
        """The batch of these rows (B,) with the words of one label as their target, for how probable it is; the end
        token behind them does not count."""
        (ids,) = tokenize_texts([self.target(label)], self.tokenizer)
        batch = self.batch(tokens.rows(rows), [np.array([*self.begin, *ids, self.end])] * len(rows))
        return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == self.end, IGNORED)}

    def flags(self) -> list[str]:
        """Questions that lost examples, or words of their own."""
        return self.told.flags()
