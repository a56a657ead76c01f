"""The shipped GPT-2, BART and T5: layout and tokenizers of the published ones, trained well past token frequencies."""

import functools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5ForConditionalGeneration,
)

from peft_bench.backbones.files import stand_in
from peft_bench.backbones.loading import untie_output_layer
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import BackboneConfig
from peft_bench.micro.corpus import corpus
from peft_bench.micro.language import LANGUAGE_VERSION
from peft_bench.micro.tasks import TASKS, load_micro
from peft_bench.pretraining.builders import Sizes, build_t5
from peft_bench.pretraining.folder import load_pretrained, load_tokenizer
from peft_bench.pretraining.objectives import unigram_loss, validation_loss
from peft_bench.pretraining.settings import SHIPPED
from peft_methods.state import file_sha256

CORRUPTED = ["t5_small", "t5_base", "t5_large"]
ADAPTED = [f"{name}_lm" for name in CORRUPTED]
T5 = [*CORRUPTED, *ADAPTED]
GENERATIVE = ["gpt2", "bart", *T5]
FOLDERS = {name: SHIPPED[name].output for name in GENERATIVE}


@functools.cache
def loss_of_frequencies(model_type: str, objective: str) -> float:
    name = "t5_small" if model_type == "t5" else model_type  # every T5 has this tokenizer
    return unigram_loss(load_tokenizer(FOLDERS[name]), objective, model_type, batches=3, documents=6_000)


@functools.cache
def loss_of(name: str, objective: str) -> float:
    folder = FOLDERS[name]
    return validation_loss(load_pretrained(folder), load_tokenizer(folder), objective, batches=3)


@pytest.mark.parametrize("name", GENERATIVE)
def test_shipped_folder_is_what_its_report_says(name):
    folder = FOLDERS[name]
    assert all(file.stat().st_size <= 2_000_000 for file in folder.iterdir())
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["report"]["weights_sha256"] == file_sha256(folder / "model.safetensors")
    assert record["report"]["language_version"] == LANGUAGE_VERSION
    made = SHIPPED[name]
    settings = {"objective": made.objective, "steps": made.steps, "batch_size": made.batch_size}
    settings["start"] = made.start.name if made.start else None
    assert record["config"] == record["config"] | settings
    assert record["config"]["sizes"]["hidden_size"] == made.sizes.hidden_size


@pytest.mark.parametrize("name", GENERATIVE)
def test_shipped_loss_is_far_below_that_of_frequencies(name):
    made = SHIPPED[name]
    report = json.loads((made.output / "pretraining.json").read_text())["report"]
    loss, frequencies = loss_of(name, made.objective), loss_of_frequencies(made.model_type, made.objective)
    assert loss == pytest.approx(report["validation_loss"], abs=0.05)
    assert loss < frequencies - 1.5
    assert frequencies < math.log(len(load_tokenizer(made.output))) - 1


@pytest.mark.parametrize("name", CORRUPTED)
def test_adaptation_makes_a_language_model_of_what_was_none(name):
    """Lester et al., section 3.2: span corruption alone leaves a model that has never seen plain text."""
    assert loss_of(name, "prefix_lm") > loss_of_frequencies("t5", "prefix_lm")
    assert loss_of(f"{name}_lm", "prefix_lm") < loss_of_frequencies("t5", "prefix_lm") - 2.5
    made, spans = SHIPPED[f"{name}_lm"], SHIPPED[name]
    assert (made.start, made.steps) == (spans.output, 12_000)
    assert (made.output / "tokenizer.json").read_bytes() == (spans.output / "tokenizer.json").read_bytes()


def test_longer_adaptation_makes_a_better_language_model():
    """The shipped checkpoints of its way: 1,200, 6,000 and all 12,000 steps, as 10,000, 50,000 and 100,000."""
    whole = FOLDERS["t5_large_lm"]
    losses = []
    for folder in (whole.with_name(f"{whole.name}_{step}") for step in SHIPPED["t5_large_lm"].keep):
        record = json.loads((folder / "pretraining.json").read_text())
        assert record["report"]["weights_sha256"] == file_sha256(folder / "model.safetensors")
        assert folder.name.endswith(f"_{record['report']['steps']}")
        losses.append(validation_loss(load_pretrained(folder), load_tokenizer(folder), "prefix_lm", batches=3))
    assert losses[0] > losses[1] > loss_of("t5_large_lm", "prefix_lm")


@pytest.mark.parametrize("name", ADAPTED)
def test_adapted_t5_writes_the_language(name):
    """From the start of a sentence to its end, in the corpus's words and without sentinels."""
    tokenizer, model = load_tokenizer(FOLDERS[name]), load_pretrained(FOLDERS[name]).eval()
    for start in ("the gardener", "although the", "did the"):
        ids = tokenizer(start, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=60, do_sample=False)[0]
        assert written[-1] == tokenizer.eos_token_id  # it ended by itself
        text = tokenizer.decode(written, skip_special_tokens=False).removeprefix("<pad>").removesuffix("</s>").strip()
        assert {word.strip(".,?") for word in text.split()} <= words_of_corpus()


@functools.cache
def words_of_corpus() -> set[str]:
    return {word.strip(".,?") for document in corpus("validation") for word in document.split()}


def test_shipped_backbones_load_as_anyone_loads_them(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, folder in FOLDERS.items():
        model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not loading["missing_keys"]
        assert set(loading["unexpected_keys"]) <= {"lm_head.weight", "final_logits_bias"}
        tokens = AutoTokenizer.from_pretrained(folder)(["the baker bought the hammer."], return_tensors="pt")
        inputs = tokens if name == "gpt2" else {**tokens, "decoder_input_ids": tokens["input_ids"]}
        assert model.eval()(**inputs).last_hidden_state.isfinite().all()
    gpt2 = AutoModelForCausalLM.from_pretrained(FOLDERS["gpt2"]).config
    assert (gpt2.n_layer, gpt2.n_embd, gpt2.n_head, gpt2.n_positions) == (2, 64, 4, 128)
    assert gpt2.resid_pdrop == gpt2.embd_pdrop == gpt2.attn_pdrop == 0.0
    assert gpt2.initializer_range == 0.07
    assert gpt2.pad_token_id is None  # as published


@pytest.mark.parametrize("name", T5)
def test_t5_is_laid_out_as_1_1(name):
    config = json.loads((FOLDERS[name] / "config.json").read_text())
    assert config["feed_forward_proj"] == "gated-gelu"
    assert not config["scale_decoder_outputs"]
    assert not config["tie_word_embeddings"]  # as in the published 1.1: other readers of the file do not scale either
    assert config["dropout_rate"] == config["classifier_dropout"] == 0.0
    assert (config["num_layers"], config["num_decoder_layers"]) == (2, 2)
    assert (config["pad_token_id"], config["eos_token_id"], config["decoder_start_token_id"]) == (0, 1, 0)
    weights = load_file(FOLDERS[name] / "model.safetensors")
    assert weights["lm_head.weight"].shape == weights["shared.weight"].shape
    assert not torch.allclose(weights["lm_head.weight"], weights["shared.weight"], atol=0.1)


@pytest.mark.parametrize("name", T5)
def test_t5_stays_untied_and_unscaled(name, tmp_path):
    folder = FOLDERS[name]
    tokenizer, model = load_tokenizer(folder), load_pretrained(folder).eval()
    tokens = tokenizer(["the baker <extra_id_0> the hammer."], return_tensors="pt")
    target = tokenizer(["<extra_id_0> bought"], return_tensors="pt")["input_ids"]
    outputs = model(**tokens, labels=target, output_hidden_states=True)
    last = outputs.decoder_hidden_states[-1]
    torch.testing.assert_close(outputs.logits, last @ model.lm_head.weight.T)  # and not last / sqrt(d_model)
    model.save_pretrained(tmp_path)
    for place in (folder, tmp_path):
        for model_class in (AutoModelForSeq2SeqLM, T5ForConditionalGeneration):
            loaded = model_class.from_pretrained(place).eval()
            assert not loaded.config.scale_decoder_outputs
            assert loaded.lm_head.weight is not loaded.shared.weight
            assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
            assert torch.equal(loaded(**tokens, labels=target).logits, outputs.logits)


def test_untying_survives_what_ties():
    """transformers ties every T5 it builds; after untying, neither tie_weights() nor a second call changes anything."""
    _, model = build_t5(Sizes(hidden_size=16, layers=1), ["the baker bought the hammer."])
    head, shared = model.lm_head.weight, model.shared.weight
    assert head is not shared
    assert head.detach().std() == pytest.approx(16**-0.5, rel=0.1)
    for again in (model.tie_weights, lambda: untie_output_layer(model)):
        again()
        assert model.lm_head.weight is head
        assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is shared
    config = model.config
    tied = T5ForConditionalGeneration(config)
    if tied.lm_head.weight is tied.shared.weight:  # once transformers leaves it untied, the function is not needed
        untie_output_layer(tied)
    assert tied.lm_head.weight is not tied.shared.weight


def test_t5_tokenizer_is_laid_out_as_published():
    tokenizers = [load_tokenizer(FOLDERS[name]) for name in T5]
    first = tokenizers[0]
    assert all(tokenizer.get_vocab() == first.get_vocab() for tokenizer in tokenizers)
    assert first.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert (first.pad_token_id, first.eos_token_id, first.unk_token_id) == (0, 1, 2)
    sentinels = first.convert_tokens_to_ids([f"<extra_id_{index}>" for index in range(100)])
    assert sentinels == list(range(len(first) - 1, len(first) - 101, -1))
    assert json.loads((FOLDERS["t5_small"] / "config.json").read_text())["vocab_size"] == len(first)
    assert first.tokenize("the baker <extra_id_0> bad.") == ["▁the", "▁baker", "<extra_id_0>", "▁bad", "."]
    assert first("the baker")["input_ids"][-1] == 1
    ids = first("the baker", "bad")["input_ids"]
    assert ids.count(1) == 2


def test_gpt2_tokenizer_is_laid_out_as_published():
    tokenizer = load_tokenizer(FOLDERS["gpt2"])
    end = len(tokenizer) - 1
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == end
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.unk_token_id == end
    assert tokenizer.pad_token_id == end  # no pad token in the vocabulary; it pads with this one
    assert set(tokenizer.all_special_tokens) == {"<|endoftext|>"}
    assert tokenizer.tokenize("the baker") == ["the", "Ġbaker"]
    assert end not in tokenizer("the baker")["input_ids"]  # nothing is added
    batch = tokenizer(["the baker", "the"], padding=True)
    assert batch["attention_mask"] == [[1, 1], [1, 0]]


@pytest.mark.parametrize("name", ["gpt2", "bart", "t5_small"])
def test_tokenizer_round_trip(name):
    tokenizer = load_tokenizer(FOLDERS[name])
    texts = [document.replace("\n", " ") for document in corpus("validation")[:200]]
    for task in TASKS:
        for split in load_micro(task).values():
            texts += [text for column in TASKS[task].columns for text in split[column][:50]]
    texts.append("name : Bibo's | food = 100% [x] {y} @ #1; <z>?!")
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.convert_tokens_to_ids("<unk>") not in ids or name == "gpt2"


def test_gpt2_writes_the_language():
    """Greedy continuations are sentences of the corpus's words that end, and then documents that do."""
    folder = FOLDERS["gpt2"]
    tokenizer, model = load_tokenizer(folder), load_pretrained(folder).eval()
    for start in ("the gardener", "although the", "did the"):
        ids = tokenizer(f"<|endoftext|>{start}", return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=60, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
        text = tokenizer.decode(written[1:]).split("<|endoftext|>")[0]
        assert len(written) < 61  # it ended by itself
        assert text[-1] in ".?"
        assert {word.strip(".,?") for word in text.split()} <= words_of_corpus()


def test_micro_scale_stands_in_with_them():
    scale = compose_run(["experiment=lora/table2_roberta_base_lora", "task=glue/rte"]).scale
    for model_type, name in (("gpt2", "gpt2"), ("bart", "bart"), ("t5", "t5_large_lm")):
        backbone = BackboneConfig(name="published", model_type=model_type)
        assert stand_in(backbone, scale) == FOLDERS[name]
