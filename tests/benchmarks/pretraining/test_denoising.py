"""BART's objective written out: what is masked, what is shuffled, and what the decoder reads."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers.models.bart.modeling_bart import shift_tokens_right

from peft_bench.pretraining.builders import Sizes, build_bart
from peft_bench.pretraining.denoising import MASKED, DenoisingStream, infill
from peft_bench.pretraining.objectives import documents_of

DOCUMENTS = documents_of("validation")[:300]
MASK = -1


@pytest.fixture(scope="module")
def bart():
    sizes = Sizes(hidden_size=16, layers=1, heads=2, positions=32)
    return build_bart(sizes, [line for lines in DOCUMENTS for line in lines])


@pytest.mark.parametrize("tokens", [1, 2, 5, 30, 200])
def test_three_tenths_of_the_tokens_are_masked_in_spans(tokens):
    rng, ids = np.random.default_rng(tokens), list(range(tokens))
    for _ in range(200):
        masked = infill(rng, ids, MASK)
        kept = [token for token in masked if token != MASK]
        assert len(kept) == tokens - round(MASKED * tokens)
        assert kept == sorted(kept)
        assert all(pair != (MASK, MASK) for pair in pairwise(masked))


def test_the_lengths_of_spans_follow_poisson():
    """Of a long text, where the cut of the last span does not weigh: mean 3, and e^-3 of the spans are empty."""
    rng, ids, lengths = np.random.default_rng(0), list(range(20_000)), []
    masked = infill(rng, ids, MASK)
    for i, token in enumerate(masked):
        if token == MASK:
            before = masked[i - 1] if i else -1
            after = masked[i + 1] if i + 1 < len(masked) else len(ids)
            lengths.append(after - before - 1)
    assert np.mean(lengths) == pytest.approx(3.0, abs=0.15)
    assert np.var(lengths) == pytest.approx(3.0, abs=0.4)
    assert np.mean(np.array(lengths) == 0) == pytest.approx(np.exp(-3), abs=0.015)


def test_the_decoder_reads_what_transformers_would_give_it(bart):
    tokenizer, model = bart
    batch = DenoisingStream(tokenizer, DOCUMENTS, 16, 64, seed=3).batch()
    config = model.config
    shifted = shift_tokens_right(batch["labels"], config.pad_token_id, config.decoder_start_token_id)
    read = batch["labels"] != -100
    assert torch.equal(batch["decoder_input_ids"][read], shifted[read])
    assert torch.equal(batch["decoder_attention_mask"], read.long())
    assert (batch["input_ids"][:, 0] == config.bos_token_id).all()


def test_the_target_is_the_text_and_the_input_its_sentences_in_another_order(bart, monkeypatch):
    monkeypatch.setattr("peft_bench.pretraining.denoising.MASKED", 0.0)
    tokenizer, _ = bart
    batch = DenoisingStream(tokenizer, DOCUMENTS, 32, 4_000, seed=3).batch()
    sentences = {line: i for i, lines in enumerate(DOCUMENTS) for line in lines}
    moved = 0
    for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        shuffled = tokenizer.decode(inputs, skip_special_tokens=True)
        assert sorted(text.split()) == sorted(shuffled.split())
        assert {sentences[line] for line in sentences if f" {line}" in text}  # of the corpus
        moved += text != shuffled
    assert moved > 16


def test_short_texts_are_one_document_in_order(bart, monkeypatch):
    monkeypatch.setattr("peft_bench.pretraining.denoising.MASKED", 0.0)
    tokenizer, _ = bart
    stream = DenoisingStream(tokenizer, DOCUMENTS, 32, 4_000, seed=3)
    stream.short = True
    texts = {"".join(f" {line}" for line in lines) for lines in DOCUMENTS}
    for inputs in stream.batch()["input_ids"]:
        assert tokenizer.decode(inputs, skip_special_tokens=True) in texts
