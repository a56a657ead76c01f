"""Bottleneck adapters: Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (arXiv:2005.00247), Lin et al. 2020
(arXiv:2004.03829) and the parallel adapter of He et al. 2021 (arXiv:2110.04366).

    Houlsby    h <- h + W_up f(W_down h + b_down) + b_up                              (section 2.1, figure 2)
    Parallel   h <- h + s (W_up f(W_down x + b_down) + b_up),  x = sub-layer input    (He, section 3.3)
    AdapterL   h <- h + W_up f(W_down LN(h) + b_down) + b_up,  h = a layer's output   (Lin; LoRA's "Adapter^L")
    Pfeiffer   y <- LN(z + W_up f(W_down LN(z) + b_down) + b_up),  z = sub-layer output + residual

Site     Houlsby: output of the attention and of the feed-forward sub-layer, after dropout, before the residual sum
         Parallel: the same, of the sub-layers asked for
         AdapterL: the output of each layer, after the feed-forward's residual sum
         Pfeiffer: the LayerNorm after the feed-forward sub-layer (frozen, applied before and after the adapter)
Trained  the adapters, with `train_layer_norms` every LayerNorm too (Houlsby section 2.1), the head
Added    2·H·m + H + m per adapter; Houlsby 2·L of them, Parallel L a sub-layer, Pfeiffer L - skip_layers, shared 1;
         AdapterL L of them with 2·H more each, its LayerNorm
Shapes   B batch, T tokens, H hidden_size, m bottleneck_dim, L layers

Papers and code differ on: the initial scale (section 3.6: 1e-2; released code: 1e-3; AdapterHub and the LoRA code:
normal 0.02), the activation (released code: tanh GELU; AdapterHub: swish or ReLU), whether LayerNorms train (Houlsby:
yes; AdapterHub and the LoRA code: no). Hence fields, with the published values in conf/method/.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.dropout import Dropout
from peft_methods.layer_norm import norm_offset
from peft_methods.sites import Site, Sites

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_erf": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
}

INITS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "truncated_normal": lambda weight, std: nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std),
    "normal": lambda weight, std: nn.init.normal_(weight, std=std),
    "lora": lambda weight, std: nn.init.kaiming_uniform_(weight, a=math.sqrt(5)),
}


class Bottleneck(nn.Module):
    """down, activation, dropout, up: (B, T, H) -> (B, T, H), without the skip connection."""

    def __init__(
        self, hidden_size: int, bottleneck_dim: int, activation: str, init: str, init_std: float, dropout: float = 0.0
    ):
        super().__init__()
        if bottleneck_dim < 1:
            raise ValueError(f"bottleneck_dim={bottleneck_dim}: expected at least 1; change method.bottleneck_dim")
        if not 0 <= init_std < math.inf:
            raise ValueError(f"init_std={init_std}: expected 0 or more; change method.init_std")
        for field, value, known in (("activation", activation, ACTIVATIONS), ("init", init, INITS)):
            if value not in known:
                raise ValueError(f"{field}={value!r}: expected one of {', '.join(known)}; change method.{field}")
        self.down = nn.Linear(hidden_size, bottleneck_dim)
        self.up = nn.Linear(bottleneck_dim, hidden_size)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)
        for projection in (self.down, self.up):
            # Near zero, so that the block starts near the identity and training starts from the backbone.
            INITS[init](projection.weight, init_std)
            nn.init.zeros_(projection.bias)
        if init == "lora":  # exactly the backbone: nothing comes up
            nn.init.zeros_(self.up.weight)

    def forward(self, h: Tensor) -> Tensor:
        return self.up(self.dropout(self.activation(self.down(h))))


class SublayerAdapter(Bottleneck):
    """Houlsby's adapter with its own skip: h + up(f(down h))."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]  # a sub-layer site gives two
        return h + super().forward(h)


class ParallelAdapter(Bottleneck):
    """He's adapter beside the sub-layer: h + scale · up(dropout(f(down x)))."""

    def __init__(self, scale: float, *sizes: Any):
        super().__init__(*sizes)
        self.scale = scale

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        return h + self.scale * super().forward(x)


class NormAdapter(Bottleneck):
    """Pfeiffer's adapter around the frozen LayerNorm: the skip is taken before the first application of it."""

    def forward(self, z: Tensor, norm: nn.LayerNorm) -> Tensor:  # type: ignore[override]  # a norm site gives two
        # norm.forward, not norm(...): the call would run the hook that called us.
        def frozen(x: Tensor) -> Tensor:
            return norm.forward(x.to(norm.weight.dtype)).to(z.dtype)

        return frozen(z + super().forward(frozen(z)))


class BlockAdapter(Bottleneck):
    """Lin's adapter on a layer's output, with a LayerNorm of its own: h + up(f(down LN(h)))."""

    def __init__(self, hidden_size: int, *sizes: Any):
        super().__init__(hidden_size, *sizes)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        return h + super().forward(self.norm(h))


def _sizes(method: Any) -> tuple[int, str, str, float]:
    """The settings that all of the methods below have, in a `Bottleneck`'s order."""
    return method.bottleneck_dim, method.activation, method.init, method.init_std


@dataclass(frozen=True)
class Houlsby:
    """An adapter at each sub-layer output. Published values: conf/method/houlsby.yaml, conf/method/adapter_h.yaml."""

    result_version = 1
    bottleneck_dim: int
    activation: str
    init: str
    init_std: float
    train_layer_norms: bool

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        """Every LayerNorm, the embeddings' included, trains as an offset to the frozen one (section 2.1)."""
        modules: dict[Site, nn.Module] = {
            site: SublayerAdapter(site.width, *_sizes(self)) for site in sites.sublayers(("attention", "ffn"))
        }
        if self.train_layer_norms:
            modules |= {site: norm_offset(sites, site) for site in sites.norms()}
        return modules


@dataclass(frozen=True)
class Parallel:
    """An adapter beside each of `sublayers` ("attention", "ffn"). Published values: conf/method/parallel.yaml."""

    result_version = 1
    bottleneck_dim: int
    activation: str
    init: str
    init_std: float
    scale: float
    dropout: float
    sublayers: Sequence[str]

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        if not self.sublayers:
            raise ValueError("sublayers is empty: name attention, ffn or both; change method.sublayers")
        return {
            site: ParallelAdapter(self.scale, site.width, *_sizes(self), self.dropout)
            for site in sites.sublayers(self.sublayers)
        }


@dataclass(frozen=True)
class Pfeiffer:
    """One adapter per layer; `skip_layers` leaves the first n layers without (AdapterDrop, Rückle et al. 2021)."""

    result_version = 1
    bottleneck_dim: int
    activation: str
    init: str
    init_std: float
    skip_layers: int

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {site: NormAdapter(site.width, *_sizes(self)) for site in sites.norms_after_ffn(self.skip_layers)}


@dataclass(frozen=True)
class SharedPfeiffer:
    """One adapter, the same at every layer: probably the AdapterDrop row with 0.3M of LoRA's table 2."""

    result_version = 1
    bottleneck_dim: int
    activation: str
    init: str
    init_std: float

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        places = sites.norms_after_ffn()
        shared = NormAdapter(places[0].width, *_sizes(self))
        return dict.fromkeys(places, shared)


@dataclass(frozen=True)
class AdapterL:
    """An adapter after each layer of a model that normalizes first. Published values: conf/method/adapter_l.yaml."""

    result_version = 1
    bottleneck_dim: int
    activation: str
    init: str
    init_std: float

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {site: BlockAdapter(site.width, *_sizes(self)) for site in sites.blocks()}
