"""The objectives written out: packing, splitting and corrupting lose nothing, and the noise is as stated."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from peft_bench.pretraining import loop
from peft_bench.pretraining.builders import Sizes, build_gpt2, build_t5
from peft_bench.pretraining.causal_lm import CausalStream
from peft_bench.pretraining.chunks import Packing
from peft_bench.pretraining.loop import pretrain
from peft_bench.pretraining.objectives import documents_of, make_stream, training_loss
from peft_bench.pretraining.prefix_lm import PrefixStream, split
from peft_bench.pretraining.settings import SHIPPED, PretrainConfig
from peft_bench.pretraining.span_corruption import (
    MEAN_SPAN,
    NOISE_DENSITY,
    SpanStream,
    noise_counts,
    noise_mask,
    replace_spans,
    text_length,
)

DOCUMENTS = documents_of("validation")[:300]
TEXTS = [" ".join(lines) for lines in DOCUMENTS]
SIZES = Sizes(hidden_size=16, layers=1, heads=2, positions=32)


@pytest.fixture(scope="module")
def gpt2():
    return build_gpt2(SIZES, [line for lines in DOCUMENTS for line in lines])


@pytest.fixture(scope="module")
def t5():
    return build_t5(SIZES, [line for lines in DOCUMENTS for line in lines])


def restored(inputs: list[int], targets: list[int], first_sentinel: int, end: int) -> list[int]:
    """The text: the input with every sentinel replaced by what follows the same sentinel in the target."""
    assert (inputs[-1], targets[-1]) == (end, end)
    sentinels = range(first_sentinel - 99, first_sentinel + 1)
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for kept in inputs[:-1] for token in (spans[kept] if kept in sentinels else [kept])]


def test_corrupted_spans_restore_the_text(t5):
    tokenizer, _ = t5
    first, end = tokenizer.convert_tokens_to_ids("<extra_id_0>"), tokenizer.eos_token_id
    stream = SpanStream(tokenizer, TEXTS, 64, 64, seed=3)
    batch = stream.batch()
    assert batch["input_ids"].shape == (64, 64)
    plain = SpanStream(tokenizer, TEXTS, 64, 64, seed=3).packing.chunks(64, text_length(64))
    dropped, spans = noise_counts(text_length(64))
    assert batch["labels"].shape == (64, dropped + spans + 1)
    for ids, inputs, targets in zip(plain.tolist(), batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert restored(inputs, targets, first, end) == ids
        for side in (inputs, targets):  # in order, each once: the last id first
            assert [token for token in side if token > first - 100] == [first - span for span in range(spans)]
        assert targets[0] == first
        assert inputs[-2] == first - spans + 1  # the last span is always dropped, so no sentinel ends the target


def test_short_inputs_are_as_many_tokens_with_one_span(t5):
    tokenizer, _ = t5
    stream = SpanStream(tokenizer, TEXTS, 6, 64, seed=3)
    stream.short = True
    batch = stream.batch()
    assert batch["input_ids"].shape == (16, 24)
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    assert (batch["input_ids"] > first - 100).sum(dim=1).tolist() == [1] * 16


@pytest.mark.parametrize("tokens", [2, 3, 7, 34, 70, 568])
def test_noise_has_the_stated_density_and_spans(tokens):
    mask = noise_mask(np.random.default_rng(0), 200, tokens)
    dropped, spans = noise_counts(tokens)
    assert (mask.sum(axis=1) == dropped).all()
    starts = (np.diff(mask.astype(int), axis=1) == 1).sum(axis=1)
    assert (starts == spans).all()
    assert not mask[:, 0].any()
    assert mask[:, -1].all()
    if tokens > 60:
        assert dropped / tokens == pytest.approx(NOISE_DENSITY, abs=0.01)
        assert dropped / spans == pytest.approx(MEAN_SPAN, abs=0.4)


def test_every_way_to_drop_two_spans_is_equally_likely():
    masks = noise_mask(np.random.default_rng(0), 30_000, 40)  # 6 tokens in 2 spans: 5 ways; the other 34: 33 ways
    kept_first = masks.argmax(axis=1)
    assert set(kept_first) == set(range(1, 34))
    ends = np.array([row[start:].argmin() for row, start in zip(masks, kept_first, strict=True)])
    for lengths, ways in ((kept_first, 33), (ends, 5)):
        shares = np.bincount(lengths)[1:] / len(masks)
        assert shares == pytest.approx(1 / ways, rel=0.2)


def test_a_chunk_fills_the_input():
    assert noise_counts(568) == (85, 28)
    assert text_length(512) == 568  # of the published T5: 512 inputs, 114 targets
    for inputs_length in range(8, 200):
        tokens = text_length(inputs_length)
        dropped, spans = noise_counts(tokens)
        assert tokens - dropped + spans + 1 <= inputs_length


def test_spans_written_out():
    ids = np.array([[10, 11, 12, 13, 14, 15, 16]])
    mask = np.array([[False, True, True, False, False, False, True]])
    assert replace_spans(ids, mask, 99).tolist() == [[10, 99, 13, 14, 15, 98]]
    assert replace_spans(ids, ~mask, 99).tolist() == [[99, 11, 12, 98, 16]]


def test_prefix_and_rest_are_the_document(t5):
    tokenizer, _ = t5
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    stream = PrefixStream(tokenizer, TEXTS, len(TEXTS), 64, seed=0)
    assert [ids for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"] if len(ids) < 64] == stream.chunks
    order = np.random.default_rng(0).permutation(len(TEXTS))
    batch = stream.batch()
    for row, index in enumerate(order):
        prefix = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        rest = batch["labels"][row][batch["decoder_attention_mask"][row] == 1].tolist()
        assert prefix[-1] == rest[-1] == end
        assert prefix[:-1]
        assert rest[:-1]
        assert prefix[:-1] + rest[:-1] == stream.chunks[index]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == pad).all()
    assert (batch["labels"][batch["decoder_attention_mask"] == 0] == -100).all()


def test_long_documents_are_cut_and_nothing_is_lost(t5):
    tokenizer, _ = t5
    stream = PrefixStream(tokenizer, TEXTS[:20], 4, 9, seed=0)
    assert max(map(len, stream.chunks)) == 8
    whole = sum(len(ids) for ids in tokenizer(TEXTS[:20], add_special_tokens=False)["input_ids"])
    assert whole - 20 <= sum(map(len, stream.chunks)) <= whole  # but for a last token alone, which cannot be split


def test_the_split_is_uniform():
    rng = np.random.default_rng(0)
    lengths = [len(split(rng, list(range(6)))[0]) for _ in range(5000)]
    assert np.bincount(lengths, minlength=6)[1:] / 5000 == pytest.approx(0.2, abs=0.02)


def test_packing_keeps_every_token_in_order():
    documents = [[index] * (1 + index % 7) for index in range(50)]
    packing = Packing(documents, np.random.default_rng(0))
    total = sum(map(len, documents))
    stream = np.concatenate([packing.chunks(3, 8).ravel() for _ in range(2 * total // 24)])
    epoch = stream[:total]
    assert np.bincount(epoch).tolist() == [len(ids) for ids in documents]
    assert sum(a != b for a, b in pairwise(epoch)) == len(documents) - 1  # none of them is torn apart


def test_documents_end_with_the_end_token(gpt2):
    tokenizer, _ = gpt2
    stream = CausalStream(tokenizer, TEXTS, 16, 32, seed=0)
    batches = [stream.batch() for _ in range(12)]
    assert all(torch.equal(batch["labels"], batch["input_ids"]) for batch in batches)
    ids = torch.cat([batch["input_ids"].ravel() for batch in batches])
    read = tokenizer.decode(ids).split("<|endoftext|>")
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert read[:-1] == [TEXTS[index] for index in order][: len(read) - 1]
    assert len(read) > 100


def test_losses_are_the_models_own(gpt2, t5):
    """Written out from the logits: the next token; the target token."""
    for objective, (tokenizer, model) in {"causal_lm": gpt2, "span_corruption": t5, "prefix_lm": t5}.items():
        stream = make_stream(objective, model.config.model_type, tokenizer, DOCUMENTS, 4, 32, seed=0)
        batch = stream.batch()
        with torch.no_grad():
            loss, logits = training_loss(model, batch), model(**batch).logits
        labels = batch["labels"]
        if objective == "causal_lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        nats = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        assert float(loss) == pytest.approx(float(nats[labels >= 0].mean()), rel=1e-5)


def test_streams_repeat_and_differ_by_seed(t5):
    tokenizer, _ = t5
    for objective in ("span_corruption", "prefix_lm"):
        first, again, other = (make_stream(objective, "t5", tokenizer, DOCUMENTS, 8, 32, seed) for seed in (0, 0, 1))
        batch = first.batch()
        assert all(torch.equal(tensor, batch[name]) for name, tensor in again.batch().items())
        changed = other.batch()["input_ids"]
        assert changed.shape != batch["input_ids"].shape or not torch.equal(changed, batch["input_ids"])


def test_lm_adaptation_goes_on_from_span_corruption(tmp_path):
    cfg = PretrainConfig("t5", tmp_path / "spans", "span_corruption", SIZES, steps=30, batch_size=16, documents=300)
    pretrain(cfg)
    adapt = PretrainConfig(
        "t5", tmp_path / "adapted", "prefix_lm", SIZES, steps=20, batch_size=16, documents=300, start=cfg.output
    )
    adapted = pretrain(adapt)
    fresh = pretrain(
        PretrainConfig("t5", tmp_path / "fresh", "prefix_lm", SIZES, steps=20, batch_size=16, documents=300)
    )
    assert adapted.validation_loss < fresh.validation_loss - 0.1
    record = (adapt.output / "pretraining.json").read_text()
    assert '"start": "spans"' in record
    assert str(tmp_path) not in record
    with pytest.raises(ValueError, match="holds a t5 of width 16, expected t5 of 64"):
        pretrain(PretrainConfig("t5", tmp_path / "x", "prefix_lm", start=cfg.output))


def test_a_stopped_pretraining_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Stopped in the middle of its steps, with a checkpoint kept on the way."""
    cfg = PretrainConfig(
        "t5", tmp_path / "whole", "span_corruption", SIZES, steps=30, batch_size=8, documents=200, keep=(10,)
    )
    whole = pretrain(cfg)
    assert json.loads((tmp_path / "whole_10" / "pretraining.json").read_text())["report"]["steps"] == 10
    monkeypatch.setattr(loop, "STATE_SECONDS", 0.0)
    losses = loop.training_loss
    seen = []

    def stop(model, batch):
        seen.append(1)
        if len(seen) == 17:
            raise KeyboardInterrupt
        return losses(model, batch)

    monkeypatch.setattr(loop, "training_loss", stop)
    stopped = replace(cfg, output=tmp_path / "stopped" / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped)
    with pytest.raises(
        ValueError, match="whole_10 holds a backbone made with other learning_rate, and would be replaced"
    ):
        pretrain(replace(stopped, learning_rate=1e-3))
    with pytest.raises(ValueError, match="is the state of a run with other learning_rate, keep: finish that run"):
        pretrain(replace(stopped, learning_rate=1e-3, keep=()))
    report = pretrain(stopped)
    assert len(seen) == 17 + 14
    assert report.weights_sha256 == whole.weights_sha256
    assert (report.tokens, report.train_loss) == (whole.tokens, whole.train_loss)
    assert [path.name for path in sorted(stopped.output.parent.iterdir())] == ["whole", "whole_10"]


def test_objectives_belong_to_architectures():
    for cfg in SHIPPED.values():
        assert cfg.output.parent == Path(SHIPPED["bert"].output.parent)
    with pytest.raises(ValueError, match="no objective 'causal_lm' for t5; expected 'span_corruption' or 'prefix_lm'"):
        pretrain(PretrainConfig("t5", Path("unused"), "causal_lm"))
