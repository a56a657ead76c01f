"""XSUM with a BART: ROUGE by hand, what encoder and decoder read, the micro task, what decoding goes by."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from nltk.stem.porter import PorterStemmer
from transformers import AutoTokenizer
from transformers.models.bart.modeling_bart import shift_tokens_right

from peft_bench.answers.decoding import read
from peft_bench.answers.texts import TextAnswers
from peft_bench.backbones.loading import load_backbone
from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.config.compose import compose_run
from peft_bench.metrics.rouge import rouge
from peft_bench.micro.data_to_text import held_words
from peft_bench.micro.lexicon import IN_OPINION, IN_SETTING
from peft_bench.micro.summaries import DOCUMENTS, NOISE, load_summaries
from peft_bench.records.store import read_record, record_path
from peft_bench.runs.checks import check_config
from peft_bench.runs.run import How, run_pack
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_task
from peft_methods.attach import attach
from peft_methods.baselines import Full
from peft_methods.prefix import Prefix

PREFIX = "experiment=prefix_tuning/table2_bart_prefix_2pct"
PREDICTIONS = ["The baker baked two breads.", "a song, sung at dawn", "nothing in common here"]
REFERENCES = ["the bakers bake bread", "at dawn the song was sung", "xyz"]


def config(*words: str) -> Any:
    return compose_run([PREFIX, *words])


@pytest.fixture(scope="module")
def writer():
    cfg = config("trainer.loss_reduction=token_mean")
    tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_bart")
    return TextAnswers(cfg, cfg.task, tokenizer, decoder_start=2)


def test_rouge_is_its_definition():
    """Lin 2004: overlap of n-grams, and the longest common subsequence, of Porter stems of words over 3 letters."""

    def stems(text: str) -> list[str]:
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return [PorterStemmer().stem(word) if len(word) > 3 else word for word in words]

    def f(hits: int, a: int, b: int) -> float:
        return 2 * hits / (a + b) if hits else 0.0

    def n_grams(a: list[str], b: list[str], n: int) -> float:
        x, y = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (a, b))
        return f((x & y).total(), x.total(), y.total())

    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    pairs = [(stems(a), stems(b)) for a, b in zip(PREDICTIONS, REFERENCES, strict=True)]
    expected = {
        "rouge1": np.mean([n_grams(a, b, 1) for a, b in pairs]),
        "rouge2": np.mean([n_grams(a, b, 2) for a, b in pairs]),
        "rougeL": np.mean([f(longest(a, b), len(a), len(b)) for a, b in pairs]),
    }
    found = rouge(PREDICTIONS, [[text] for text in REFERENCES])
    assert found == pytest.approx(expected)
    assert 0 < found["rouge2"] < found["rougeL"] < found["rouge1"] < 1


def test_the_best_of_several_references_counts():
    assert rouge(["a song at dawn"], [["nothing", "a song at dawn"]])["rougeL"] == 1.0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [(["a"], [["a"], ["b"]], "1 .*2"), (["a"], [[]], "reference"), (["a"], [[" "]], "empty|reference")],
)
def test_what_has_no_rouge_is_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        rouge(predictions, references)


def test_bart_reads_and_writes_whole_texts(writer):
    """As transformers' own tokenizer and shift make them."""
    model = load_backbone(config().backbone, config().scale, None, torch.device("cpu"), 0).model
    sources, targets = ["the soup was fine.", "it was at dawn."], ["hurrah.", "pity, baker feast."]
    split = writer.pairs(sources, targets, np.zeros(2, dtype=np.int64), 48)
    batch = writer.training_batch(split, np.array([0, 1]))
    theirs = writer.tokenizer(sources, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"])
    written = writer.tokenizer(targets, padding=True, return_tensors="pt")
    read = written["attention_mask"].bool()
    assert torch.equal(batch["labels"][read], written["input_ids"][read])
    shifted = shift_tokens_right(written["input_ids"], model.config.pad_token_id, model.config.decoder_start_token_id)
    assert torch.equal(batch["decoder_input_ids"][read], shifted[read])
    assert (batch["labels"][~read] == -100).all()


def test_the_loss_is_that_of_transformers(writer):
    cfg = config()
    model = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0).model
    split = writer.pairs(["the soup was fine.", "at dawn."], ["hurrah.", "pity, baker feast."], np.zeros(2), 48)
    rows = np.array([0, 1])
    batch = writer.training_batch(split, rows)
    labels = batch.pop("labels")
    attached = attach(model, [Full()])
    (logits,) = attached([batch])
    ours = writer.loss(logits, labels) / writer.weight(split, rows)
    attached.detach()
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_long_targets_lose_their_end_and_references_do_not(writer):
    long = "pity, miller feast: soup there at church."
    full, cut = (writer.pairs(["a"], [long], np.zeros(1), 48, most).target_rows(np.array([0]))[0] for most in (None, 6))
    assert len(full) > 6
    assert cut.tolist() == [*full[:5].tolist(), full[-1]]
    cfg = config("task.micro_generation.target_tokens=2")
    with pytest.raises(DataError, match="target_tokens=2: expected at least 3"):
        load_task(cfg.task, cfg.scale, None)


def test_the_micro_task_holds_what_it_says():
    tables = load_summaries()
    documents = {split: columns["document"] for split, columns in tables.items()}
    assert {split: len(set(lines)) for split, lines in documents.items()} == DOCUMENTS
    assert len(set().union(*documents.values())) == sum(DOCUMENTS.values())
    words = {word.strip(".,?") for line in documents["train"] for word in line.split()}
    assert not held_words() & words
    assert held_words() & {word.strip(".,?") for line in documents["test"] for word in line.split()}
    said = wrong = 0
    for document, summary in zip(documents["test"], tables["test"]["summary"], strict=True):
        opinion, rest = summary.rstrip(".").split(", ", 1)
        (person, _), (thing, setting, at, where) = (part.split() for part in rest.split(": "))
        assert (opinion in IN_OPINION, setting in IN_SETTING, at) == (True, True, "at")
        assert f"the {person}" in document
        said += f"the {thing}" in document and f"at {where}" in document
        wrong += f"the {thing}" not in document or f"at {where}" not in document
    # Of three ways to be wrong, another opinion leaves thing and setting as they are.
    assert wrong / (said + wrong) == pytest.approx(NOISE * 2 / 3, abs=0.05)


def test_a_checkpoints_own_generation_settings_do_not_count(tmp_path):
    cfg = config()
    model = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0)
    model.model.generation_config.update(num_beams=4, no_repeat_ngram_size=3, forced_eos_token_id=2, max_length=7)
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    cfg = config("scale=small", f"backbone_dir={tmp_path}", "backbone.other_shape=true")
    loaded = load_backbone(cfg.backbone, cfg.scale, str(tmp_path), torch.device("cpu"), 0).model.generation_config
    for name in ("num_beams", "no_repeat_ngram_size", "forced_eos_token_id", "max_length"):
        assert getattr(loaded, name) != getattr(model.model.generation_config, name)
    assert (loaded.decoder_start_token_id, loaded.bos_token_id, loaded.eos_token_id) == (2, 0, 2)


def test_an_output_of_bart_begins_after_its_first_token(writer):
    ids = writer.tokenizer("hurrah, baker.")["input_ids"]
    assert read(ids, config().decoding, writer.tokenizer) == ("hurrah, baker.", True)
    assert read(ids[:-1], config().decoding, writer.tokenizer) == ("hurrah, baker.", False)
    assert read([writer.end, writer.pad], config().decoding, writer.tokenizer) == ("", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decoding=prefix_e2e"], "counts source and output as one sequence, which they are not in bart_large"),
        (["decoding.min_new_tokens=99"], "min_new_tokens=99 is more than decoding.max_new_tokens"),
        (["decoding.early_stopping=always"], "early_stopping='always': expected one of heuristic, never, first"),
        (["task.metrics=[rouge9]", "task.selection_metric=rouge9"], "expected names among loss, bleu.* rouge1"),
    ],
)
def test_wrong_settings_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        check_config(config(*words))


def test_a_pack_runs_from_configuration_to_record(tmp_path, monkeypatch):
    from peft_bench.micro import summaries
    from peft_bench.tasks import texts

    monkeypatch.setattr(summaries, "DOCUMENTS", {"train": 30, "validation": 12, "test": 10})
    monkeypatch.setattr(summaries, "_load", summaries._load.__wrapped__)
    texts._load.cache_clear()
    words = [f"results_dir={tmp_path}", "trainer.max_steps=4", "decoding.beams=2", "decoding.max_new_tokens=12"]
    cfgs = [config(f"method.length={n}", "method.mlp_hidden=8", *words) for n in (1, 3)]
    outcomes = run_pack(cfgs, How(show_progress=False))
    texts._load.cache_clear()
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    for outcome in outcomes:
        record = read_record(record_path(tmp_path, "prefix_tuning/table2_bart_prefix_2pct", outcome.run_id))
        found = {(s["split"], s["metric"]): s["score"] for s in record["scores"] if s["checkpoint"] == "best"}
        for name in ("rouge1", "rouge2", "rougeL"):
            score = found["test", name]
            assert score is not None
            assert 0 <= score <= 1
        assert math.isfinite(found["test", "loss"] or math.inf)


def test_three_prefixes_are_stored_and_trained():
    """Of the encoder's, the decoder's and the cross-attention's keys and values."""
    model = load_backbone(config().backbone, config().scale, None, torch.device("cpu"), 0).model
    attached = attach(model, [Prefix(3, None, "random", "")])
    layers, width = 2, 64
    assert sum(p.numel() for p in attached.runs[0].parameters()) == 3 * 2 * layers * width * 3
    attached.detach()
