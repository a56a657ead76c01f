"""LoRA. Hu et al. 2021, arXiv:2106.09685, section 4.1; released code microsoft/LoRA.

    y <- W x + b + (alpha / r) B A dropout(x)

Site     projections, by default query and value of every layer (section 4.2)
Trained  A (r x in) and B (out x r) at each target, the head
Added    r·(in + out) per target
Merged   W + (alpha / r) B A: no added latency (the paper's words; peft-bench latency measures ours)
Shapes   B batch, T tokens, r rank

Paper and code differ on A's start: the paper says Gaussian, loralib draws Kaiming uniform with a = sqrt(5), the
DeBERTa code normal with std 0.02. Alpha differs too (RoBERTa-base: paper 8, scripts 16). Both are fields. So is
`shared_dropout`: on GPT-2, whose query, key and value are one linear map, loralib's MergedLinear drops their input with
one mask for all targets; its Linear, everywhere else, with one for each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_methods.dropout import Dropout
from peft_methods.sites import Site, Sites


class LowRank(nn.Module):
    """A low-rank update of one projection: x (B, T, in), y (B, T, out) -> (B, T, out)."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float, init_A: str):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank={rank}: expected at least 1; change method.rank")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha={alpha}: expected a finite number; change method.alpha")
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))  # zero: training starts at the backbone
        self.scaling = alpha / rank
        self.dropout = Dropout(dropout)
        if init_A == "kaiming_uniform":
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        elif init_A == "normal_0.02":
            nn.init.normal_(self.A, std=0.02)
        else:
            raise ValueError(f"init_A={init_A!r}: expected kaiming_uniform or normal_0.02; change method.init_A")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.scaling * (self.dropout(x) @ self.A.T @ self.B.T)

    def delta_weight(self) -> Tensor:
        """(out, in): what merging adds to the frozen weight."""
        return self.scaling * (self.B @ self.A)


@dataclass(frozen=True)
class Lora:
    """Published values: conf/method/lora.yaml.

    shared_dropout: the targets that lie in one linear map of the backbone drop its input with one mask.
    """

    result_version = 1
    rank: int
    alpha: float
    dropout: float
    targets: Sequence[str]
    init_A: str
    shared_dropout: bool = False

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        modules = {
            site: LowRank(site.in_features, site.width, self.rank, self.alpha, self.dropout, self.init_A)
            for site in sites.projections(self.targets)
        }
        if self.shared_dropout:
            shared: dict[str, Dropout] = {}  # a mask follows from its module's name: one module, one mask
            for site, module in modules.items():
                module.dropout = shared.setdefault(site.path, module.dropout)
            if len(shared) == len(modules):
                raise ValueError(
                    f"shared_dropout=true: no two of targets={list(self.targets)} lie in one linear map of "
                    f"{sites.model_type}; change method.shared_dropout"
                )
        return dict(modules)
