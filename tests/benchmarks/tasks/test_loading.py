"""Loading, checking and hashing a task's rows; every file here is made by the test."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset

from peft_bench.config.compose import compose_run
from peft_bench.config.schema import CONF_DIR, ScaleConfig, TaskConfig
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_task

PUBLISHED = ScaleConfig(name="paper", data="published")


WITH_TEST = ScaleConfig(name="small", data="published", evaluate_test=True)


def config(name, **changes):
    file = next(path for path in (CONF_DIR / "task").rglob(f"{name}.yaml") if "super_glue" not in path.parts)
    return TaskConfig(**{**yaml.safe_load(file.read_text()), **changes})


RTE = config("rte")


ROWS: dict[str, list[Any]] = {
    "sentence1": ["A cat sat.", "Dogs bark ", "It rains.", ""],
    "sentence2": ["A cat.", "Cats bark.", "Ça va?", "No."],
    "label": [0, 1, 0, 1],
    "idx": [0, 1, 2, 3],
}


def rows(**changes):
    return {**ROWS, **changes}


@pytest.fixture
def write(tmp_path):
    """write("train", rows, name=...) puts a parquet file into <tmp_path>/glue/rte; train and validation are there."""
    folder = tmp_path / "glue" / "rte"
    folder.mkdir(parents=True)

    def one(split, content, name=None, **options):
        Dataset.from_dict(content).to_parquet(folder / (name or f"{split}.parquet"), **options)

    one("train", ROWS)
    one("validation", ROWS)
    return one


def test_rows_come_back_as_they_are(write, tmp_path):
    data = load_task(RTE, PUBLISHED, str(tmp_path))
    assert data.source == "glue"
    assert data.texts.keys() == data.labels.keys() == {"train", "validation"}
    assert data.texts["train"] == list(zip(ROWS["sentence1"], ROWS["sentence2"], strict=True))
    assert data.labels["train"].dtype == np.int64
    assert data.labels["train"].tolist() == ROWS["label"]
    assert load_task(RTE, PUBLISHED, str(tmp_path)) is data  # kept for the next run of a sweep


def test_test_split_only_where_the_scale_has_labels(write, tmp_path):
    write("test", rows(label=[-1] * 4))
    load_task(RTE, PUBLISHED, str(tmp_path))
    with pytest.raises(DataError, match=r"split 'test' of rte, column 'label', row 0 is -1 \(the hub's mark"):
        load_task(RTE, WITH_TEST, str(tmp_path))


def test_regression_labels_are_floats(write, tmp_path):
    task = dataclasses.replace(RTE, num_labels=1, label_range=[0, 5])
    write("train", rows(label=[0.0, 2.5, 5.0, 3.8]))
    labels = load_task(task, PUBLISHED, str(tmp_path)).labels["train"]
    assert labels.dtype == np.float64
    assert labels.tolist() == [0.0, 2.5, 5.0, 3.8]


def test_hash_is_of_the_content_alone(write, tmp_path):
    first = load_task(RTE, PUBLISHED, str(tmp_path)).sha256
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "glue").rename(moved / "glue")
    folder = moved / "glue" / "rte"
    (folder / "train.parquet").unlink()
    # Other file names, two parts, another order of columns, other row groups, another unused column.
    for part, half in enumerate((slice(0, 2), slice(2, 4))):
        content = {name: ROWS[name][half] for name in ("label", "sentence2", "sentence1")} | {"idx": [7, 7]}
        Dataset.from_dict(content).to_parquet(folder / f"train-0000{part}-of-00002.parquet", batch_size=1)
    again = load_task(RTE, PUBLISHED, str(moved))
    assert again.sha256 == first


@pytest.mark.parametrize(
    "changes",
    [
        {"label": [0, 1, 1, 1]},
        {"sentence1": ["A cat sat", ".Dogs bark ", "It rains.", ""]},  # a character crosses from row to row
        {"sentence1": ROWS["sentence2"], "sentence2": ROWS["sentence1"]},
        {name: values[::-1] for name, values in ROWS.items()},
    ],
)
def test_hash_sees_every_change_of_content(write, tmp_path, changes):
    first = load_task(RTE, PUBLISHED, str(tmp_path)).sha256
    (tmp_path / "b").mkdir()
    (tmp_path / "glue").rename(tmp_path / "b/glue")
    Dataset.from_dict(rows(**changes)).to_parquet(tmp_path / "b/glue/rte/train.parquet")
    assert load_task(RTE, PUBLISHED, str(tmp_path / "b")).sha256 != first


BAD_ROWS = {
    r"split 'train' of rte has no column 'sentence2' \(found: sentence1, .*change task.text_columns": {
        "sentence1": ["a"],
        "text": ["b"],
        "label": [0],
    },
    r"no column 'label' .*change task.label_column": {"sentence1": ["a"], "sentence2": ["b"]},
    r"split 'train' of rte has no rows": {"sentence1": [], "sentence2": [], "label": []},
    r"column 'sentence2', row 1 is None, expected a text": rows(sentence2=["a", None, "c", "d"]),
    r"column 'sentence1', row 0 is 3, expected a text": rows(sentence1=[3, 4, 5, 6]),
    r"column 'label', row 2 is 2, expected a class from 0 to 1; .*task.num_labels": rows(label=[0, 1, 2, 0]),
    r"row 3 is -1 \(the hub's mark for a hidden label": rows(label=[0, 1, 0, -1]),
    r"row 1 is None, expected a class": rows(label=[0, None, 1, 0]),
    r"row 1 is 0.5, expected a class": rows(label=[0.0, 0.5, 1.0, 1.0]),
    r"row 0 is 'entailment', expected a class": rows(label=["entailment"] * 4),
}


@pytest.mark.parametrize(("message", "content"), BAD_ROWS.items())
def test_bad_rows(write, tmp_path, message, content):
    write("train", content)
    with pytest.raises(DataError, match=message):
        load_task(RTE, PUBLISHED, str(tmp_path))


@pytest.mark.parametrize("label", [5.1, -0.1, float("nan"), float("inf")])
def test_bad_regression_labels(write, tmp_path, label):
    write("validation", rows(label=[1.0, 2.0, label, 0.0]))
    with pytest.raises(DataError, match=r"split 'validation' of rte, .*row 2 is .*expected a number from 0 to 5"):
        load_task(dataclasses.replace(RTE, num_labels=1, label_range=[0, 5]), PUBLISHED, str(tmp_path))


def test_missing_split_names_folder_files_and_key(write, tmp_path):
    task = dataclasses.replace(RTE, train_split="train_full")
    with pytest.raises(DataError, match=r"no split 'train_full' in .*glue/rte \(found: train.parquet, validation.par"):
        load_task(task, PUBLISHED, str(tmp_path))
    with pytest.raises(DataError, match=r"task.train_split=<split>"):
        load_task(task, PUBLISHED, str(tmp_path))
    with pytest.raises(DataError, match=r"task.validation_splits=\[<split>,...\]"):
        load_task(dataclasses.replace(RTE, validation_splits=["dev"]), PUBLISHED, str(tmp_path))


def test_parts_must_be_whole_and_the_only_copy(write, tmp_path):
    write("train", ROWS, name="train-00000-of-00002.parquet")
    with pytest.raises(DataError, match="not whole"):
        load_task(RTE, PUBLISHED, str(tmp_path))
    write("train", ROWS, name="train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="there twice"):
        load_task(RTE, PUBLISHED, str(tmp_path))


def test_parts_are_read_in_order(write, tmp_path):
    (tmp_path / "glue/rte/train.parquet").unlink()
    for part in range(2):
        write(
            "train", {k: v[2 * part : 2 * part + 2] for k, v in ROWS.items()}, name=f"train-0000{part}-of-00002.parquet"
        )
    assert [row[0] for row in load_task(RTE, PUBLISHED, str(tmp_path)).texts["train"]] == ROWS["sentence1"]


@pytest.mark.parametrize(("name", "neighbor"), [("run[1]", "run1"), ("v?", "v2"), ("new*", "new-old"), ("[!a]", "b")])
def test_a_folders_name_is_no_pattern(tmp_path, name, neighbor):
    for folder, sentence in ((name, "ours"), (neighbor, "theirs")):
        for split in ("train", "validation"):
            target = tmp_path / folder / "glue/rte"
            target.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(rows(sentence1=[sentence] * 4)).to_parquet(target / f"{split}.parquet")
    assert {first for first, _ in load_task(RTE, PUBLISHED, str(tmp_path / name)).texts["train"]} == {"ours"}


def test_damaged_file(write, tmp_path):
    (tmp_path / "glue/rte/train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cannot read split 'train' of rte from .*train.parquet"):
        load_task(RTE, PUBLISHED, str(tmp_path))


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*glue/rte for rte; .*data_dir"):
        load_task(RTE, PUBLISHED, str(tmp_path / "nowhere"))


def test_unreachable_hub(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nand a long story")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(
        DataError, match=r"nyu-mll/glue \(subset rte\).*ConnectionError: Couldn't reach the Hub\).*data_dir="
    ) as e:
        load_task(dataclasses.replace(RTE, name="rte_from_hub"), PUBLISHED, None)
    assert "\n" not in str(e.value)


def test_description_that_contradicts_itself(tmp_path):
    with pytest.raises(DataError, match=r"3 classes but label_range \[0, 1\]"):
        load_task(dataclasses.replace(RTE, num_labels=3), PUBLISHED, str(tmp_path))
    with pytest.raises(DataError, match="expected at least one"):
        load_task(dataclasses.replace(RTE, text_columns=[]), PUBLISHED, str(tmp_path))


def test_generated_task():
    data = load_task(config("wnli"), ScaleConfig(name="micro", data="micro", evaluate_test=True), None)
    assert data.source.startswith("micro-")
    assert data.texts.keys() == {"train", "validation", "test"}
    assert all(len(data.texts[split]) == len(labels) for split, labels in data.labels.items())


SQUAD = compose_run(["task=squad_by_title"]).task


ARTICLES = {
    "title": [f"article {i % 10}" for i in range(40)],
    "question": [f"who was number {i}?" for i in range(40)],
    "context": ["Ada."] * 40,
    "answers": [{"text": ["Ada"], "answer_start": [0]}] * 40,
}


def test_splits_that_are_cut_of_one_share_no_article_and_lose_no_row(tmp_path):
    folder = tmp_path / "squad"
    folder.mkdir()
    Dataset.from_dict(ARTICLES).to_parquet(folder / "validation.parquet")
    data = load_task(SQUAD, PUBLISHED, str(tmp_path))
    found = {split: {source for source, _ in pairs} for split, pairs in data.texts.items()}
    articles = {split: {int(source.split()[4]) % 10 for source in sources} for split, sources in found.items()}
    assert {split: len(numbers) for split, numbers in articles.items()} == {"train": 7, "validation": 1, "test": 2}
    assert sum(map(len, found.values())) == 40
    assert len(set.union(*articles.values())) == 10
    assert load_task(dataclasses.replace(SQUAD, name="again"), PUBLISHED, str(tmp_path)).texts == data.texts
    assert load_task(SQUAD, PUBLISHED, str(tmp_path), trains=False).texts.keys() == {"validation", "test"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut_by": "nope"}, "no column 'nope' .*: change task.cut_by"),
        ({"cut_by": "context"}, "has 1 different values of 'context', expected enough for three splits"),
        (
            {"cut_by": ""},
            "task.cut_from='validation', task.cut_by='', splits train, validation, test; expected a split",
        ),
        ({"cut_from": "dev"}, "no split 'dev'"),
        ({"validation_splits": ["train"]}, "expected a split and a column, and one split each, of three names"),
    ],
)
def test_splits_that_cannot_be_cut_are_refused(tmp_path, change, message):
    folder = tmp_path / "squad"
    folder.mkdir()
    Dataset.from_dict(ARTICLES).to_parquet(folder / "validation.parquet")
    with pytest.raises(DataError, match=message):
        load_task(dataclasses.replace(SQUAD, **change), PUBLISHED, str(tmp_path))
