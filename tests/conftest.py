"""Tiny backbones built from configurations, and toy batches. Nothing is downloaded.

Fixtures give functions, so that a test says which architecture, size and number type it wants.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

# Tiny backbones by name; "t5" is T5 1.0 (ReLU, tied), "t5_gated" T5 1.1 (gated GELU, untied output).
ALL_ARCHITECTURES = ("bert", "roberta", "deberta_v2", "gpt2", "llama", "t5", "t5_gated", "bart")
ENCODERS = ("bert", "roberta", "deberta_v2")
DECODERS = ("gpt2", "llama")
BIASLESS = ("llama", "t5", "t5_gated")  # neither linear maps nor norms (RMSNorms) have biases
ENCODER_DECODERS = ("t5", "t5_gated", "bart")
VOCABULARY = 61
TOKENS = 24  # longest input of the tiny backbones


@pytest.fixture(autouse=True)
def _one_seed():
    """Whatever a test draws without a generator of its own follows from this seed, in any order of tests."""
    torch.manual_seed(20190614)


@pytest.fixture(params=["bert", "roberta"])
def architecture(request: pytest.FixtureRequest) -> str:
    """The papers' encoders. What must hold on every architecture of the site table says so in its own file."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own() -> Iterator[None]:
    """Conversions of pickled weights that a test makes are not left in the user's cache."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFT_BENCH_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def randomize() -> Callable[..., None]:
    """Add noise to every parameter: LayerNorms lose their unit gain, biases and LoRA's B are no longer zero."""

    def add_noise(module: nn.Module, seed: int = 0, std: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))

    return add_noise


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """tiny_config("bert", dropout=0.0, **changes): a two-layer backbone of width 16; changes are in BERT's words.

    Llama's keys and values have half as many heads as its queries; no padding token, tied embeddings as in SmolLM2.
    """

    def build(architecture: str, dropout: float = 0.0, **changes: Any) -> Any:
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": TOKENS + 2,  # RoBERTa's positions start at pad_token_id + 1 = 2
            **changes,
        }
        if architecture in ENCODERS:
            sizes |= {
                "type_vocab_size": {"bert": 2, "roberta": 1, "deberta_v2": 0}[architecture],
                "hidden_dropout_prob": dropout,
                "attention_probs_dropout_prob": dropout,
            }
            if architecture == "deberta_v2":
                relative = {"relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
                shared = {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
                return DebertaV2Config(**sizes, **relative, **shared)
            return {"bert": BertConfig, "roberta": RobertaConfig}[architecture](**sizes)
        if architecture == "llama":
            heads = changes.get("num_attention_heads", 4)
            shape = {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "tie_word_embeddings": True}
            return LlamaConfig(**{**sizes, **shape, **changes}, attention_dropout=dropout)
        layers, heads, inner = (
            sizes.pop(key) for key in ("num_hidden_layers", "num_attention_heads", "intermediate_size")
        )
        positions, width = sizes.pop("max_position_embeddings"), sizes.pop("hidden_size")
        if architecture == "gpt2":
            rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
            ids = {"bos_token_id": 60, "eos_token_id": 60}
            shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": inner, "n_positions": positions}
            return GPT2Config(**sizes, **shape, **rates, **ids)
        if architecture == "bart":
            rates = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), dropout)
            shape = {"encoder_layers": layers, "decoder_layers": layers, "d_model": width}
            shape |= {f"{side}_ffn_dim": inner for side in ("encoder", "decoder")}
            shape |= {f"{side}_attention_heads": heads for side in ("encoder", "decoder")}
            return BartConfig(**sizes, **shape, **rates, max_position_embeddings=positions, forced_eos_token_id=None)
        d_kv = sizes.pop("d_kv", width // heads)
        shape = {"d_model": width, "d_kv": d_kv, "d_ff": inner, "num_layers": layers, "num_heads": heads}
        kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if architecture == "t5_gated" else {}
        return T5Config(
            **sizes, **shape, **kind, dropout_rate=dropout, decoder_start_token_id=0,
            relative_attention_num_buckets=8, relative_attention_max_distance=12,
        )  # fmt: skip

    return build


@pytest.fixture(scope="session")
def tiny_backbone(tiny_config, randomize) -> Callable[..., PreTrainedModel]:
    """tiny_backbone("roberta", dtype, dropout=0.1): randomized weights, in eval mode; RoBERTa comes without pooler."""

    def build(architecture: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
        config = tiny_config(architecture, **changes)
        if architecture == "roberta":
            model: PreTrainedModel = RobertaModel(config, add_pooling_layer=False)
        else:
            kinds: dict[str, Any] = {
                "bert": BertModel,
                "deberta_v2": DebertaV2Model,
                "gpt2": GPT2LMHeadModel,
                "llama": LlamaForCausalLM,
                "bart": BartForConditionalGeneration,
            }
            model = kinds.get(architecture, T5ForConditionalGeneration)(config)
        if architecture == "t5_gated":  # transformers ties T5's output layer whatever the configuration says
            cast(Any, model).lm_head.weight = nn.Parameter(torch.empty_like(cast(Any, model).lm_head.weight))
        norms = ("LayerNorm.weight", "layernorm.weight", "norm.weight", "layernorm_embedding.weight")
        for name, parameter in model.named_parameters():
            gain = name.endswith(norms) or (".ln_" in name and name.endswith("weight"))
            nn.init.constant_(parameter, 1.0 if gain else 0.0)
        randomize(model, seed=1)
        nn.Module.to(model, dtype=dtype)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., dict[str, Tensor]]:
    """tiny_batch("bert", rows, width, seed): token ids with some padding on the right, as a tokenizer would give.

    A decoder's say where its target begins (`boundary`), an encoder-decoder's hold the decoder's ids too.
    """

    def draw(architecture: str, rows: int = 3, width: int = 9, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(min(2, width), width + 1, (rows,), generator=generator)
        lengths[0] = width
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        pad = {"roberta": 1, "bart": 1}.get(architecture, 0)
        ids = torch.randint(4, VOCABULARY, (rows, width), generator=generator)
        batch = {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}
        if architecture == "bert":
            batch["token_type_ids"] = torch.randint(0, 2, (rows, width), generator=generator) * mask
        if architecture in DECODERS:
            batch["boundary"] = (lengths + 1) // 2
        if architecture in ENCODER_DECODERS:
            written = torch.randint(4, VOCABULARY, (rows, max(1, width - 3)), generator=generator)
            batch["decoder_input_ids"] = torch.cat([torch.zeros(rows, 1, dtype=torch.long), written], dim=1)
        return batch

    return draw


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Any], dict[str, Tensor]]:
    """Copies of a module's parameters and buffers, or of a mapping of tensors, by name."""

    def copy(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = source.state_dict() if isinstance(source, nn.Module) else source
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    return copy
