"""VeRA. Kopiczko et al. 2024, arXiv:2310.11454, section 3; slices for targets of several widths as in peft.

    y <- W x + c + b * (B (d * (A dropout(x))))

Site     projections, by default query and value of every layer
Trained  b (out) and d (r) at each target, the head; A and B are random, frozen and shared by all targets
Added    out + r per target
Stored   b and d: A and B follow from projection_seed
Merged   W + diag(b) B diag(d) A
Shapes   A (r x widest in), B (widest out x r): a target takes A's first columns and B's first rows
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_methods.dropout import Dropout
from peft_methods.sites import Site, Sites


class Projections(nn.Module):
    """A and B."""

    def __init__(self, rank: int, width: int, out: int, seed: int):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1; change method.rank")
        draws = torch.Generator("cpu").manual_seed(seed)
        self.A, self.B = (_kaiming_uniform(shape, draws) for shape in ((rank, width), (out, rank)))


def _kaiming_uniform(shape: tuple[int, int], draws: torch.Generator) -> nn.Buffer:
    bound = math.sqrt(6 / shape[1])
    return nn.Buffer(torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=draws), persistent=False)


class ScaledProjections(nn.Module):
    """x (B, T, in), y (B, T, out) -> (B, T, out)."""

    def __init__(self, site: Site, shared: Projections, d_initial: float, dropout: float):
        super().__init__()
        self.shared, self.dropout = shared, Dropout(dropout)
        self.columns, self.rows = slice(site.in_features), slice(site.width)
        self.d = nn.Parameter(torch.full((len(shared.A),), d_initial))
        self.b = nn.Parameter(torch.zeros(site.width))  # zero: training starts at the backbone

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        inside = self.d * (self.dropout(x) @ self.shared.A[:, self.columns].T)
        return y + self.b * (inside @ self.shared.B[self.rows].T)

    def delta_weight(self) -> Tensor:
        """(out, in): what merging adds to the frozen weight."""
        return (self.b[:, None] * self.shared.B[self.rows]) @ (self.d[:, None] * self.shared.A[:, self.columns])


@dataclass(frozen=True)
class Vera:
    """Published values: conf/method/vera.yaml."""

    result_version = 1
    rank: int
    d_initial: float
    dropout: float
    targets: Sequence[str]
    projection_seed: int

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        targets = sites.projections(self.targets)
        widths = max(s.in_features for s in targets), max(s.width for s in targets)
        shared = Projections(self.rank, *widths, self.projection_seed)
        return {site: ScaledProjections(site, shared, self.d_initial, self.dropout) for site in targets}
