"""Prefixes, infixes and MAM on every architecture, against an attention that has the equation in it, and for the infix
against the released procedure: two passes with a cache between them.

    prefix   softmax(q [P_k; K]^T + mask + bias) [P_v; V]; P is seen by every query
    MLP      [P_k P_v of layer 0, of layer 1, ..] = W_out tanh(W_in E + b_in) + b_out, one for each stack and kind
    infix    the source and e pass through the frozen model; P_k, P_v are added to e's keys and values; the target
             reads them from the cache
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from peft_methods.attach import attach
from peft_methods.bottleneck import Parallel
from peft_methods.composition import Composition
from peft_methods.prefix import Infix, Prefix
from tests.conftest import ALL_ARCHITECTURES, DECODERS
from tests.peft_methods.oracle import Leaves, by_site, check, check_moved, layers_of, plain
from tests.peft_methods.surgery import change_sublayer, in_parallel

HAVE_KEYS = tuple(a for a in ALL_ARCHITECTURES if a != "deberta_v2")
ATTENTION = {
    "bert": {"self_kv": "attention.self"},
    "roberta": {"self_kv": "attention.self"},
    "gpt2": {"self_kv": "attn"},
    "llama": {"self_kv": "self_attn"},
    "t5": {"self_kv": "layer.0.SelfAttention", "cross_kv": "layer.1.EncDecAttention"},
    "t5_gated": {"self_kv": "layer.0.SelfAttention", "cross_kv": "layer.1.EncDecAttention"},
    "bart": {"self_kv": "self_attn", "cross_kv": "encoder_attn"},
}
Pair = tuple[Tensor, Tensor]  # keys and values, (P, H) each


def attention_with_prefix(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float | None = None,
    position_bias: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls with query, key, value (B, heads, T, d); `module.pair` is what the test put there."""
    (rows, heads, length), own = query.shape[:3], key.shape[1]
    before = [x.view(len(x), own, -1).transpose(0, 1).expand(rows, -1, -1, -1) for x in module.pair]
    prefix = before[0].shape[2]
    key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
    key, value = (x[:, [h * own // heads for h in range(heads)]] for x in (key, value))  # Llama: one for several heads
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if module.relative_bias is not None:  # as if the prefix were the first words of a longer text
        scores = scores + module.relative_bias(prefix + length, key.shape[2])[:, :, prefix:]
    else:
        assert position_bias is None or not position_bias.any()  # T5's cross-attention
    scores[..., prefix:] += attention_mask
    return torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), value), None


AttentionInterface.register("prefix_equation", attention_with_prefix)
AttentionMaskInterface.register("prefix_equation", eager_mask)


def pairs_of(leaves: Leaves) -> dict[str, Pair]:
    """The keys and values of every attention, the MLP written out. Layers of a group: 2."""
    sites, pairs = by_site(leaves), {}
    for site, own in sites.items():
        if site.endswith("_kv"):
            pairs[site] = (own["keys"], own["values"])
    for site in [site.removesuffix(".mlp") for site in sites if site.endswith("_kv.mlp")]:
        maps = [leaves[f"sites.{site}.mlp.{name}"] for name in ("inner.weight", "inner.bias")]
        outer = [leaves[f"sites.{site}.mlp.{name}"] for name in ("outer.weight", "outer.bias")]
        rows = torch.tanh(leaves[f"sites.{site}.mlp.embedding"] @ maps[0].T + maps[1]) @ outer[0].T + outer[1]
        for i, of_layer in enumerate(rows.chunk(2, dim=1)):
            keys, values = of_layer.chunk(2, dim=1)
            pairs[site.replace("layer.0", f"layer.{i}")] = (keys, values)
    return pairs


def put_before(architecture: str, model: Any, pairs: dict[str, Pair]) -> int:
    """Prepare a plain model; gives the prefix's length."""
    model.set_attn_implementation("prefix_equation")
    places: dict[str, Any] = {}
    for layer_name, layer in layers_of(architecture, model).items():
        for kind, path in ATTENTION[architecture].items():
            if kind == "cross_kv" and not layer_name.startswith("decoder"):
                continue
            places[f"{layer_name}.{kind}"] = layer.get_submodule(path)
    assert places.keys() == pairs.keys()
    for site, module in places.items():
        module.pair, module.relative_bias = pairs[site], None
        if architecture.startswith("t5") and site.endswith("self_kv"):  # a stack's first layer has it for all
            module.relative_bias = places[f"{site.partition('.')[0]}.layer.0.self_kv"].compute_bias
    return len(pairs[site][0])


def outputs_behind(architecture: str, model: nn.Module, batch: dict[str, Tensor], prefix: int) -> Tensor:
    """Decoders alone count the prefix in the text's positions."""
    if architecture not in DECODERS:
        return plain(model, batch)
    return plain(model, batch, position_ids=torch.arange(batch["input_ids"].shape[1])[None] + prefix)


@pytest.mark.parametrize("mlp_hidden", [None, 6], ids=["rows", "mlp"])
@pytest.mark.parametrize("architecture", HAVE_KEYS)
def test_prefix_equals_the_attention_written_out(architecture, mlp_hidden, tiny_backbone, tiny_batch, randomize):
    batch = tiny_batch(architecture, rows=4, width=9)
    attached = attach(tiny_backbone(architecture, torch.float64), [Prefix(4, mlp_hidden, "random", "")], seeds=[2])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))

    def oracle(leaves: Leaves) -> Tensor:
        model = tiny_backbone(architecture, torch.float64)
        return outputs_behind(architecture, model, batch, put_before(architecture, model, pairs_of(leaves)))

    check(attached, batch, architecture, oracle)


@pytest.mark.parametrize("architecture", HAVE_KEYS)
def test_mam_equals_both_parts_written_out(architecture, tiny_backbone, tiny_batch, randomize):
    batch = tiny_batch(architecture, rows=4, width=9)
    parallel = Parallel(3, "relu", "normal", 0.3, 4.0, 0.0, ("ffn",))
    method = Composition((Prefix(4, 6, "random", ""), parallel))
    attached = attach(tiny_backbone(architecture, torch.float64), [method], seeds=[2])
    randomize(attached.run(0), seed=5)

    def oracle(leaves: Leaves) -> Tensor:
        model = tiny_backbone(architecture, torch.float64)
        prefix = put_before(architecture, model, pairs_of({n: x for n, x in leaves.items() if "_kv." in n}))
        adapters = by_site({n: x for n, x in leaves.items() if "_kv." not in n})
        for layer_name, layer in layers_of(architecture, model).items():
            change_sublayer(architecture, layer, "ffn", in_parallel(adapters[f"{layer_name}.ffn"], "relu", 4.0))
        return outputs_behind(architecture, model, batch, prefix)

    check(attached, batch, architecture, oracle)


def by_two_passes(model: Any, batch: dict[str, Tensor], e: Tensor, pairs: dict[str, Pair]) -> Tensor:
    """Logits (B, T, vocabulary) at the text's tokens, row by row and without padding, zero behind them."""
    rows = []
    for ids, mask, at in zip(batch["input_ids"], batch["attention_mask"], batch["boundary"].tolist(), strict=True):
        text, whole = ids[: mask.sum()], len(e) + int(mask.sum())
        first = model(inputs_embeds=torch.cat([model.get_input_embeddings()(text[:at]), e])[None], use_cache=True)
        cache = first.past_key_values
        for i, layer in enumerate(cache.layers):
            for name, added in zip(("keys", "values"), pairs[f"layer.{i}.self_kv"], strict=True):
                here = getattr(layer, name)  # (1, heads, at + P, d)
                added = added.view(len(e), here.shape[1], -1).transpose(0, 1)[None]
                setattr(layer, name, torch.cat([here[:, :, :at], here[:, :, at:] + added], dim=2))
        places = torch.arange(at + len(e), whole)[None]
        second = model(input_ids=text[None, at:], past_key_values=cache, position_ids=places)
        logits = torch.cat([first.logits[0, :at], second.logits[0]])
        rows.append(torch.cat([logits, logits.new_zeros(len(ids) - len(text), logits.shape[1])]))
    return torch.stack(rows)


@pytest.mark.parametrize("mlp_hidden", [None, 6], ids=["rows", "mlp"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_infix_equals_two_passes_with_a_cache(architecture, mlp_hidden, tiny_backbone, tiny_batch, randomize):
    batch = tiny_batch(architecture, rows=4, width=9)
    assert (batch["boundary"] < batch["attention_mask"].sum(1)).all(), "a row without target shows nothing"
    attached = attach(tiny_backbone(architecture, torch.float64), [Infix(3, mlp_hidden)], seeds=[2])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))

    def oracle(leaves: Leaves) -> Tensor:
        e = leaves["sites.embeddings.embedding"]
        pairs = pairs_of({name: leaf for name, leaf in leaves.items() if "_kv." in name})
        return by_two_passes(tiny_backbone(architecture, torch.float64), batch, e, pairs)

    check(attached, batch, architecture, oracle)
