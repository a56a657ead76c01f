"""A task with labels as text: what a backbone that writes reads and should write, and what its answer means.

N rows of a split, B rows of a batch, U tokens of the longest answer.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from ..config.schema import RunConfig, TaskConfig, TextConfig, text_of
from ..metrics.scores import ILLEGAL, label_scores
from ..tasks.examples import DataError, Gold, TaskData
from .one_run import OneRun
from .predictions import Labels, Words
from .sequences import Sequences
from .tokens import Split, tokenize_texts

SPARE_TOKENS = 2  # an answer may run on past the longest target, so that it is not cut off to a legal one


class WordAnswers(Sequences):
    """trained: how the run answers the task that it was trained on, whose labels' words count where this is another."""

    def __init__(
        self, cfg: RunConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, decoder_start: int | None,
        trained: "WordAnswers | None" = None,
    ):  # fmt: skip
        super().__init__(cfg.trainer, tokenizer, decoder_start)
        self.task, self.text = task, text_as_read(cfg, task, tokenizer.name_or_path)
        words = [trained.text.labels, self.text.labels] if trained else [self.text.labels]
        self.labels = {word: i for labels in words for i, word in enumerate(labels)}
        self.max_new_tokens: int = trained.max_new_tokens if trained else 0
        self.batch_size = cfg.trainer.eval_batch_size
        self.no_answer = ILLEGAL

    def tokenize(self, data: TaskData) -> dict[str, Split]:
        """Every split as ids of sources and targets. A source that is too long loses tokens at its end.

        Raises DataError for a label without words or that would not be read back as itself, and where max_length
        leaves no room for a source.
        """
        self._check_labels(self.trainer.max_length)
        splits = {}
        for name, rows in data.texts.items():
            labels = data.labels[name]
            targets = [self.target(label) for label in labels.tolist()]
            sources, length = [self.source(row) for row in rows], self.trainer.max_length
            if name != self.task.train_split:
                length = self.read_length()
                sources = self._asked(sources, targets, length)
            tokens = self.pairs(sources, targets, labels, length)
            splits[name] = Split(tokens, tokens, data.gold(name))
            longest = max(map(len, tokens.target_rows(np.arange(len(labels)))))
            self.max_new_tokens = max(self.max_new_tokens, longest + SPARE_TOKENS)
        return splits

    def _asked(self, sources: list[str], targets: list[str], length: int) -> list[str]:
        """What is read of questions, of at most `length` tokens: the sources alone."""
        return sources

    def _check_labels(self, max_length: int) -> None:
        """Every label, written as it should be, has room and is read as what it is."""
        sentinels = re.findall(r"<extra_id_\d+>", self.task.target_prefix)
        if unknown := [name for name in sentinels if name not in self.tokenizer.get_vocab()]:
            raise DataError(
                f"task.target_prefix={self.task.target_prefix!r}: {self.tokenizer.name_or_path} has no {unknown[0]}; "
                "expected one of its sentinels, <extra_id_0> to <extra_id_99>"
            )
        room = min(max_length, self.tokenizer.model_max_length)
        for label, word in enumerate(self.text.labels):
            (ids,) = tokenize_texts([self.target(label)], self.tokenizer)
            if len(ids) + 1 > room:  # and an end token
                raise DataError(
                    f"{self.task.name}: {textwrap.shorten(word, 50, placeholder='...')!r} of label {label} has "
                    f"{len(ids)} tokens, expected at most {room - 1} (trainer.max_length, or what "
                    f"{self.tokenizer.name_or_path} was pretrained to read); shorten the "
                    "labels of task.text (micro: task.micro_text)"
                )
            found = self.read(torch.tensor([[*self.begin, *ids, self.end]]))[0]
            if found != label:
                means = "no label" if found == ILLEGAL else f"label {found}"
                raise DataError(
                    f"{self.task.name}: {word!r} of label {label} is read back as {means} by "
                    f"{self.tokenizer.name_or_path} (target_prefix={self.task.target_prefix!r}): expected words "
                    "without special tokens and blanks around them, different as tokens; change the labels of "
                    "task.text (micro: task.micro_text) or task.target_prefix"
                )

    def source(self, row: Sequence[str]) -> str:
        """What the model reads."""
        for text, other in self.text.replace.items():
            row = [column.replace(text, other) for column in row]
        return self.text.source.format(**dict(zip(self.task.text_columns, row, strict=True)))

    def target(self, label: float) -> str:
        """What it should write, behind a space in one sequence; scores are rounded to 0.2, as T5 does with STS-B."""
        word = self.text.labels[int(label)] if self.text.labels else f"{round(label * 5) / 5:.1f}"
        word = f"{self.task.target_prefix} {word}" if self.task.target_prefix else word
        return f" {word}" if self.decoder_only else word

    def meaning(self, answer: str) -> float:
        """The label that an answer stands for, or ILLEGAL."""
        answer = answer.strip().removeprefix(self.task.target_prefix).strip()
        if self.text.labels:
            return self.labels.get(answer, ILLEGAL)
        try:
            value = float(answer)
        except ValueError:
            return ILLEGAL
        low, high = self.task.label_range
        return value if low <= value <= high else ILLEGAL

    def predict(self, one: OneRun, split: Split, title: str | None = None) -> Labels | None:
        """What the words mean that the run writes; None where the logits were not finite."""

        def answer(rows: np.ndarray) -> np.ndarray:
            written, finite = one.generate(self.question_batch(split.questions, rows), self.write)
            return np.where(finite, self.read(written), np.nan)

        values = np.array(one.by_batches(split.questions, self.batch_size, answer), dtype=np.float64)
        return Words(self._labels(values)) if np.isfinite(values).all() else None

    def _labels(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.int64 if self.text.labels else np.float32)

    def validate(self, one: OneRun, split: Split) -> dict[str, float] | None:
        """Every metric of the task; None where the model gave no finite numbers."""
        labels = self.predict(one, split)
        return None if labels is None else self.metrics(labels.values, split.gold)

    def metrics(self, answers: Iterable[float], gold: Gold) -> dict[str, float]:
        """Every metric of the task."""
        return label_scores(self.task, np.array(answers), gold.labels, gold.groups)

    def write(self, attached: Attached, batches: list[Batch | None]) -> list[Tensor | None]:
        """(B, U) token ids that each run writes after its batch."""
        return attached.generate(batches, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)

    def read(self, written: Tensor) -> np.ndarray:
        """(B,) labels of the answers (B, U) that were written, up to the end of each; ILLEGAL where there is none."""
        ended = (written == self.end).any(1).tolist()
        rows = [ids[: ids.index(self.end)] if end else [] for ids, end in zip(written.tolist(), ended, strict=True)]
        first = len(self.begin)  # BART writes <s> first
        rows = [ids[first:] if ids[:first] == self.begin else ids for ids in rows]
        answers = [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in rows]
        return np.array(
            [self.meaning(answer) for answer in answers], dtype=np.int64 if self.text.labels else np.float64
        )


def text_as_read(cfg: RunConfig, task: TaskConfig, reader: str) -> TextConfig:
    """How the task is written at this scale; in a mixture with its name in front, as T5 tells tasks apart.

    reader: whose name an error gives. Raises DataError for a task without a text form.
    """
    text = text_of(task, cfg.scale)
    if text is None:
        raise DataError(f"task {task.name} has no text form for {reader}, which writes; add task.text")
    return dataclasses.replace(text, source=f"{task.name} {text.source}") if cfg.mixture else text
