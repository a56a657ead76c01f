"""A folder of a checkpoint is loaded whole, or refused in one sentence before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from peft_bench.backbones.checks import check_shape
from peft_bench.backbones.loading import Backbone, empty_backbone, load_backbone
from peft_bench.backbones.location import MICRO_BACKBONES, BackboneError, digests_of
from peft_bench.config.compose import backbone_choice, choices
from peft_bench.config.schema import BackboneConfig, ScaleConfig

SMALL = ScaleConfig(name="small", data="published")
NAMES = {"micro_bert": "bert", "micro_roberta": "roberta", "micro_gpt2": "gpt2", "micro_bart": "bart"}
NAMES["micro_t5_large_lm"] = "t5"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """changed(name, config keys, tensors=..., drop=...): a copy of a shipped backbone with these changes."""

    def copy(name: str, tensors: Callable[[Tensors], Any] | None = None, drop: str = "", **config: Any) -> Path:
        folder = Path(shutil.copytree(MICRO_BACKBONES / name, tmp_path / name))
        if tensors:
            stored = load_file(folder / "model.safetensors")
            tensors(stored)
            save_file(stored, folder / "model.safetensors", {"format": "pt"})
        for file in folder.glob(drop) if drop else ():
            file.unlink()
        rewrite(folder / "config.json", **config)
        return folder

    return copy


def rewrite(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def described(folder: Path, pooler: bool = False) -> BackboneConfig:
    return BackboneConfig(
        name="mine", model_type=NAMES[folder.name], hub_id="none/mine", pooler=pooler, architecture={}
    )


def load(folder: Path, backbone: BackboneConfig | None = None) -> Backbone:
    return load_backbone(backbone or described(folder), SMALL, str(folder), torch.device("cpu"), 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_a_vocabulary_is_refused(changed, name):
    """transformers makes a tokenizer of special tokens alone, to which every text is the same."""
    folder = changed(name, drop="tokenizer.json")
    for refuses in (load, lambda folder: digests_of(described(folder), SMALL, str(folder))):
        with pytest.raises(BackboneError, match=r"holds no vocabulary: expected tokenizer\.json, vocab\.txt, vocab"):
            refuses(folder)
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(BackboneError, match="holds no vocabulary"):  # without its merges
        load(folder)
    (folder / "merges.txt").write_text("")
    with pytest.raises(BackboneError, match=r"has \d+ entries, the backbone's embedding \d+ rows|cannot load"):
        load(folder)


def test_a_vocabulary_of_special_tokens_alone_is_refused_in_a_plan_too(changed):
    folder = changed("micro_bert", drop="tokenizer*")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    for refuses in (load, lambda folder: empty_backbone(folder, pooler=False)):
        with pytest.raises(BackboneError, match="has 5 entries, the backbone's embedding 363 rows"):
            refuses(folder)


def test_a_tokenizer_with_more_entries_than_the_embedding_is_refused(changed):
    folder = changed("micro_bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["new1"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match="has an entry 363, the backbone an embedding of 363 rows"):
        load(folder)


@pytest.mark.parametrize(("name", "token"), [("micro_bert", "pad_token"), ("micro_gpt2", "eos_token")])
def test_a_tokenizer_that_lacks_a_token_is_refused(changed, name, token):
    folder = changed(name, drop="tokenizer_config.json")
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)
    with pytest.raises(BackboneError, match=f"names no {token}, which batches of a {NAMES[name]} need"):
        load(folder)


def test_a_decoder_without_a_first_token_is_refused(changed):
    with pytest.raises(BackboneError, match="names no decoder_start_token_id"):
        load(changed("micro_t5_large_lm", decoder_start_token_id=None))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_refused(changed, name):
    folder = changed("micro_bert")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BackboneError, match=rf"{name} is a Git LFS pointer, .*: run `git lfs pull` there"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("tokenizer.json", "{", "cannot load a backbone from"),
        ("config.json", "{", "cannot load a backbone from"),
        ("model.safetensors", "{", "cannot load a backbone from"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(changed, file, content, cause):
    folder = changed("micro_bert")
    (folder / file).write_text(content)
    with pytest.raises(BackboneError, match=cause) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


def test_an_activation_that_is_unknown_is_refused(changed):
    with pytest.raises(BackboneError, match="KeyError: 'nosuch'"):
        load(changed("micro_bert", hidden_act="nosuch"))


def test_a_config_of_another_size_than_the_tensors_is_refused(changed):
    with pytest.raises(BackboneError, match=r"intermediate\.dense\.bias is \(256,\) in the checkpoint and \(999,\) by"):
        load(changed("micro_bert", intermediate_size=999))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("micro_bert", "num_hidden_layers"), ("micro_roberta", "num_hidden_layers"), ("micro_gpt2", "n_layer"),
        ("micro_bart", "encoder_layers"), ("micro_t5_large_lm", "num_layers"),
    ],
)  # fmt: skip
def test_layers_that_the_config_leaves_out_are_refused(changed, name, layers):
    with pytest.raises(BackboneError, match=r"tensors of the backbone that its config\.json leaves out"):
        load(changed(name, **{layers: 1}))


def test_layers_of_a_checkpoint_without_its_wrappers_prefix_count_too(changed):
    def inner(stored: Tensors) -> None:
        for name in [*stored]:
            tensor = stored.pop(name)
            if name.startswith("bert."):
                stored[name.removeprefix("bert.")] = tensor

    folder = changed("micro_bert", inner)
    assert load(folder).model.config.num_hidden_layers == 2
    rewrite(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(BackboneError, match=r"encoder\.layer\.1\.attention\.output\.LayerNorm\.bias first"):
        load(folder, BackboneConfig(**{**vars(described(folder)), "dtype": "float64"}))  # not the one loaded before


def test_what_transformers_does_not_read_any_more_is_refused(changed):
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    folder = changed("micro_bert", lambda stored: stored.update({name: torch.ones(95, 16)}))
    with pytest.raises(BackboneError, match=rf"has 1 tensors of the backbone .*, {name} first"):
        load(folder)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("micro_bert", "bert.embeddings.position_ids"), ("micro_bert", "classifier.weight"),
        ("micro_roberta", "roberta.pooler.dense.weight"), ("micro_gpt2", "transformer.h.0.attn.bias"),
        ("micro_gpt2", "transformer.h.0.attn.masked_bias"), ("micro_gpt2", "score.weight"),
    ],
)  # fmt: skip
def test_heads_and_what_old_versions_stored_are_left_out(changed, backbone, name):
    load(changed(backbone, lambda stored: stored.update({name: torch.ones(1)})))


def test_an_output_layer_that_is_missing_is_refused(changed):
    """T5 1.1's: transformers ties it, and a new one would be drawn at random."""
    with pytest.raises(BackboneError, match=r"lacks 1 tensors of the backbone, lm_head\.weight first"):
        load(changed("micro_t5_large_lm", lambda stored: stored.pop("lm_head.weight")))


def test_an_output_layer_that_equals_the_embedding_is_kept(changed):
    folder = changed("micro_t5_large_lm", lambda t: t.update({"lm_head.weight": t["shared.weight"].clone()}))
    model = load(folder).model
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])
    assert model.lm_head.weight is not model.shared.weight
    model.tie_weights()
    assert model.lm_head.weight is not model.shared.weight


def test_another_shape_than_the_published_one_is_refused_unless_it_only_stands_in(changed):
    folder, backbone = changed("micro_bert"), backbone_choice("bert_base_uncased")
    with pytest.raises(
        BackboneError, match=r"has vocab_size=363, bert_base_uncased 30522 .*backbone\.other_shape=true"
    ):
        load(folder, backbone)
    backbone.other_shape = True
    digest = load(folder, backbone).sha256
    backbone.weights_sha256 = digest
    assert load(folder, backbone).origin.published is False
    backbone.other_shape, backbone.architecture = False, {"vocab_size": 363, "num_attention_heads": 4}
    heads = AutoConfig.from_pretrained(folder).num_attention_heads
    backbone.architecture["num_attention_heads"] = heads
    assert load(folder, backbone).origin.published is True
    backbone.architecture["num_attention_heads"] = 2 * heads  # no tensor shows it
    with pytest.raises(BackboneError, match=f"has num_attention_heads={heads}, bert_base_uncased {2 * heads}"):
        load(folder, backbone)


@pytest.mark.parametrize("name", choices("backbone"))
def test_a_published_configuration_is_its_own_shape(tmp_path, name):
    """As config.json is written and read: what transformers makes of a value is no difference."""
    backbone = backbone_choice(name)
    AutoConfig.for_model(backbone.model_type, **backbone.architecture).save_pretrained(tmp_path)
    check_shape(backbone, AutoConfig.from_pretrained(tmp_path), tmp_path)
    key = next(key for key in backbone.architecture if "layers" in key or key == "n_layer")
    rewrite(tmp_path / "config.json", **{key: 99})
    with pytest.raises(BackboneError, match=f"has {key}=99"):
        check_shape(backbone, AutoConfig.from_pretrained(tmp_path), tmp_path)
