"""A task as text: what a backbone that writes reads and should write, and what its answer means.

    T5     encoder: source </s>                  decoder: target </s>
    GPT-2  source <|endoftext|> target <|endoftext|>, as in Li & Liang's and LoRA's released code

N rows of a split, B rows of a batch, T tokens of the longest source, U of the longest target.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.config import TaskConfig, TextConfig
from benchmarks.tasks.data import DataError, TaskData
from benchmarks.tasks.tokenizing import TokenizedSplit, tokenize_texts

ILLEGAL = -1  # prediction where an answer is no label of the task; scored as wrong
IGNORED = -100  # label where nothing is to be predicted: cross_entropy's default
SPARE_TOKENS = 2  # an answer may run on past the longest target, so that it is not cut off to a legal one


class Writer:
    """How one task is written for one backbone. decoder_only: source and target are one sequence (GPT-2)."""

    def __init__(
        self, task: TaskConfig, text: TextConfig | None, tokenizer: PreTrainedTokenizerBase, decoder_only: bool
    ):
        if text is None:
            raise DataError(
                f"task {task.name} has no text form for {tokenizer.name_or_path}, which writes; add task.text"
            )
        self.task, self.text, self.tokenizer, self.decoder_only = task, text, tokenizer, decoder_only
        self.end = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)
        self.max_new_tokens = 0

    def tokenize(self, data: TaskData, max_length: int) -> dict[str, TokenizedSplit]:
        """Every split as ids of sources and targets. A source that is too long loses tokens at its end.

        Raises DataError for a label without words, and where max_length leaves no room for a source.
        """
        splits = {}
        for name, rows in data.texts.items():
            targets = tokenize_texts([self.target(label) for label in data.labels[name].tolist()], self.tokenizer)
            longest = max(map(len, targets))
            self.max_new_tokens = max(self.max_new_tokens, longest + 1 + SPARE_TOKENS)
            room = max_length - 1 - (longest + 1 if self.decoder_only else 0)
            if room < 1 or max_length > self.tokenizer.model_max_length:
                raise DataError(
                    f"trainer.max_length={max_length}, expected {max_length - room + 1} to "
                    f"{self.tokenizer.model_max_length} tokens for {self.tokenizer.name_or_path}; change "
                    "trainer.max_length"
                )
            sources = [ids[:room] for ids in tokenize_texts([self.source(row) for row in rows], self.tokenizer)]
            splits[name] = TokenizedSplit(
                *_flat([[*ids, self.end] for ids in sources]),
                labels=data.labels[name],
                targets=_flat([[*ids, self.end] for ids in targets]),
            )
        return splits

    def source(self, row: Sequence[str]) -> str:
        """What the model reads."""
        return self.text.source.format(**dict(zip(self.task.text_columns, row, strict=True)))

    def target(self, label: float) -> str:
        """What it should write, behind a space in one sequence; scores are rounded to 0.2, as T5 does with STS-B."""
        word = self.text.labels[int(label)] if self.text.labels else f"{round(label * 5) / 5:.1f}"
        return f" {word}" if self.decoder_only else word

    def meaning(self, answer: str) -> float:
        """The label that an answer stands for, or ILLEGAL."""
        answer = answer.strip()
        if self.text.labels:
            return self.text.labels.index(answer) if answer in self.text.labels else ILLEGAL
        try:
            value = float(answer)
        except ValueError:
            return ILLEGAL
        low, high = self.task.label_range
        return value if low <= value <= high else ILLEGAL

    def read(self, written: Tensor) -> np.ndarray:
        """(B,) labels of the answers (B, U) that were written, up to the end of each; ILLEGAL where there is none."""
        ended = (written == self.end).any(1).tolist()
        rows = [ids[: ids.index(self.end)] if end else [] for ids, end in zip(written.tolist(), ended, strict=True)]
        answers = [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in rows]
        return np.array(
            [self.meaning(answer) for answer in answers], dtype=np.int64 if self.text.labels else np.float64
        )

    def training_batch(self, split: TokenizedSplit, rows: np.ndarray) -> dict[str, Tensor]:
        """input_ids, attention_mask, decoder_input_ids (T5) or boundary (GPT-2), and labels: the token
        to be written next at each position, IGNORED where there is none; all (B, T) or (B, U) int64."""
        sources, targets = split.rows(rows), split.target_rows(rows)
        if not self.decoder_only:
            inputs, mask = padded(sources, self.pad)
            shifted, _ = padded([np.concatenate([[self.pad], ids[:-1]]) for ids in targets], self.pad)
            labels, _ = padded(targets, IGNORED)
            return {"input_ids": inputs, "attention_mask": mask, "decoder_input_ids": shifted, "labels": labels}
        inputs, mask = padded([np.concatenate([s, t[:-1]]) for s, t in zip(sources, targets, strict=True)], self.pad)
        nothing = [np.full(len(s) - 1, IGNORED) for s in sources]
        labels, _ = padded([np.concatenate([n, t]) for n, t in zip(nothing, targets, strict=True)], IGNORED)
        return {"input_ids": inputs, "attention_mask": mask, "boundary": _separators(sources), "labels": labels}

    def question_batch(self, split: TokenizedSplit, rows: np.ndarray) -> dict[str, Tensor]:
        """The sources alone, to be answered."""
        sources = split.rows(rows)
        inputs, mask = padded(sources, self.pad)
        batch = {"input_ids": inputs, "attention_mask": mask}
        return batch | ({"boundary": _separators(sources)} if self.decoder_only else {})


def _separators(sources: Sequence[np.ndarray]) -> Tensor:
    """(B,) the last token of each source: an infix stands before it, so that it predicts the target having seen it."""
    return torch.tensor([len(source) - 1 for source in sources])


def padded(rows: Sequence[np.ndarray], value: int) -> tuple[Tensor, Tensor]:
    """(B, T) int64 ids, padded on the right, and their mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    table = np.full(mask.shape, value, dtype=np.int64)
    table[mask] = np.concatenate(rows)
    return torch.from_numpy(table), torch.from_numpy(mask.astype(np.int64))


def _flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.fromiter((number for row in rows for number in row), dtype=np.int32)
    return ids, np.cumsum([0, *map(len, rows)])
