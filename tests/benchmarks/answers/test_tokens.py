"""Texts as token ids, cut, padded and kept as the library's."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from peft_bench.answers.tokens import collate, tokenize, tokenizer_sha256
from peft_bench.config.schema import CONF_DIR, BackboneConfig
from peft_bench.rehearsal.standins import make_backbone
from peft_bench.tasks.examples import DataError, TaskData, content_hash

PAIRS: list[tuple[str, ...]] = [
    ("A cat sat.", "A cat."),
    ("Dogs bark ", "Cats bark."),
    ("It rains.", "Ça va?"),
    ("", "No."),
]


def data(texts: list[tuple[str, ...]] = PAIRS, labels: Any = (0, 1, 0, 1)) -> TaskData:
    """The rows as the only split; its hash is of its content."""
    columns = {"train": texts}, {"train": np.array(labels)}
    return TaskData(*columns, "glue", content_hash(*columns))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    folders = {}
    for name in ("bert_base_uncased", "roberta_base"):
        backbone = BackboneConfig(**yaml.safe_load((CONF_DIR / f"backbone/{name}.yaml").read_text()))
        folders[backbone.model_type] = make_backbone(root, backbone)
    return {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_tokens_are_those_of_the_library(tokenizers, kind):
    pairs, tokenizer = data(), tokenizers[kind]
    with_types = kind == "bert"
    split = tokenize(pairs, tokenizer, 10, with_types)["train"]
    assert len(split) == 4
    for i, (a, b) in enumerate(pairs.texts["train"]):
        alone = tokenizer(a, b, truncation="longest_first", max_length=10, return_token_type_ids=True)
        row = slice(split.offsets[i], split.offsets[i + 1])
        assert split.input_ids[row].tolist() == alone["input_ids"]
        if split.token_type_ids is not None:
            assert split.token_type_ids[row].tolist() == alone["token_type_ids"]
    assert split.lengths.max() == 10  # some row was truncated
    assert (split.token_type_ids is None) == (kind == "roberta")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_batches_equal_those_the_library_pads(tokenizers, kind):
    pairs, tokenizer = data(), tokenizers[kind]
    split = tokenize(pairs, tokenizer, 48, kind == "bert")["train"]
    order = np.array([3, 0, 0, 2])
    texts = [pairs.texts["train"][i] for i in order]
    theirs = tokenizer([a for a, _ in texts], [b for _, b in texts], padding=True, return_tensors="pt")
    ours = collate(split, order, tokenizer.pad_token_id)
    assert ours.keys() == {"input_ids", "attention_mask", "labels"} | ({"token_type_ids"} if kind == "bert" else set())
    for name in ours.keys() - {"labels"}:
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].dtype == torch.int64
    assert ours["labels"].tolist() == [1, 0, 0, 0]
    assert ours["labels"].dtype == torch.int64


def test_regression_batches_are_float32(tokenizers):
    split = tokenize(data(labels=(0.0, 1.0, 0.0, 1.0)), tokenizers["bert"], 48, True)["train"]
    assert collate(split, np.array([1, 2]), 0)["labels"].dtype == torch.float32


def test_single_texts(tokenizers):
    rows = tokenize(data([("a red house",), ("no",)], (1, 0)), tokenizers["bert"], 16, True)["train"]
    assert rows.lengths.tolist() == [5, 3]
    assert rows.token_type_ids is not None
    assert not rows.token_type_ids.any()


def test_tokens_are_kept_by_content_tokenizer_and_length(tokenizers):
    pairs, tokenizer = data(), tokenizers["bert"]
    first = tokenize(pairs, tokenizer, 20, True)
    assert tokenize(dataclasses.replace(pairs), tokenizer, 20, True) is first
    others = [(tokenizer, 21, True), (tokenizer, 20, False), (tokenizers["roberta"], 20, True)]
    assert all(tokenize(pairs, *other) is not first for other in others)


def test_tokenizer_hash_does_not_depend_on_use(tokenizers, tmp_path):
    tokenizers["bert"].save_pretrained(tmp_path)
    fresh = AutoTokenizer.from_pretrained(tmp_path)
    fresh("a long sentence", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_sha256(fresh) == tokenizer_sha256(tokenizers["bert"]) != tokenizer_sha256(tokenizers["roberta"])


@pytest.mark.parametrize("length", [3, 513])
def test_impossible_length(tokenizers, length):
    with pytest.raises(DataError, match=rf"trainer.max_length={length}, expected 4 to 512 tokens"):
        tokenize(data(), tokenizers["bert"], length, True)
