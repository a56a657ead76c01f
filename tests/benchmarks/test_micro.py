"""The micro language: the same content in every process, the hub's schema, and splits that share nothing."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks.micro.corpus import corpus
from benchmarks.micro.language import FRAMES, OWNERS, frames
from benchmarks.micro.lexicon import (
    plural,
    third_person,
)
from benchmarks.micro.tasks import SIZES, TASKS, held_words, load_micro

COLUMNS = {  # the hub's own, https://huggingface.co/datasets/nyu-mll/glue
    "cola": ["sentence", "label", "idx"],
    "sst2": ["sentence", "label", "idx"],
    "mrpc": ["sentence1", "sentence2", "label", "idx"],
    "stsb": ["sentence1", "sentence2", "label", "idx"],
    "qqp": ["question1", "question2", "label", "idx"],
    "mnli": ["premise", "hypothesis", "label", "idx"],
    "qnli": ["question", "sentence", "label", "idx"],
    "rte": ["sentence1", "sentence2", "label", "idx"],
    "wnli": ["sentence1", "sentence2", "label", "idx"],
}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def texts(task: str, split: str) -> list[tuple[str, ...]]:
    columns = load_micro(task)[split]
    return list(zip(*(columns[name] for name in TASKS[task].columns), strict=True))


def test_every_task_is_there():
    assert set(TASKS) == set(COLUMNS)


def test_content_does_not_depend_on_the_process():
    code = (
        "import json, hashlib; from benchmarks.micro.tasks import load_micro;"
        "print(hashlib.sha256(json.dumps(load_micro('wnli'), sort_keys=True).encode()).hexdigest()[:16])"
    )
    for seed in ("1", "2"):
        env = {"PYTHONHASHSEED": seed, "PATH": ""}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == digest(load_micro("wnli"))


@pytest.mark.parametrize("task", COLUMNS)
def test_schema_is_the_hubs(task):
    loaded = load_micro(task)
    names = {"train", "validation", "test"}
    if task == "mnli":
        names = {"train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"}
    assert set(loaded) == names
    for split, columns in loaded.items():
        assert list(columns) == COLUMNS[task]
        size = TASKS[task].train if split == "train" else SIZES[split.split("_")[0]]
        assert {len(values) for values in columns.values()} == {size}
        assert columns["idx"] == list(range(size))
        if task == "stsb":
            assert all(isinstance(label, float) and 0 <= label <= 5 for label in columns["label"])
        else:
            shares = Counter(columns["label"])
            assert set(shares) == set(range(3 if task == "mnli" else 2))
            assert min(shares.values()) > 0.9 * size / len(shares) - 20
    assert SIZES["test"] >= 2000


def test_lists_are_the_callers_own():
    load_micro("wnli")["train"]["label"].clear()
    assert load_micro("wnli")["train"]["label"]


@pytest.mark.parametrize("task", COLUMNS)
def test_no_item_is_in_two_splits(task):
    items = [item for split in load_micro(task) for item in texts(task, split)]
    assert len(items) == len(set(items))


@pytest.mark.parametrize("task", sorted(set(COLUMNS) - {"wnli"}))
def test_held_words_are_new_at_evaluation(task):
    held = held_words(task)
    forms = held | {third_person(word) for word in held} | {plural(word) for word in held}
    words = {
        split: [set(re.findall(r"\w+", " ".join(item))) for item in texts(task, split)] for split in load_micro(task)
    }
    assert not any(item & forms for item in words["train"])
    for split in set(words) - {"train"}:
        share = sum(bool(item & forms) for item in words[split]) / len(words[split])
        assert share > 0.25, f"{split}: only {share:.0%} of the items contain a held word"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown micro task 'nope'; expected one of"):
        load_micro("nope")
    with pytest.raises(ValueError, match="unknown corpus split 'test'"):
        corpus("test")


def test_frames_are_dealt_out_whole():
    for kind, deck in FRAMES.items():
        dealt = [frame for owner in OWNERS for frame in frames(kind, "baker", owner)]
        assert sorted(dealt) == sorted(deck)
        assert min(len(frames(kind, "baker", owner)) for owner in OWNERS) >= 2
