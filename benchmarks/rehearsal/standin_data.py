"""Stand-ins of published data in the hub's own layout.

    <data>/glue/rte/    {train,validation,test}-00000-of-00001.parquet

Real: file formats, column names, label encodings. Not real: the sentences.
"""

import gzip
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from ..config.schema import GenerationConfig, TaskConfig
from ..tasks.mrqa import DATASET as MRQA

ROWS = {"train": 40, "validation": 12, "test": 8}  # by the first word of the split
TEXT_ROWS = {"train": 60, "validation": 30, "test": 8}  # low-data runs ask for 30
LONG_ROW = 3  # of every validation split: longer than 512 tokens, so that truncation and the last position are met
LONG_WORDS = 520  # not in training splits: with dropout, attention over 512 tokens takes most of a rehearsal

WORDS = (
    "the a every no old quiet red small train house river doctor child garden letter city says sees finds leaves near "
    "behind without because while never often it she they who and but"
).split()


def make_task(root: Path, task: TaskConfig) -> Path:
    """Write `<root>/<dataset>/<subset>/` with every split of a task; test labels are hidden (-1), as on the hub."""
    folder = root / task.dataset / task.subset
    folder.mkdir(parents=True, exist_ok=True)
    if task.dataset == MRQA and task.generation is not None:
        for split in task.validation_splits:
            _write_mrqa(folder / f"{split}.jsonl.gz", _question_rows(split, task.generation, "test"))
        return folder
    if task.generation is not None:
        for split in (task.train_split, *task.validation_splits, *task.test_splits):
            rows = _text_rows(task.name, task.generation, split)
            if task.generation.linearization == "squad":
                rows["title"] = [f"article {i % 8}" for i in range(len(rows["question"]))]
            Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return folder
    label = Value("float32") if task.num_labels == 1 else ClassLabel(num_classes=task.num_labels)
    features = Features({c: Value("string") for c in task.text_columns} | {"label": label, "idx": Value("int32")})
    fields = [column.partition(".")[2] for column in task.group_columns]
    if fields:
        features["idx"] = {name: Value("int32") for name in fields}
    for split in (task.train_split, *task.validation_splits, *task.test_splits):
        hidden = split in task.test_splits
        rows = _rows(task, split, hidden)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def _rows(task: TaskConfig, split: str, hidden: bool) -> dict[str, list[Any]]:
    generator = random.Random(f"{task.name} {split}")
    n = ROWS[split.split("_")[0]]
    low, high = task.label_range
    if hidden:
        labels: list[float] = [-1] * n
    elif task.num_labels == 1:
        labels = [low + (high - low) * i / (n - 1) for i in range(n)]
    else:
        labels = [i % task.num_labels for i in range(n)]
    lengths = [generator.randint(4, 12) for _ in range(n)]
    if split in task.validation_splits:
        lengths[LONG_ROW] = LONG_WORDS
    texts = {column: [sentence(generator, length) for length in lengths] for column in task.text_columns}
    fields = [column.partition(".")[2] for column in task.group_columns]
    idx = [dict.fromkeys(fields, i // 3) for i in range(n)] if fields else list(range(n))
    return {**texts, "label": labels, "idx": idx}


def _text_rows(name: str, generation: GenerationConfig, split: str) -> dict[str, list[Any]]:
    """Two rows for every source, as E2E has them; one source is longer than any max_length."""
    if generation.source_columns:
        return _question_rows(name, generation, split)
    generator, n = random.Random(f"{name} {split}"), TEXT_ROWS[split.split("_")[0]]
    sources, targets = [], []
    if generation.linearization == "none" and generation.text_form == "official":  # prose, one row for every document
        lengths = [LONG_WORDS if i == LONG_ROW and split != "train" else 4 + i % 9 for i in range(n)]
        sources = [f"{i} {sentence(generator, length)}" for i, length in enumerate(lengths)]
        targets = [sentence(generator, generator.randint(4, 12)) for _ in range(n)]
        return {generation.source_column: sources, generation.target_column: targets}
    for i in range(n):
        value = sentence(generator, LONG_WORDS if i // 2 == LONG_ROW and split != "train" else 1 + i % 7 // 2)
        value = f"{i // 2} {value}".rstrip(".")
        line = f"name[{value}], eatType[pub], near[{generator.choice(WORDS)}]"
        sources.append(line if generation.linearization == "e2e" else f"name : {value}")
        targets.append(sentence(generator, generator.randint(4, 12)))
    return {generation.source_column: sources, generation.target_column: targets}


def _question_rows(name: str, generation: GenerationConfig, split: str) -> dict[str, list[Any]]:
    """Rows of SQuAD, ReCoRD or WSC: every column that their source lines are made of."""
    generator, n = random.Random(f"{name} {split}"), TEXT_ROWS[split]
    lengths = [LONG_WORDS if i == LONG_ROW and split != "train" else 4 + i % 9 for i in range(n)]
    if generation.linearization == "wsc":
        texts = [f"{i} she {sentence(generator, length)}" for i, length in enumerate(lengths)]
        values: list[list[Any]] = [texts, ["she"] * n, [1] * n]
    elif generation.linearization == "record":
        texts = [sentence(generator, length) for length in lengths]
        values = [[f"{i} @placeholder sees." for i in range(n)], [["Doctor", "Child"]] * n, texts]
    else:
        values = [[f"Who sees {i}?" for i in range(n)], [sentence(generator, length) for length in lengths]]
    columns = dict(zip(generation.source_columns, values, strict=True))
    found = [generator.choice(("doctor", "child")) for _ in range(n)]
    targets: list[Any] = found
    if generation.linearization == "record":
        targets = [[text] for text in found]
    if generation.linearization == "squad":
        targets = [{"text": [text], "answer_start": [0]} for text in found]
    truth = {generation.truth_column: [i % 2 for i in range(n)]} if generation.truth_column else {}
    return {**columns, **truth, generation.target_column: targets}


def _write_mrqa(path: Path, rows: Mapping[str, list[Any]]) -> None:
    """The shared task's own form: a header, then a context with its questions a line."""
    lines: list[dict[str, Any]] = [{"header": {"dataset": path.name.partition(".")[0], "split": "dev"}}]
    for question, context, answers in zip(rows["question"], rows["context"], rows["answers"], strict=True):
        lines.append({"context": context, "qas": [{"question": question, "answers": answers["text"]}]})
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(line)}\n" for line in lines)


def sentence(generator: random.Random, words: int) -> str:
    """That many words, a capital and a full stop."""
    return " ".join(generator.choices(WORDS, k=words)).capitalize() + "."
