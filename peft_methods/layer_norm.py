"""LayerNorm tuning. Houlsby et al. 2019, arXiv:1902.00751, section 3.4: the gain and bias of every LayerNorm train, and
the head.

    LN: y <- (gamma + dgamma) * norm(z) + beta + dbeta

Site     every LayerNorm, the embeddings' included (as the released code does)
Trained  2·H a LayerNorm (the RMSNorms of T5 and Llama have no bias: H), as offsets to the frozen ones
Added    none
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.sites import Site, Sites


class NormOffset(nn.Module):
    """The frozen LayerNorm with trained offsets to its gain and bias, or to its bias alone."""

    stands_for_existing = True

    def __init__(self, width: int, gain: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width)) if gain else None
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, norm: nn.LayerNorm) -> Tensor:
        weight = norm.weight if self.weight is None else norm.weight + self.weight
        bias = norm.bias + self.bias
        return F.layer_norm(z, norm.normalized_shape, weight.to(bias.dtype), bias, norm.eps)


class GainOffset(nn.Module):
    """The frozen RMSNorm of T5 and Llama, gain * z / rms(z), with a trained offset to its gain; it has no bias."""

    stands_for_existing = True

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, norm: Any) -> Tensor:
        mean_square = z.float().square().mean(-1, keepdim=True)  # in float32, as these norms do
        return norm.forward(z) + self.weight * (z * torch.rsqrt(mean_square + norm.variance_epsilon)).to(z.dtype)


def norm_offset(sites: Sites, site: Site) -> nn.Module:
    """The module that trains the frozen norm at `site`."""
    return (GainOffset if sites.bias(site) is None else NormOffset)(site.width)


@dataclass(frozen=True)
class LayerNorm:
    """It has no settings."""

    result_version = 1

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {site: norm_offset(sites, site) for site in sites.norms()}
