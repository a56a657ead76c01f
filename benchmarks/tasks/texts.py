"""A task whose answers are texts (E2E, WebNLG, DART, XSUM): its rows, its inputs and their references.

Rows of a split are pairs of a source line and one target; different sources are the inputs that are decoded and scored,
in the order of their first rows, each against all targets of its rows (as both papers' code groups them).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config.schema import GenerationConfig, ScaleConfig, TaskConfig, generation_of
from .examples import DataError, TaskData, content_hash
from .lines import LINES, tokenized
from .tables import Wanted, read_tables, wanted_tables

FORMS = ("official", "tokenized")


def load_texts(task: TaskConfig, scale: ScaleConfig, data_dir: str | None, trains: bool = True) -> TaskData:
    """The splits of a task with references. Raises DataError with the row of what cannot be read."""
    generation = generation_of(task, scale)
    assert generation is not None
    key = "task.micro_generation" if scale.data == "micro" else "task.generation"
    _check(generation, key)
    columns = [(generation.source_column, f"{key}.source_column")]
    if generation.source_columns:
        columns = [(column, f"{key}.source_columns") for column in generation.source_columns]
    if generation.truth_column:
        columns.append((generation.truth_column, f"{key}.truth_column"))
    columns.append((generation.target_column, f"{key}.target_column"))
    wanted = wanted_tables(task, columns, scale, data_dir, trains)
    return _load(wanted, _How(*(getattr(generation, name) for name in _How._fields)))


class _How(NamedTuple):
    """The fields of a GenerationConfig that its examples follow from: hashable, for the cache."""

    linearization: str
    text_form: str
    reference_form: str
    train_rows: int | None
    train_sample: int
    validation_rows: int | None
    truth_column: str
    targets: str
    grouped: bool


def _check(generation: GenerationConfig, key: str) -> None:
    for name, known in (
        ("linearization", [*LINES]),
        ("text_form", FORMS),
        ("reference_form", FORMS),
        ("targets", ("all", "first")),
    ):
        if getattr(generation, name) not in known:
            raise DataError(f"{key}.{name}={getattr(generation, name)!r}: expected one of {', '.join(known)}")
    columns = LINES[generation.linearization].columns
    if len(generation.source_columns) != columns or bool(generation.source_column) == bool(columns):
        raise DataError(
            f"{key}: source_column={generation.source_column!r}, source_columns={generation.source_columns}; "
            f"linearization={generation.linearization} is made of {columns or 'one'} column(s): expected "
            f"{'that many source_columns' if columns else 'a source_column'} and nothing else"
        )
    for name, least in (("train_rows", 1), ("validation_rows", 1), ("target_tokens", 3)):
        if (number := getattr(generation, name)) is not None and number < least:
            raise DataError(f"{key}.{name}={number}: expected at least {least}, or null for all")
    for name in ("source", "target"):
        template = getattr(generation, name)
        try:
            if template.format(text="x").count("x") <= template.replace("{text}", "").count("x"):
                raise ValueError("no {text}")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DataError(f"{key}.{name}={template!r}: expected {{text}} in it and no other braces") from error


@functools.lru_cache(maxsize=8)
def _load(wanted: Wanted, how: _How) -> TaskData:
    tables, source = read_tables(wanted)
    texts: dict[str, list[tuple[str, ...]]] = {}
    labels: dict[str, np.ndarray] = {}
    inputs: dict[str, list[str]] = {}
    references: dict[str, list[list[str]]] = {}
    truth: dict[str, np.ndarray] = {}
    for split, key in wanted.splits:
        where = f"split {split!r} of {wanted.name}"
        lines, found = _rows(wanted, tables[split], how, where)
        right = _truth(tables[split], how, where)
        linearized = how.linearization != "none"
        form = functools.partial(_in_form, linearized=linearized, text_form=how.text_form, where=where)
        targets = [[form(text, wanted=how.text_form) for text in group] for group in found]
        targets = [group[:1] for group in targets] if how.targets == "first" else targets
        if key == "task.train_split":
            rows = [
                i for i in _sample(len(lines), how.train_rows, how.train_sample, where) if right is None or right[i]
            ]
            texts[split] = [(lines[i], target) for i in rows for target in targets[i]]
            labels[split] = np.zeros(len(texts[split]), dtype=np.int64)
            continue
        number: dict[Any, int] = {}
        of_row = [number.setdefault(line if how.grouped else i, len(number)) for i, line in enumerate(lines)]
        first: dict[int, int] = {}
        for i, each in enumerate(of_row):
            first.setdefault(each, i)
        gold: list[list[str]] = [[] for _ in number]
        for i, group in zip(of_row, found, strict=True):
            gold[i] += [form(text, wanted=how.reference_form) for text in group]
        pairs = [(line, target, i) for line, group, i in zip(lines, targets, of_row, strict=True) for target in group]
        if key == "task.validation_splits":
            pairs = [pairs[i] for i in _sample(len(pairs), how.validation_rows, 0, where)]
        texts[split] = [(line, target) for line, target, _ in pairs]
        labels[split] = np.array([i for _, _, i in pairs], dtype=np.int64)
        inputs[split] = [lines[i] for i in first.values()]
        references[split] = gold
        if right is not None:
            truth[split] = np.array([right[i] for i in first.values()], dtype=np.int64)
    for column in labels.values():
        column.setflags(write=False)
    sha256 = content_hash(texts, labels, references, truth)
    data = TaskData(texts, labels, source.name, sha256, inputs=inputs, references=references, truth=truth)
    return dataclasses.replace(data, commit=source.commit)


def _rows(
    wanted: Wanted, columns: Mapping[str, Sequence[Any]], how: _How, where: str
) -> tuple[list[str], list[Sequence[str]]]:
    """Source lines in the form that is trained on and, for each, its texts as the data have them."""
    names = [name for name, _ in wanted.columns if name != how.truth_column]
    form = LINES[how.linearization]
    line = form.line
    if how.linearization == "e2e" and how.text_form == "tokenized":
        line = functools.partial(line, words=tokenized)
    lines, targets = [], []
    for number, (*source, target) in enumerate(zip(*(columns[name] for name in names), strict=True)):
        try:
            lines.append(line(source if form.columns else source[0]))
            targets.append(form.targets(target))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{where}, row {number}: {error}; correct the row") from error
    return lines, targets


def _truth(columns: Mapping[str, Sequence[Any]], how: _How, where: str) -> list[int] | None:
    """Of every row, 1 if its target is right and 0 if not; None where the task does not say."""
    if not how.truth_column:
        return None
    for number, value in enumerate(columns[how.truth_column]):
        if value not in (0, 1):
            raise DataError(
                f"{where}, column {how.truth_column!r}, row {number} is {value!r}, expected 0 or 1 (hidden "
                "labels cannot be scored); correct the row, or name another split"
            )
    return [int(value) for value in columns[how.truth_column]]


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
