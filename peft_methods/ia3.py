"""(IA)^3: scale activations with learned vectors. Liu et al. 2022, arXiv:2205.05638, section 3.3; code r-three/t-few.

    k <- l_k * (W_k x + b_k),   v <- l_v * (W_v x + b_v),   y <- W_out (l_ff * f(W_in x)) + b_out

Site     the output of the key and value projection, the input of the second feed-forward projection, every layer
Trained  one vector a site, all ones at the start, and the head
Added    2·A + F per layer of an encoder or of a decoder alone, 4·A + F per layer of a decoder with cross-attention
Shapes   B batch, T tokens, A the keys' heads times head size (not hidden_size in Llama, some T5), F intermediate_size
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_methods.sites import Site, Sites


class OutputScaling(nn.Module):
    """l * y for a projection's output y (B, T, out)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * y


class InputScaling(nn.Module):
    """l * x for a projection's input x (B, T, in)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@dataclass(frozen=True)
class IA3:
    """No settings: what is scaled is the method."""

    result_version = 1

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        """Cross-attentions too, where there are some."""
        scaled = [role for role in ("key", "value", "cross_key", "cross_value") if sites.has(role)]
        outputs: dict[Site, nn.Module] = {s: OutputScaling(s.width) for s in sites.projections(scaled)}
        return outputs | {s: InputScaling(s.width) for s in sites.projection_inputs(("ffn_out",))}
