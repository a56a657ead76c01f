"""DoRA. Liu et al. 2024, arXiv:2402.09353, section 4; released code NVlabs/DoRA.

    y <- m / ||W + D||_row * (W + D) x + b,     D = (alpha / r) B A

Site     projections, as LoRA
Trained  A, B and the magnitude m (out) at each target, the head
Added    r·(in + out) + out per target
Merged   diag(m / ||W + D||_row) (W + D)
Shapes   B batch, T tokens, r rank

The norm is a constant to the backward pass (section 4.3). Dropout is on the input of what changes, W x + b is whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.lora import LowRank
from peft_methods.sites import FrozenMap, Site, Sites


class WeightDecomposed(nn.Module):
    """Magnitudes, and directions with a low-rank update: x (B, T, in), y (B, T, out) -> (B, T, out)."""

    takes_map = True

    def __init__(self, weight: Tensor, low_rank: LowRank):
        super().__init__()
        self.low_rank = low_rank
        self.magnitude = nn.Parameter(weight.to(low_rank.A.dtype).norm(dim=1))  # training starts at the backbone

    def forward(self, x: Tensor, y: Tensor, frozen: FrozenMap) -> Tensor:
        x, ratio = self.low_rank.dropout(x), self._ratio(frozen.weight)
        update = self.low_rank.scaling * (x @ self.low_rank.A.T @ self.low_rank.B.T)
        return y + (ratio - 1) * F.linear(x, frozen.weight) + ratio * update

    def delta_weight(self, frozen: FrozenMap) -> Tensor:
        """(out, in): what merging adds to the frozen weight."""
        rows = frozen.weight + self.low_rank.delta_weight()
        return self._ratio(frozen.weight)[:, None] * rows - frozen.weight

    def _ratio(self, weight: Tensor) -> Tensor:
        """(out,): m / ||W + D||."""
        return self.magnitude / (weight + self.low_rank.delta_weight().detach()).norm(dim=1)


@dataclass(frozen=True)
class Dora:
    """Published values: conf/method/dora.yaml."""

    result_version = 1
    rank: int
    alpha: float
    dropout: float
    targets: Sequence[str]
    init_A: str

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        settings = (self.rank, self.alpha, self.dropout, self.init_A)
        return {
            site: WeightDecomposed(sites.weight(site), LowRank(site.in_features, site.width, *settings))
            for site in sites.projections(self.targets)
        }
