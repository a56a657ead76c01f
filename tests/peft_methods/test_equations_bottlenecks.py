"""Bottleneck adapters on every architecture: transformers' sub-modules replaced by ones that have the equation in them.

Houlsby    y + W_up f(W_down y + b_down) + b_up          y = the sub-layer's output, before the residual sum
Parallel   y + s (W_up f(W_down x + b_down) + b_up)      x = the sub-layer's input
AdapterL   h + W_up f(W_down LN(h) + b_down) + b_up      h = the layer's output
Pfeiffer   LN(z + W_up f(W_down LN(z) + b_down) + b_up)  z = what the norm after the feed-forward is given
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_methods.attach import attach
from peft_methods.bottleneck import AdapterL, Houlsby, Parallel, Pfeiffer, SharedPfeiffer
from peft_methods.protocols import Method
from tests.conftest import ALL_ARCHITECTURES, DECODERS, ENCODER_DECODERS, ENCODERS
from tests.peft_methods.oracle import LAYERS, Leaves, by_site, check, check_moved, layers_of, path_of, plain
from tests.peft_methods.surgery import Beside, Norm, bottleneck, change_sublayer, in_parallel, in_series, layer_norm

POST_NORM = (*ENCODERS, "bart")
# (architecture, a plain model, the trained tensors by site): puts the adapters into the model.
Operate = Callable[[str, Any, dict[str, Leaves]], None]


def serial(activation: str) -> Operate:
    def operate(architecture: str, model: Any, sites: dict[str, Leaves]) -> None:
        for site, own in sites.items():
            if site.endswith("norm"):
                path = path_of(architecture, site)
                model.set_submodule(path, Norm(model.get_submodule(path), own))
        for layer_name, layer in layers_of(architecture, model).items():
            for role in ("attention", "ffn"):
                change_sublayer(architecture, layer, role, in_series(sites[f"{layer_name}.{role}"], activation))

    return operate


def beside(activation: str, scale: float, roles: tuple[str, ...]) -> Operate:
    def operate(architecture: str, model: Any, sites: dict[str, Leaves]) -> None:
        for layer_name, layer in layers_of(architecture, model).items():
            for role in roles:
                if role == "cross_attention" and not layer_name.startswith("decoder"):
                    continue
                change = in_parallel(sites[f"{layer_name}.{role}"], activation, scale)
                change_sublayer(architecture, layer, role, change)

    return operate


class AroundNorm(nn.Module):
    def __init__(self, norm: nn.Module, own: Leaves, activation: str):
        super().__init__()
        self.norm, self.own, self.activation = norm, own, activation

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(z + bottleneck(self.norm(z), self.own, self.activation))


def around_norms(activation: str, first: int = 0, shared: bool = False) -> Operate:
    def operate(architecture: str, model: Any, sites: dict[str, Leaves]) -> None:
        for layer_name in layers_of(architecture, model):
            if int(layer_name[-1]) < first:
                continue
            site = f"{layer_name}.ffn_norm"
            own = next(iter(sites.values())) if shared else sites[site]
            path = path_of(architecture, site)
            model.set_submodule(path, AroundNorm(model.get_submodule(path), own, activation))

    return operate


def after_layers(activation: str) -> Operate:
    def operate(architecture: str, model: Any, sites: dict[str, Leaves]) -> None:
        for layer_name, layer in layers_of(architecture, model).items():
            own = sites[f"{layer_name}.block"]

            def change(x: Tensor, h: Tensor, own: Leaves = own) -> Tensor:
                return h + bottleneck(layer_norm(h, own["norm.weight"], own["norm.bias"]), own, activation)

            stack, _, i = layer_name.rpartition("layer.")
            model.get_submodule(LAYERS[architecture][stack.removesuffix(".")])[int(i)] = Beside(layer, change)

    return operate


Case = tuple[str, Callable[[], Method], Operate, tuple[str, ...]]
CASES: list[Case] = [
    ("houlsby", lambda: Houlsby(5, "gelu_tanh", "normal", 0.3, True), serial("gelu_tanh"), ALL_ARCHITECTURES),
    ("adapter_h", lambda: Houlsby(5, "gelu_erf", "normal", 0.3, False), serial("gelu_erf"), ALL_ARCHITECTURES),
    (
        "parallel",
        lambda: Parallel(5, "relu", "normal", 0.3, 4.0, 0.0, ("ffn",)),
        beside("relu", 4.0, ("ffn",)),
        ALL_ARCHITECTURES,
    ),
    (
        "parallel_both",
        lambda: Parallel(5, "swish", "normal", 0.3, 0.5, 0.0, ("attention", "ffn")),
        beside("swish", 0.5, ("attention", "ffn")),
        ALL_ARCHITECTURES,
    ),
    (
        "parallel_cross",
        lambda: Parallel(5, "gelu_erf", "normal", 0.3, 2.0, 0.0, ("cross_attention",)),
        beside("gelu_erf", 2.0, ("cross_attention",)),
        ENCODER_DECODERS,
    ),
    ("adapter_l", lambda: AdapterL(5, "relu", "normal", 0.3), after_layers("relu"), (*DECODERS, "t5", "t5_gated")),
    ("pfeiffer", lambda: Pfeiffer(5, "relu", "normal", 0.3, 0), around_norms("relu"), POST_NORM),
    ("pfeiffer_dropped", lambda: Pfeiffer(5, "swish", "normal", 0.3, 1), around_norms("swish", first=1), POST_NORM),
    ("pfeiffer_shared", lambda: SharedPfeiffer(5, "relu", "normal", 0.3), around_norms("relu", shared=True), POST_NORM),
]
CELLS = [pytest.param(*case[1:3], a, id=f"{case[0]}-{a}") for case in CASES for a in case[3]]


@pytest.mark.parametrize(("make", "operate", "architecture"), CELLS)
def test_equals_a_model_with_the_adapters_in_it(make, operate, architecture, tiny_backbone, tiny_batch, randomize):
    batch = tiny_batch(architecture, rows=4, width=9)
    attached = attach(tiny_backbone(architecture, torch.float64), [make()])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))

    def oracle(leaves: Leaves) -> Tensor:
        model = tiny_backbone(architecture, torch.float64)
        operate(architecture, model, by_site(leaves))
        return plain(model, batch)

    check(attached, batch, architecture, oracle)
