"""What is known of a model_type without loading it agrees with transformers and with where methods attach."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from peft_bench.backbones.files import MICRO_BACKBONES, BackboneError
from peft_bench.backbones.loading import empty_backbone, empty_model, load_backbone
from peft_bench.config.kinds import KINDS, Kind, kind_of, writes_text
from peft_bench.config.schema import BackboneConfig, ScaleConfig
from peft_methods.architectures import ARCHITECTURES

PUBLISHED = ScaleConfig(name="paper", data="published")


@pytest.mark.parametrize("model_type", KINDS)
def test_a_kind_is_what_transformers_and_the_architectures_say(model_type: str):
    kind, config = KINDS[model_type], AutoConfig.for_model(model_type)
    if kind.model:
        assert getattr(transformers, kind.model).config_class is type(config)
    if model_type in ARCHITECTURES:
        assert kind.decoder_only == ARCHITECTURES[model_type](config).decoder_only


def test_another_model_type_classifies():
    assert kind_of("no_such_type") == Kind()
    assert [writes_text(name) for name in ("deberta-v2", "bert", "gpt2", "llama", "t5")] == [False, False, *[True] * 3]


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "bart", "t5_small"])
def test_a_backbone_that_writes_is_built_with_its_output_layer(name: str):
    model, _ = empty_backbone(MICRO_BACKBONES / f"micro_{name}", pooler=False)
    assert (model.get_output_embeddings() is not None) == writes_text(model.config.model_type)
    assert getattr(model, "pooler", None) is None


@pytest.fixture
def llama(tmp_path: Path) -> BackboneConfig:
    """A tiny Llama checkpoint in `tmp_path`: grouped keys, output layer of its own; with GPT-2's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_gpt2")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = {**sizes, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "tie_word_embeddings": False}
    empty_model(AutoConfig.for_model("llama", **shape), pooler=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return BackboneConfig(name="tiny_llama", model_type="llama", hub_id="none/llama", pooler=False, architecture=shape)


def test_a_llama_loads_from_configuration_alone(llama: BackboneConfig, tmp_path: Path):
    backbone = load_backbone(llama, PUBLISHED, str(tmp_path), torch.device("cpu"), seed=0)
    assert type(backbone.model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[3, 4, 5]])
    assert backbone.model(input_ids=ids).logits.shape == (1, 3, len(backbone.tokenizer))
    assert backbone.model.get_output_embeddings().weight is not backbone.model.get_input_embeddings().weight
    llama.model_type = "gpt2"
    with pytest.raises(BackboneError, match="is a 'llama', expected 'gpt2'"):
        load_backbone(llama, PUBLISHED, str(tmp_path), torch.device("cpu"), seed=0)
