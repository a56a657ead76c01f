"""BitFit: train the biases. Ben Zaken et al. 2021, arXiv:2106.10199; released code benzakenelad/BitFit.

    y <- W x + b + db,     LN: y <- gamma * norm(z) + beta + dbeta

Site     every projection with a bias (the pooler's included where the backbone has one), every LayerNorm
Trained  every bias, as an offset to the frozen one (the same gradients; the backbone stays untouched), the head
Added    none: the offsets stand for parameters that exist already
Shapes   B batch, T tokens, H hidden_size
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_methods.layer_norm import NormOffset
from peft_methods.sites import Site, Sites


class BiasOffset(nn.Module):
    """y + offset for a projection's output y (B, T, out)."""

    stands_for_existing = True  # counted as trained, not as added

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bias


@dataclass(frozen=True)
class BitFit:
    """`biases`: "all", or "query_ffn_in": the paper's subset, the query and first feed-forward projection's biases
    (section 3, called b_q and b_m2; about half of all biases)."""

    result_version = 1
    biases: str

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        if self.biases == "all":
            offsets: dict[Site, nn.Module] = {s: BiasOffset(s.width) for s in sites.biased_projections()}
            return offsets | {s: NormOffset(s.width, gain=False) for s in sites.norms() if sites.bias(s) is not None}
        if self.biases == "query_ffn_in":
            biased = {s.name for s in sites.biased_projections()}
            subset = sites.projections([role for role in ("query", "cross_query", "ffn_in") if sites.has(role)])
            return {s: BiasOffset(s.width) for s in subset if s.name in biased}
        raise ValueError(f"biases={self.biases!r}: expected all or query_ffn_in; change method.biases")
