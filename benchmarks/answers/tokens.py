"""Texts → token ids, kept flat and unpadded; batches are padded when they are made.

N rows of a split, B rows of a batch, T tokens of the longest row in it.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..tasks.examples import DataError, Gold, TaskData

CHUNK = 2048  # rows tokenized at a time: the tokenizer's own result takes kilobytes a row
CACHED = 16  # (task, tokenizer, length) triples kept in this process


@dataclass(frozen=True)
class Tokens:
    """Token ids, row after row.

    input_ids (tokens of all rows,) int32. token_type_ids: the same shape, or None where the backbone has no segments.
    targets: what is to be written, ids and offsets like these (sequences.py); None for a classifier.
    offsets (N + 1,) int64: row i is input_ids[offsets[i]:offsets[i + 1]]. labels (N,) int64 or float64.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    token_type_ids: np.ndarray | None = None
    targets: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row, special ones included."""
        return np.diff(self.offsets)

    def rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """The ids of these rows."""
        return [self.input_ids[self.offsets[row] : self.offsets[row + 1]] for row in rows]

    def target_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """The ids to be written for these rows."""
        assert self.targets is not None
        ids, offsets = self.targets
        return [ids[offsets[row] : offsets[row + 1]] for row in rows]


@dataclass(frozen=True)
class Split:
    """A split as one backbone reads it. examples: what is trained on, or the loss is measured on. questions: what is
    answered: the same rows or, where answers are texts, the different sources. gold: what answers are scored against.
    """

    examples: Tokens
    questions: Tokens
    gold: Gold


def joined(splits: Sequence[Tokens]) -> Tokens:
    """The sources and targets of several splits as one, row after row; without labels, which differ in kind."""
    targets = [split.targets for split in splits if split.targets is not None]
    return Tokens(
        *_joined([(split.input_ids, split.offsets) for split in splits]),
        labels=np.zeros(sum(map(len, splits)), dtype=np.int64),
        targets=_joined(targets),
    )


def _joined(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.concatenate([np.diff(offsets) for _, offsets in rows])
    return np.concatenate([ids for ids, _ in rows]), np.cumsum([0, *lengths])


Key = tuple[str, str, int, bool]
_cache: OrderedDict[Key, dict[str, Tokens]] = OrderedDict()
_hashes: WeakKeyDictionary[PreTrainedTokenizerBase, str] = WeakKeyDictionary()


def tokenize(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int, with_token_types: bool
) -> dict[str, Tokens]:
    """Every split of a task as token ids, at most `max_length` a row, special tokens included.

    A pair that is too long loses tokens from its longer text first. with_token_types: the backbone tells first and
    second text apart (type_vocab_size > 1). Kept for the next run on the same data, tokenizer and length.
    """
    pair = any(len(rows[0]) == 2 for rows in data.texts.values())
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if not special < max_length <= tokenizer.model_max_length:
        raise DataError(
            f"trainer.max_length={max_length}, expected {special + 1} to {tokenizer.model_max_length} tokens for "
            f"{tokenizer.name_or_path}; change trainer.max_length"
        )
    key = (data.sha256, tokenizer_sha256(tokenizer), max_length, with_token_types)
    if key not in _cache:
        _cache[key] = {
            split: _tokenize_split(rows, data.labels[split], tokenizer, max_length, with_token_types)
            for split, rows in data.texts.items()
        }
        if len(_cache) > CACHED:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key]


def tokenize_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of every text, no special tokens. Raises DataError for a text that is none."""
    each: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        # verbose: cutting comes later, so that transformers' warning of texts that are too long says nothing
        each += tokenizer(chunk, add_special_tokens=False, padding=False, truncation=False, verbose=False)["input_ids"]
    if empty := [text for text, ids in zip(texts, each, strict=True) if not ids]:
        raise DataError(
            f"{tokenizer.name_or_path} makes no token of {empty[0]!r}; change task.text (micro: task.micro_text)"
        )
    return each


def collate(split: Tokens, rows: np.ndarray, pad_token_id: int) -> dict[str, torch.Tensor]:
    """The batch of these rows (B,), padded on the right to its longest one.

    input_ids, attention_mask and (where the split has them) token_type_ids: (B, T) int64. labels: (B,) int64, or
    float32 for regression.
    """
    starts = split.offsets[rows]
    lengths = split.offsets[rows + 1] - starts
    columns = np.arange(lengths.max())
    mask = columns < lengths[:, None]
    tokens = (starts[:, None] + columns)[mask]
    labels = split.labels[rows]
    batch = {
        "input_ids": _padded(split.input_ids[tokens], mask, pad_token_id),
        "attention_mask": mask.astype(np.int64),
        "labels": labels.astype(np.float32) if labels.dtype.kind == "f" else labels,
    }
    if split.token_type_ids is not None:
        batch["token_type_ids"] = _padded(split.token_type_ids[tokens], mask, 0)
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _padded(values: np.ndarray, mask: np.ndarray, padding: int) -> np.ndarray:
    """The values (in mask's order) where mask (B, T) is true, padding elsewhere; int64."""
    table = np.full(mask.shape, padding, dtype=np.int64)
    table[mask] = values
    return table


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what the tokenizer does to a text: vocabulary, merges, normalization, special tokens, truncation side."""
    if tokenizer not in _hashes:
        if not tokenizer.is_fast:
            raise DataError(
                f"{tokenizer.name_or_path} has a tokenizer in pure Python ({type(tokenizer).__name__}), expected one "
                "with a tokenizer.json; convert it, or choose another backbone"
            )
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two are left over from the last call and set anew by the next.
        del rules["truncation"], rules["padding"]
        rules["truncation_side"] = tokenizer.truncation_side
        _hashes[tokenizer] = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
    return _hashes[tokenizer]


def _tokenize_split(
    texts: list[tuple[str, ...]],
    labels: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    with_token_types: bool,
) -> Tokens:
    ids, types, lengths = [], [], [np.zeros(1, dtype=np.int64)]
    for chunk in _chunks(texts):
        encoded = tokenizer(
            *(list(column) for column in zip(*chunk, strict=True)),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=with_token_types,
        )
        ids.append(_flat(encoded["input_ids"]))
        lengths.append(np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64))
        if with_token_types:
            types.append(_flat(encoded["token_type_ids"]))
    return Tokens(
        input_ids=np.concatenate(ids),
        offsets=np.cumsum(np.concatenate(lengths)),
        labels=labels,
        token_type_ids=np.concatenate(types) if with_token_types else None,
    )


def _chunks(texts: list[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    for start in range(0, len(texts), CHUNK):
        yield texts[start : start + CHUNK]


def _flat(rows: list[list[int]]) -> np.ndarray:
    return np.fromiter((number for row in rows for number in row), dtype=np.int32)
