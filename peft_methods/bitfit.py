"""BitFit: train the biases. Ben Zaken et al. 2021, arXiv:2106.10199; released code benzakenelad/BitFit.

    y <- W x + b + db,     LN: y <- gamma * norm(z) + beta + dbeta

Site     every projection with a bias (the pooler's included where the backbone has one), every LayerNorm
Trained  every bias, as an offset to the frozen one (the same gradients; the backbone stays untouched), the head
Added    none: the offsets stand for parameters that exist already
Shapes   B batch, T tokens, H hidden_size
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from peft_methods.sites import Site, Sites


class BiasOffset(nn.Module):
    """y + offset for a projection's output y (B, T, out)."""

    stands_for_existing = True  # counted as trained, not as added

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bias


class NormOffset(nn.Module):
    """The frozen LayerNorm with trained offsets to its gain and bias, or to its bias alone."""

    stands_for_existing = True

    def __init__(self, width: int, gain: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width)) if gain else None
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, norm: nn.LayerNorm) -> Tensor:
        weight = norm.weight if self.weight is None else norm.weight + self.weight
        return F.layer_norm(z, norm.normalized_shape, weight, norm.bias + self.bias, norm.eps)


class GainOffset(nn.Module):
    """T5's norm, gain * z / rms(z), with a trained offset to its gain; it has no bias."""

    stands_for_existing = True

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, norm: T5LayerNorm) -> Tensor:
        mean_square = z.float().square().mean(-1, keepdim=True)  # in float32, as T5 does
        return norm.forward(z) + self.weight * (z * torch.rsqrt(mean_square + norm.variance_epsilon)).to(z.dtype)


def norm_offset(sites: Sites, site: Site) -> nn.Module:
    """The module that trains the frozen norm at `site`."""
    return (GainOffset if isinstance(sites.module(site), T5LayerNorm) else NormOffset)(site.width)


@dataclass(frozen=True)
class BitFit:
    """`biases`: "all", or "query_ffn_in": the paper's subset, the query and first feed-forward projection's biases
    (section 3, called b_q and b_m2; about half of all biases)."""

    biases: str

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        if self.biases == "all":
            offsets: dict[Site, nn.Module] = {s: BiasOffset(s.width) for s in sites.biased_projections()}
            return offsets | {s: NormOffset(s.width, gain=False) for s in sites.norms()}
        if self.biases == "query_ffn_in":
            biased = {s.name for s in sites.biased_projections()}
            subset = sites.projections([role for role in ("query", "cross_query", "ffn_in") if sites.has(role)])
            return {s: BiasOffset(s.width) for s in subset if s.name in biased}
        raise ValueError(f"biases={self.biases!r}: expected all or query_ffn_in; change method.biases")
