"""The site table: where modules attach, per architecture. The only file that knows Hugging Face module names.

A new architecture is one more entry in `ARCHITECTURES`; no method file changes. What an entry says: module_paths.py.

Not every site takes packs of several runs. `no_packs` says where not and why; what cannot be packed runs alone.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from transformers import PreTrainedConfig

from peft_methods.module_paths import Architecture, Stack


def _encoder(attention: Mapping[str, str], attentions: Mapping[str, str]) -> Stack:
    """Layers of BERT and its children."""
    return Stack(
        layers="encoder.layer",
        projections={
            **attention,
            "attention_output": "attention.output.dense",
            "ffn_in": "intermediate.dense",
            "ffn_out": "output.dense",
        },
        sublayers={"attention": "attention.output.dropout", "ffn": "output.dropout"},
        sublayer_inputs={"attention": "value", "ffn": "ffn_in"},  # not the query: DeBERTa-v2 calls it twice
        norms={"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"},
        attentions=attentions,
    )


def _bert(config: PreTrainedConfig) -> Architecture:
    roles = {role: f"attention.self.{role}" for role in ("query", "key", "value")}
    return Architecture(
        stacks=(_encoder(roles, {"self_kv": "attention.self"}),),
        positions="ids",
        attention_dropout="attention_probs_dropout_prob",
        position_limit=lambda config: config.max_position_embeddings,
        outer_projections={"pooler": "pooler.dense"},
        outer_norms={"embedding_norm": "embeddings.LayerNorm"},
        pooler="pooler",
    )


def _roberta(config: PreTrainedConfig) -> Architecture:
    """BERT's module names; its classification head replaces the pooler, which is then not built."""
    roles = {role: f"attention.self.{role}" for role in ("query", "key", "value")}
    return Architecture(
        stacks=(_encoder(roles, {"self_kv": "attention.self"}),),
        positions="after_padding",
        attention_dropout="attention_probs_dropout_prob",
        position_limit=lambda config: config.max_position_embeddings - config.pad_token_id - 1,
        outer_projections={"pooler": "pooler.dense"},
        outer_norms={"embedding_norm": "embeddings.LayerNorm"},
        pooler="pooler",
    )


_TWICE = (
    "DeBERTa-v2 calls its query and key projection a second time, on the relative embeddings that all rows of a batch "
    "share, so that a pack's rows cannot be told apart there"
)


def _deberta_v2(config: PreTrainedConfig) -> Architecture:
    """Disentangled attention is computed in place, not by an attention function: no prefixes."""
    roles = {role: f"attention.self.{role}_proj" for role in ("query", "key", "value")}
    norms = {"embedding_norm": "embeddings.LayerNorm"}
    if "layer_norm" in str(getattr(config, "norm_rel_ebd", "none")):
        norms["relative_norm"] = "encoder.LayerNorm"
    if getattr(config, "conv_kernel_size", 0) > 0:
        norms["convolution_norm"] = "encoder.conv.LayerNorm"
    return Architecture(
        stacks=(_encoder(roles, {}),),
        positions="relative",
        attention_dropout="attention_probs_dropout_prob",
        outer_norms=norms,
        shared_dropouts=("attention.self.pos_dropout",),
        no_packs={
            "query": _TWICE,
            "key": _TWICE,
            "query_input": _TWICE,
            "key_input": _TWICE,
            "relative_norm": "all rows of a batch share the relative embeddings",
        },
    )


def _gpt2(config: PreTrainedConfig) -> Architecture:
    return Architecture(
        stacks=(
            Stack(
                layers="h",
                projections={"attention_output": "attn.c_proj", "ffn_in": "mlp.c_fc", "ffn_out": "mlp.c_proj"},
                fused={role: ("attn.c_attn", i, 3) for i, role in enumerate(("query", "key", "value"))},
                sublayers={"attention": "attn.resid_dropout", "ffn": "mlp.dropout"},
                sublayer_inputs={"attention": "query", "ffn": "ffn_in"},
                norms={"attention_norm": "ln_1", "ffn_norm": "ln_2"},
                attentions={"self_kv": "attn"},
                post_norm=False,
            ),
        ),
        positions="ids",
        attention_dropout="attn_pdrop",
        position_limit=lambda config: config.n_positions,
        counts_prefix=True,
        decoder_only=True,
        outer_norms={"final_norm": "ln_f"},
    )


def _t5(config: PreTrainedConfig) -> Architecture:
    """T5 1.0 (ReLU) and 1.1 (gated GELU: `ffn_in` is the activated map, `ffn_gate` the linear one); no biases."""

    def stack(name: Literal["encoder", "decoder"]) -> Stack:
        cross, ffn = name == "decoder", "layer.2" if name == "decoder" else "layer.1"
        names = {"query": "q", "key": "k", "value": "v", "output": "o"}
        own = {
            role if role != "output" else "attention_output": f"layer.0.SelfAttention.{short}"
            for role, short in names.items()
        }
        other = {f"cross_{role}": f"layer.1.EncDecAttention.{short}" for role, short in names.items()}
        dense = f"{ffn}.DenseReluDense"
        gated = {"ffn_in": f"{dense}.wi_0", "ffn_gate": f"{dense}.wi_1"}
        inner = gated if config.is_gated_act else {"ffn_in": f"{dense}.wi"}
        return Stack(
            name=name,
            tokens="target" if cross else "input",
            layers=f"{name}.block",
            projections={**own, **(other if cross else {}), **inner, "ffn_out": f"{dense}.wo"},
            sublayers={
                "attention": "layer.0.dropout",
                **({"cross_attention": "layer.1.dropout"} if cross else {}),
                "ffn": f"{ffn}.dropout",
            },
            sublayer_inputs={"attention": "query", "cross_attention": "cross_query", "ffn": "ffn_in"},
            norms={
                "attention_norm": "layer.0.layer_norm",
                **({"cross_attention_norm": "layer.1.layer_norm"} if cross else {}),
                "ffn_norm": f"{ffn}.layer_norm",
            },
            attentions={
                "self_kv": "layer.0.SelfAttention",
                **({"cross_kv": "layer.1.EncDecAttention"} if cross else {}),
            },
            post_norm=False,
        )

    return Architecture(
        stacks=(stack("encoder"), stack("decoder")),
        positions="relative",
        attention_dropout="dropout_rate",
        inputs="encoder",
        outer_norms={
            "encoder.final_norm": "encoder.final_layer_norm",
            "decoder.final_norm": "decoder.final_layer_norm",
        },
    )


def _bart(config: PreTrainedConfig) -> Architecture:
    """BART's dropouts are functional, no modules: they are switched off while runs are attached, and hooks at the same
    places draw the runs' own masks."""

    def stack(name: Literal["encoder", "decoder"]) -> Stack:
        cross = name == "decoder"
        own = {
            **{role: f"self_attn.{role[0]}_proj" for role in ("query", "key", "value")},
            "attention_output": "self_attn.out_proj",
        }
        other = {
            **{f"cross_{role}": f"encoder_attn.{role[0]}_proj" for role in ("query", "key", "value")},
            "cross_output": "encoder_attn.out_proj",
        }
        return Stack(
            name=name,
            tokens="target" if cross else "input",
            layers=f"{name}.layers",
            projections={**own, **(other if cross else {}), "ffn_in": "fc1", "ffn_out": "fc2"},
            sublayers={
                "attention": "self_attn",
                **({"cross_attention": "encoder_attn"} if cross else {}),
                "ffn": "fc2",
            },
            sublayer_inputs={"attention": "query", "cross_attention": "cross_query", "ffn": "ffn_in"},
            norms={
                "attention_norm": "self_attn_layer_norm",
                **({"cross_attention_norm": "encoder_attn_layer_norm"} if cross else {}),
                "ffn_norm": "final_layer_norm",
            },
            attentions={
                "self_kv": "self_attn",
                **({"cross_kv": "encoder_attn"} if cross else {}),
            },
            functional_dropouts=(
                ("self_attn", "output", "dropout"),
                *((("encoder_attn", "output", "dropout"),) if cross else ()),
                ("fc2", "input", "activation_dropout"),
                ("fc2", "output", "dropout"),
            ),
        )

    return Architecture(
        stacks=(stack("encoder"), stack("decoder")),
        positions="hook",
        attention_dropout="attention_dropout",
        inputs="encoder",
        position_module="encoder.embed_positions",
        position_limit=lambda config: config.max_position_embeddings,
        outer_norms={
            "encoder.embedding_norm": "encoder.layernorm_embedding",
            "decoder.embedding_norm": "decoder.layernorm_embedding",
        },
        outer_functional_dropouts=(
            ("encoder.layernorm_embedding", "dropout"),
            ("decoder.layernorm_embedding", "dropout"),
        ),
    )


def _llama(config: PreTrainedConfig) -> Architecture:
    """Llama, SmolLM2: RMSNorm, rotary positions, grouped keys and values; no dropout modules, biases where the
    configuration asks for some. `ffn_in` is the activated map (gate_proj), `ffn_gate` the linear one, as in T5 1.1."""
    return Architecture(
        stacks=(
            Stack(
                layers="layers",
                projections={
                    **{role: f"self_attn.{role[0]}_proj" for role in ("query", "key", "value")},
                    "attention_output": "self_attn.o_proj",
                    "ffn_in": "mlp.gate_proj",
                    "ffn_gate": "mlp.up_proj",
                    "ffn_out": "mlp.down_proj",
                },
                sublayers={"attention": "self_attn", "ffn": "mlp"},
                sublayer_inputs={"attention": "query", "ffn": "ffn_in"},
                norms={"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
                attentions={"self_kv": "self_attn"},
                post_norm=False,
            ),
        ),
        positions="ids",
        attention_dropout="attention_dropout",
        position_limit=lambda config: config.max_position_embeddings,
        counts_prefix=True,
        decoder_only=True,
        outer_norms={"final_norm": "norm"},
    )


ARCHITECTURES: dict[str, Callable[[PreTrainedConfig], Architecture]] = {
    "bart": _bart,
    "bert": _bert,
    "deberta-v2": _deberta_v2,
    "gpt2": _gpt2,
    "llama": _llama,
    "roberta": _roberta,
    "t5": _t5,
}
