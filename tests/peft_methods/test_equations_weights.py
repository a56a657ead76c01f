"""Methods that are a change of weights, on every architecture: the changed weights in a plain transformers model.

LoRA      W + (alpha / r) B A
DoRA      m / ||W + (alpha / r) B A|| (W + (alpha / r) B A), the norm of each row a constant to the gradient
VeRA      W + diag(b) B diag(d) A with A and B from a seed
BitFit    b + db
(IA)^3    rows of W_k and W_v scaled with their biases, columns of W_out scaled
norms     gain + dgain, bias + dbias
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import loralib
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from peft_methods.attach import attach
from peft_methods.baselines import Full, FullTop
from peft_methods.bitfit import BitFit
from peft_methods.dora import Dora
from peft_methods.heads import ClassificationHead
from peft_methods.ia3 import IA3
from peft_methods.layer_norm import norm_offset
from peft_methods.lora import Lora
from peft_methods.protocols import Method
from peft_methods.vera import Vera
from tests.conftest import ALL_ARCHITECTURES, BIASLESS, DECODERS, ENCODER_DECODERS, ENCODERS
from tests.peft_methods.oracle import Leaves, by_site, check, check_moved, path_of, plain

SIX = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
CROSS = ("cross_query", "cross_key", "cross_value", "cross_output")
BIASED = tuple(a for a in ALL_ARCHITECTURES if a not in BIASLESS)
PARTS = {"query": 0, "key": 1, "value": 2}  # of GPT-2's c_attn


def targets(architecture: str) -> tuple[str, ...]:
    """Every linear map of the layers, and BERT's pooler."""
    more = {"bert": ("pooler",), "t5_gated": ("ffn_gate",), "llama": ("ffn_gate",)}.get(architecture, ())
    return (*SIX, *(CROSS if architecture in ENCODER_DECODERS else ()), *more)


class ChangedWeights:
    """A plain model's parameters, some of them replaced by functions of other tensors."""

    def __init__(self, architecture: str, model: nn.Module):
        self.architecture, self.model = architecture, model
        self.changed: dict[str, Tensor] = {}

    def current(self, name: str) -> Tensor:
        return self.changed.get(name, self.model.get_parameter(name).detach())

    def change(self, site: str, leaf: str, function: Callable[[Tensor], Tensor]) -> None:
        """function: (out, in) weight, or (out,) bias, of the projection at a site -> the same shape."""
        name = f"{path_of(self.architecture, site)}.{leaf}"
        value, role = self.current(name), site.rpartition(".")[2]
        conv1d = self.architecture == "gpt2" and value.dim() == 2  # holds (in, out)
        rows = value.T if conv1d else value
        if self.architecture == "gpt2" and role in PARTS:
            parts = list(rows.chunk(3))
            parts[PARTS[role]] = function(parts[PARTS[role]])
            rows = torch.cat(parts)
        else:
            rows = function(rows)
        self.changed[name] = rows.T if conv1d else rows

    def outputs(self, batch: dict[str, Tensor]) -> Tensor:
        return plain(lambda **inputs: functional_call(self.model, self.changed, (), inputs), batch)


def with_lora(scaling: float) -> Callable[[ChangedWeights, Leaves], None]:
    def write(model: ChangedWeights, leaves: Leaves) -> None:
        for site, own in by_site(leaves).items():
            model.change(site, "weight", lambda w, own=own: w + scaling * own["B"] @ own["A"])  # type: ignore[misc]

    return write


def with_dora(model: ChangedWeights, leaves: Leaves) -> None:
    for site, own in by_site(leaves).items():

        def decomposed(w: Tensor, own: Leaves = own) -> Tensor:
            rows = w + 7.0 / 3 * own["low_rank.B"] @ own["low_rank.A"]
            return own["magnitude"][:, None] * rows / rows.detach().square().sum(1, keepdim=True).sqrt()

        model.change(site, "weight", decomposed)


def with_vera(model: ChangedWeights, leaves: Leaves) -> None:
    """One pair for all targets, as wide as the second feed-forward map and as high as the first."""
    draws, bounds = torch.Generator().manual_seed(11), {(5, 24): (6 / 24) ** 0.5, (24, 5): (6 / 5) ** 0.5}
    A, B = (torch.empty(shape).uniform_(-c, c, generator=draws).double() for shape, c in bounds.items())
    for site, own in by_site(leaves).items():

        def scaled(w: Tensor, own: Leaves = own) -> Tensor:
            return w + torch.diag(own["b"]) @ B[: len(w)] @ torch.diag(own["d"]) @ A[:, : w.shape[1]]

        model.change(site, "weight", scaled)


def with_offsets(model: ChangedWeights, leaves: Leaves) -> None:
    for site, own in by_site(leaves).items():
        for leaf, offset in own.items():
            model.change(site, leaf, lambda value, offset=offset: value + offset)  # type: ignore[misc]


def with_scales(model: ChangedWeights, leaves: Leaves) -> None:
    for site, own in by_site(leaves).items():
        scale = own["scale"]
        if site.endswith("ffn_out_input"):
            model.change(site.removesuffix("_input"), "weight", lambda w, scale=scale: w * scale)  # type: ignore[misc]
            continue
        assert site.rpartition(".")[2] in ("key", "value", "cross_key", "cross_value")
        model.change(site, "weight", lambda w, scale=scale: w * scale[:, None])  # type: ignore[misc]
        if model.architecture in BIASED:
            model.change(site, "bias", lambda b, scale=scale: b * scale)  # type: ignore[misc]


def in_place(model: ChangedWeights, leaves: Leaves) -> None:
    model.changed = {name.removeprefix("backbone."): leaf for name, leaf in leaves.items()}


def all_norms(architecture: str) -> Any:
    return SimpleNamespace(modules=lambda sites: {site: norm_offset(sites, site) for site in sites.norms()})


Write = Callable[[ChangedWeights, Leaves], None]
CASES: list[tuple[str, Callable[[str], Method], Write, tuple[str, ...]]] = [
    ("lora", lambda a: Lora(3, 7.0, 0.0, targets(a), "normal_0.02"), with_lora(7.0 / 3), ALL_ARCHITECTURES),
    ("dora", lambda a: Dora(3, 7.0, 0.0, targets(a), "normal_0.02"), with_dora, ALL_ARCHITECTURES),
    ("vera", lambda a: Vera(5, 0.7, 0.0, targets(a), 11), with_vera, ALL_ARCHITECTURES),
    ("bitfit", lambda a: BitFit("all"), with_offsets, BIASED),
    ("bitfit_subset", lambda a: BitFit("query_ffn_in"), with_offsets, BIASED),
    ("ia3", lambda a: IA3(), with_scales, ALL_ARCHITECTURES),
    ("norms", all_norms, with_offsets, ALL_ARCHITECTURES),
    ("full", lambda a: Full(), in_place, ALL_ARCHITECTURES),
    ("full_top", lambda a: FullTop(1), in_place, (*ENCODERS, *DECODERS)),
]
CELLS = [pytest.param(*case[1:3], a, id=f"{case[0]}-{a}") for case in CASES for a in case[3]]


def unseen(name: str) -> bool:
    """BERT's pooler is beside the hidden states; softmax does not see what all keys have in common."""
    return "pooler" in name or (name.endswith("bias") and ("key" in name or "k_proj" in name))


@pytest.mark.parametrize(("make", "write", "architecture"), CELLS)
def test_equals_a_model_with_the_changed_weights(make, write, architecture, tiny_backbone, tiny_batch, randomize):
    batch, backbone = tiny_batch(architecture, rows=4, width=9), tiny_backbone(architecture, torch.float64)
    attached = attach(tiny_backbone(architecture, torch.float64), [make(architecture)])
    if write is not in_place:
        randomize(attached.run(0), seed=5)
        check_moved(attached, batch, backbone)

    def oracle(leaves: Leaves) -> Tensor:
        model = ChangedWeights(architecture, backbone)
        write(model, leaves)
        return model.outputs(batch)

    check(attached, batch, architecture, oracle, unseen)


@pytest.mark.parametrize(
    ("make", "write"),
    [
        (lambda: Lora(3, 7.0, 0.0, ("query", "pooler"), "normal_0.02"), with_lora(7.0 / 3)),
        (lambda: BitFit("all"), with_offsets),
    ],
    ids=["lora", "bitfit"],
)
def test_the_pooler_through_a_head(make, write, tiny_backbone, tiny_batch, randomize):
    """BERT's pooler has its place in the equations too: first token, changed map, tanh, output layer."""
    batch, backbone = tiny_batch("bert", rows=4, width=9), tiny_backbone("bert", torch.float64)
    attached = attach(tiny_backbone("bert", torch.float64), [make()], [lambda: ClassificationHead(backbone.config, 3)])
    randomize(attached.run(0), seed=5)

    def oracle(leaves: Leaves) -> Tensor:
        model, weight, bias = (
            ChangedWeights("bert", backbone),
            leaves["head.out_proj.weight"],
            leaves["head.out_proj.bias"],
        )
        write(model, {name: leaf for name, leaf in leaves.items() if not name.startswith("head.")})
        pooler = [model.current(f"pooler.dense.{leaf}") for leaf in ("weight", "bias")]
        return torch.tanh(F.linear(model.outputs(batch)[:, 0], *pooler)) @ weight.T + bias

    check(attached, batch, "bert", oracle, lambda name: name.endswith("key.bias"))


def test_gpt2_equals_loralib(tiny_backbone, tiny_batch, randomize):
    """Microsoft's MergedLinear in every c_attn: query and value have factors of their own, the key none."""
    batch, theirs = tiny_batch("gpt2", rows=4, width=9), tiny_backbone("gpt2", torch.float64)
    attached = attach(tiny_backbone("gpt2", torch.float64), [Lora(3, 7.0, 0.0, ("query", "value"), "normal_0.02")])
    randomize(attached.run(0), seed=5)
    merged: dict[str, Any] = {}
    for i, layer in enumerate(theirs.transformer.h):
        frozen, width = layer.attn.c_attn, 16
        fused = loralib.MergedLinear(width, 3 * width, r=3, lora_alpha=7, enable_lora=[True, False, True])
        fused.load_state_dict({"weight": frozen.weight.T, "bias": frozen.bias}, strict=False)
        layer.attn.c_attn = merged[f"layer.{i}"] = fused.double()
        fused.train()  # as it is before it merges; loralib returns nothing
    leaf_names = [f"sites.layer.{i}.{role}.{ab}" for i in (0, 1) for role in ("query", "value") for ab in "AB"]

    def oracle(leaves: Leaves) -> Tensor:
        assert sorted(leaves) == sorted(leaf_names)
        changed = {}
        for layer in merged:
            for matrix in "AB":
                pair = [leaves[f"sites.{layer}.{role}.{matrix}"] for role in ("query", "value")]
                changed[f"transformer.{layer.replace('layer', 'h')}.attn.c_attn.lora_{matrix}"] = torch.cat(pair)
        return plain(lambda **inputs: functional_call(theirs, changed, (), inputs), batch)

    check(attached, batch, "gpt2", oracle)


@pytest.mark.parametrize(("architecture", "final"), [("gpt2", "ln_f"), ("llama", "norm"), ("bert", None)])
def test_the_last_layers_train_with_the_norm_after_them(tiny_backbone, architecture, final):
    """Option 22 of Li & Liang's code: two blocks and ln_f; a post-norm encoder has none of its own."""
    backbone = tiny_backbone(architecture)
    attached = attach(backbone, [FullTop(1)])
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert {part for name in names for part in name.split(".") if part.isdigit()} == {"1"}  # of two layers
    outside = {name for name in names if not any(part.isdigit() for part in name.split("."))}
    assert {name.split(".")[-2] for name in outside} == ({final} if final else set())
    attached.detach()
