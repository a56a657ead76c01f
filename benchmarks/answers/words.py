"""A task with labels as text: what a backbone that writes reads and should write, and what its answer means.

N rows of a split, B rows of a batch, U tokens of the longest answer.
"""

import dataclasses
import re
import sys
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config.schema import TaskConfig, TextConfig
from ..tasks.examples import DataError, TaskData
from .in_context import InContext
from .sequences import IGNORED, Sequences
from .tokens import TokenizedSplit, tokenize_texts

ILLEGAL = -1  # prediction where an answer is no label of the task; scored as wrong
SPARE_TOKENS = 2  # an answer may run on past the longest target, so that it is not cut off to a legal one


class Writer(Sequences):
    """How one task is written for one backbone. decoder_only: source and target are one sequence (GPT-2). trained: the
    labels in the words of the task that a run was trained on, whose answers count where it is scored on another."""

    def __init__(
        self, task: TaskConfig, text: TextConfig | None, tokenizer: PreTrainedTokenizerBase, decoder_only: bool,
        trained: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__(tokenizer, decoder_only)
        if text is None:
            raise DataError(
                f"task {task.name} has no text form for {tokenizer.name_or_path}, which writes; add task.text"
            )
        self.task, self.text = task, text
        self.labels = {word: i for words in (trained, text.labels) for i, word in enumerate(words)}
        self.max_new_tokens = 0
        self.in_context: InContext | None = None  # before every question that is to be answered

    def tokenize(self, data: TaskData, max_length: int, read_length: int | None = None) -> dict[str, TokenizedSplit]:
        """Every split as ids of sources and targets. A source that is too long loses tokens at its end. read_length:
        instead of max_length for what an encoder is to answer (0: any).

        Raises DataError for a label without words or that would not be read back as itself, and where max_length
        leaves no room for a source.
        """
        self._check_labels(max_length)
        splits = {}
        for name, rows in data.texts.items():
            labels = data.labels[name]
            targets = [self.target(label) for label in labels.tolist()]
            answered = name != self.task.train_split and read_length is not None and not self.decoder_only
            length = (read_length or sys.maxsize) if answered else max_length
            sources = [self.source(row) for row in rows]
            if self.in_context is not None and name != self.task.train_split:
                if length > self.tokenizer.model_max_length:
                    raise DataError(
                        f"in_context={self.in_context.cfg.name}: trainer.max_length={length}, expected at most "
                        f"{self.tokenizer.model_max_length}, what {self.tokenizer.name_or_path} was pretrained to read"
                    )
                room = self.room(targets, length)
                sources = [self.in_context.read(text, self.tokenizer, room) for text in sources]
            pairs = self.pairs(sources, targets, labels, length)
            splits[name] = dataclasses.replace(pairs, groups=data.groups.get(name))
            longest = max(map(len, splits[name].target_rows(np.arange(len(labels)))))
            self.max_new_tokens = max(self.max_new_tokens, longest + SPARE_TOKENS)
        return splits

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

    def labelled_as(self, split: TokenizedSplit, rows: np.ndarray, label: int) -> dict[str, Tensor]:
        """The batch of these rows (B,) with the words of one label as their target, for how probable it is; the end
        token behind them does not count."""
        (ids,) = tokenize_texts([self.target(label)], self.tokenizer)
        batch = self.batch(split.rows(rows), [np.array([*self.begin, *ids, self.end])] * len(rows))
        return batch | {"labels": batch["labels"].masked_fill(batch["labels"] == self.end, IGNORED)}

    def read(self, written: Tensor) -> np.ndarray:
        """(B,) labels of the answers (B, U) that were written, up to the end of each; ILLEGAL where there is none."""
        ended = (written == self.end).any(1).tolist()
        rows = [ids[: ids.index(self.end)] if end else [] for ids, end in zip(written.tolist(), ended, strict=True)]
        answers = [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in rows]
        return np.array(
            [self.meaning(answer) for answer in answers], dtype=np.int64 if self.text.labels else np.float64
        )
