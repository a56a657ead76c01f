"""What the test_equations files share: where things lie in transformers' models, and the comparison itself.

None of it comes from the site table: a wrong path there must show as a difference here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peft_methods.attached import Attached
from tests.conftest import BIASLESS

Leaves = dict[str, Tensor]

LAYERS = {
    "bert": {"": "encoder.layer"},
    "roberta": {"": "encoder.layer"},
    "deberta_v2": {"": "encoder.layer"},
    "gpt2": {"": "transformer.h"},
    "llama": {"": "model.layers"},
    "t5": {"encoder": "encoder.block", "decoder": "decoder.block"},
    "t5_gated": {"encoder": "encoder.block", "decoder": "decoder.block"},
    "bart": {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"},
}
_BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_norm": "output.LayerNorm",
}
_T5_ENCODER = {
    "query": "layer.0.SelfAttention.q",
    "key": "layer.0.SelfAttention.k",
    "value": "layer.0.SelfAttention.v",
    "attention_output": "layer.0.SelfAttention.o",
    "ffn_in": "layer.1.DenseReluDense.wi",
    "ffn_out": "layer.1.DenseReluDense.wo",
    "attention_norm": "layer.0.layer_norm",
    "ffn_norm": "layer.1.layer_norm",
}
_T5_DECODER = {
    **{role: path.replace("layer.1", "layer.2") for role, path in _T5_ENCODER.items()},
    "cross_query": "layer.1.EncDecAttention.q",
    "cross_key": "layer.1.EncDecAttention.k",
    "cross_value": "layer.1.EncDecAttention.v",
    "cross_output": "layer.1.EncDecAttention.o",
    "cross_attention_norm": "layer.1.layer_norm",
}


def _gated(paths: dict[str, str]) -> dict[str, str]:
    """T5 1.1: wi_0 is activated, wi_1 multiplies it."""
    return {**paths, "ffn_in": f"{paths['ffn_in']}_0", "ffn_gate": f"{paths['ffn_in']}_1"}


_BART_ENCODER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.out_proj",
    "ffn_in": "fc1",
    "ffn_out": "fc2",
    "attention_norm": "self_attn_layer_norm",
    "ffn_norm": "final_layer_norm",
}
_BART_DECODER = {
    **_BART_ENCODER,
    "cross_query": "encoder_attn.q_proj",
    "cross_key": "encoder_attn.k_proj",
    "cross_value": "encoder_attn.v_proj",
    "cross_output": "encoder_attn.out_proj",
    "cross_attention_norm": "encoder_attn_layer_norm",
}
# GPT-2's query, key and value are the first, second and third part of what c_attn gives.
_GPT2 = {
    **dict.fromkeys(("query", "key", "value"), "attn.c_attn"),
    "attention_output": "attn.c_proj",
    "ffn_in": "mlp.c_fc",
    "ffn_out": "mlp.c_proj",
    "attention_norm": "ln_1",
    "ffn_norm": "ln_2",
}
_LLAMA = {
    **{role: f"self_attn.{role[0]}_proj" for role in ("query", "key", "value")},
    "attention_output": "self_attn.o_proj",
    "ffn_in": "mlp.gate_proj",  # the activated map
    "ffn_gate": "mlp.up_proj",
    "ffn_out": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_IN_LAYER = {
    "bert": {"": _BERT},
    "roberta": {"": _BERT},
    "deberta_v2": {"": {r: f"{p}_proj" if p.startswith("attention.self") else p for r, p in _BERT.items()}},
    "gpt2": {"": _GPT2},
    "llama": {"": _LLAMA},
    "t5": {"encoder": _T5_ENCODER, "decoder": _T5_DECODER},
    "t5_gated": {"encoder": _gated(_T5_ENCODER), "decoder": _gated(_T5_DECODER)},
    "bart": {"encoder": _BART_ENCODER, "decoder": _BART_DECODER},
}
_OUTSIDE = {
    "bert": {"embedding_norm": "embeddings.LayerNorm", "pooler": "pooler.dense"},
    "roberta": {"embedding_norm": "embeddings.LayerNorm"},
    "deberta_v2": {"embedding_norm": "embeddings.LayerNorm", "relative_norm": "encoder.LayerNorm"},
    "gpt2": {"final_norm": "transformer.ln_f"},
    "llama": {"final_norm": "model.norm"},
    "bart": {f"{s}.embedding_norm": f"model.{s}.layernorm_embedding" for s in ("encoder", "decoder")},
    **{a: {f"{s}.final_norm": f"{s}.final_layer_norm" for s in ("encoder", "decoder")} for a in ("t5", "t5_gated")},
}


def layers_of(architecture: str, model: Any) -> dict[str, nn.Module]:
    """Every layer by the name of its sites: "layer.0", "decoder.layer.1"."""
    return {
        f"{stack}.layer.{i}" if stack else f"layer.{i}": layer
        for stack, path in LAYERS[architecture].items()
        for i, layer in enumerate(model.get_submodule(path))
    }


def path_of(architecture: str, site: str) -> str:
    """Where transformers keeps the module at a site, e.g. of "decoder.layer.0.cross_query"."""
    if site in _OUTSIDE[architecture]:
        return _OUTSIDE[architecture][site]
    stack, _, rest = site.rpartition("layer.")
    layer, role = rest.split(".")
    stack = stack.removesuffix(".")
    return f"{LAYERS[architecture][stack]}.{layer}.{_IN_LAYER[architecture][stack][role]}"


def by_site(leaves: Leaves) -> dict[str, Leaves]:
    """The trained tensors of each site by their own last name: "up.weight", "A"."""
    sites: dict[str, Leaves] = {}
    endings = (
        "low_rank.A",
        "low_rank.B",
        "down.weight",
        "down.bias",
        "up.weight",
        "up.bias",
        "norm.weight",
        "norm.bias",
    )
    for name, leaf in leaves.items():
        own = next((end for end in endings if name.endswith(f".{end}")), name.rpartition(".")[2])
        sites.setdefault(name.removeprefix("sites.").removesuffix(f".{own}"), {})[own] = leaf
    return sites


def plain(model: Any, batch: dict[str, Tensor], **instead: Any) -> Tensor:
    """Logits or last hidden states of a transformers model that nothing is attached to."""
    outputs = model(**{name: value for name, value in batch.items() if name != "boundary"} | instead)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def real(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Without what stands at padding; a head's logits (B, labels) as they are."""
    if "decoder_input_ids" in batch or outputs.dim() == 2:
        return outputs
    return outputs[batch["attention_mask"].bool()]


def tolerance(architecture: str) -> float:
    """In float64, relative and absolute. RMSNorms compute in float32 whatever they are given: 1e-7 a last bit."""
    return 3e-6 if architecture in BIASLESS else 1e-9


def check(
    attached: Attached,
    batch: dict[str, Tensor],
    architecture: str,
    oracle: Callable[[Leaves], Tensor],
    without_gradient: Callable[[str], bool] = lambda name: False,
    limit: float | None = None,
) -> None:
    """Outputs of run 0 and gradients of all it trains equal those of `oracle`, a function of the same tensors.

    The oracle gets copies, so that a tensor it forgets has no gradient there and fails. without_gradient: says of a
    name that no output depends on it.
    """
    limit = limit or tolerance(architecture)
    trained = dict(attached.run(0).trained())
    leaves = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
    outputs, expected = real(attached([batch])[0], batch), real(oracle(leaves), batch)
    torch.testing.assert_close(outputs, expected, rtol=limit, atol=limit)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3)).to(outputs.dtype)
    ours: tuple[Tensor | None, ...] = torch.autograd.grad(
        (outputs * weights).sum(), list(trained.values()), allow_unused=True
    )
    theirs: tuple[Tensor | None, ...] = torch.autograd.grad(
        (expected * weights).sum(), list(leaves.values()), allow_unused=True
    )
    for name, own, other in zip(trained, ours, theirs, strict=True):
        if own is None or own.abs().max() < 1e-5:
            assert without_gradient(name), f"{name}: no gradient, nothing would be compared"
        if own is None or other is None:
            assert own is other, f"{name}: a gradient on one side only"
        else:
            torch.testing.assert_close(own, other, rtol=limit, atol=limit, msg=f"{name}: {{}}".format)


def check_moved(attached: Attached, batch: dict[str, Tensor], unattached: Any) -> None:
    """The run changes what the backbone gives by much more than any tolerance."""
    with torch.no_grad():
        moved = (real(attached([batch])[0], batch) - real(plain(unattached, batch), batch)).abs().max()
    assert moved > 1e-2, f"only {moved:.1e} off the backbone: equality would show little"
