"""A task whose answers are texts (E2E, WebNLG, DART, XSUM): its rows, its references, and its texts for a backbone.

Rows of a split are pairs of a source line and one target; different sources are the inputs that are decoded and scored,
in the order of their first rows, each against all targets of its rows (as both papers' code groups them).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.config import GenerationConfig, ScaleConfig, TaskConfig, generation_of
from benchmarks.tasks.data import DataError, TaskData, Wanted, content_hash, read_tables, splits_of
from benchmarks.tasks.linearizing import LINES, plain_texts, tokenized
from benchmarks.tasks.sequences import Sequences, flat
from benchmarks.tasks.tokenizing import TokenizedSplit, tokenize_texts

FORMS = ("official", "tokenized")
INPUTS = " inputs"  # behind a split's name: its different sources, to be decoded


def load_generation(task: TaskConfig, scale: ScaleConfig, data_dir: str | None) -> TaskData:
    """The splits of a task with references. Raises DataError with the row of what cannot be read."""
    generation = generation_of(task, scale)
    assert generation is not None
    key = "task.micro_generation" if scale.data == "micro" else "task.generation"
    _check(generation, key)
    columns = ((generation.source_column, f"{key}.source_column"), (generation.target_column, f"{key}.target_column"))
    wanted = Wanted(
        task.name,
        task.dataset,
        task.hub_id,
        task.hub_revision,
        task.subset,
        columns,
        splits_of(task, scale),
        scale.data,
        data_dir,
    )
    how = (generation.linearization, generation.text_form, generation.reference_form)
    sample = (generation.train_rows, generation.train_sample, generation.validation_rows)
    return _load(wanted, *how, *sample)


def _check(generation: GenerationConfig, key: str) -> None:
    for name, known in (("linearization", [*LINES]), ("text_form", FORMS), ("reference_form", FORMS)):
        if getattr(generation, name) not in known:
            raise DataError(f"{key}.{name}={getattr(generation, name)!r}: expected one of {', '.join(known)}")
    for name, least in (("train_rows", 1), ("validation_rows", 1), ("target_tokens", 3)):
        if (number := getattr(generation, name)) is not None and number < least:
            raise DataError(f"{key}.{name}={number}: expected at least {least}, or null for all")
    for name in ("source", "target"):
        template = getattr(generation, name)
        try:
            if template.format(text="x").count("x") <= template.replace("{text}", "").count("x"):
                raise ValueError("no {text}")
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"{key}.{name}={template!r}: expected {{text}} in it and no other braces") from error


@functools.lru_cache(maxsize=8)
def _load(
    wanted: Wanted, linearization: str, text_form: str, reference_form: str,
    train_rows: int | None, train_sample: int, validation_rows: int | None,
) -> TaskData:  # fmt: skip
    tables, source = read_tables(wanted)
    texts: dict[str, list[tuple[str, ...]]] = {}
    labels: dict[str, np.ndarray] = {}
    inputs: dict[str, list[str]] = {}
    references: dict[str, list[list[str]]] = {}
    for split, key in wanted.splits:
        where = f"split {split!r} of {wanted.name}"
        lines, found = _rows(wanted, tables[split], linearization, text_form, where)
        form = functools.partial(_in_form, linearized=linearization != "none", text_form=text_form, where=where)
        targets = [[form(text, wanted=text_form) for text in group] for group in found]
        if key == "task.train_split":
            rows = _sample(len(lines), train_rows, train_sample, where)
            texts[split] = [(lines[i], target) for i in rows for target in targets[i]]
            labels[split] = np.zeros(len(texts[split]), dtype=np.int64)
            continue
        number: dict[str, int] = {}
        of_row = [number.setdefault(line, len(number)) for line in lines]
        gold: list[list[str]] = [[] for _ in number]
        for i, group in zip(of_row, found, strict=True):
            gold[i] += [form(text, wanted=reference_form) for text in group]
        pairs = [(line, target, i) for line, group, i in zip(lines, targets, of_row, strict=True) for target in group]
        if key == "task.validation_splits":
            pairs = [pairs[i] for i in _sample(len(pairs), validation_rows, 0, where)]
        texts[split] = [(line, target) for line, target, _ in pairs]
        labels[split] = np.array([i for _, _, i in pairs], dtype=np.int64)
        inputs[split], references[split] = list(number), gold
    for column in labels.values():
        column.setflags(write=False)
    return TaskData(texts, labels, source, content_hash(texts, labels, references), inputs, references)


def _rows(
    wanted: Wanted, columns: Mapping[str, Sequence[Any]], linearization: str, text_form: str, where: str
) -> tuple[list[str], list[Sequence[str]]]:
    """Source lines in the form that is trained on and, for each, its texts as the data have them."""
    (source_column, _), (target_column, _) = wanted.columns
    line = LINES[linearization]
    if linearization == "e2e" and text_form == "tokenized":
        line = functools.partial(line, words=tokenized)
    lines, targets = [], []
    for number, (source, target) in enumerate(zip(columns[source_column], columns[target_column], strict=True)):
        try:
            lines.append(line(source))
            targets.append(plain_texts(target))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{where}, row {number}: {error}; correct the row") from error
    return lines, targets


def _in_form(text: str, linearized: bool, text_form: str, where: str, wanted: str) -> str:
    """A text in the wanted form. Data with sources to be linearized are official, others in text_form."""
    has = "official" if linearized else text_form
    if has == wanted:
        return text
    if wanted == "tokenized":
        return tokenized(text)
    raise DataError(f"{where} has tokenized texts only: reference_form=official needs the official data (task=e2e)")


def _sample(rows: int, wanted: int | None, sample: int, where: str) -> Sequence[int]:
    """All rows, or a random choice of them in their order; `sample` says which."""
    if wanted is None or wanted == rows:
        return range(rows)
    if wanted > rows:
        raise DataError(f"{where} has {rows} rows, {wanted} were asked for; lower train_rows or validation_rows")
    chosen = np.random.Generator(np.random.PCG64([20210101, sample])).choice(rows, wanted, replace=False)
    return [int(i) for i in np.sort(chosen)]


class TextWriter(Sequences):
    """Source and target texts of a task with references, as ids for one backbone."""

    def __init__(self, generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, decoder_only: bool):
        super().__init__(tokenizer, decoder_only, generation.separator)
        self.generation = generation

    def tokenize(
        self, data: TaskData, max_length: int, max_new_tokens: int, positions: int | None = None
    ) -> dict[str, TokenizedSplit]:
        """Every split's pairs, and as "<split> inputs" its different sources, which lose tokens at their end where they
        leave no room for the output. positions: those that the method leaves to the text.

        Raises DataError where max_length leaves no room for a source, or the positions none before the output.
        """
        splits = {}
        for name, rows in data.texts.items():
            sources, targets = zip(*rows, strict=True)
            splits[name] = self.pairs(
                [self.generation.source.format(text=text) for text in sources],
                [self.generation.target.format(text=text) for text in targets],
                data.labels[name],
                max_length,
                self.generation.target_tokens,
            )
        most = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        around = len(self.ended([]))
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
