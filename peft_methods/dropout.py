"""Counter-based dropout: every mask follows from (run seed, step, micro-batch, site), never from a global generator.

Why not torch's generator: with it, gradient checkpointing recomputes other masks and gives wrong gradients silently,
and a run in a pack would see masks that depend on its neighbors. Here a recomputed layer draws the same mask, and
a run draws the same masks alone and in any pack: they are drawn in the shape of the run's own batch and padded.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class DropoutStream:
    """The mask counter of one run. The training loop sets `step` and `micro_batch`; `attach` sets `padding`.

    seed: the run's seed. padding: by how many positions the pack is wider than the run's own batch, for the tokens of
    `input_ids` ("input") and of `decoder_input_ids` ("target"). backbone: whether the backbone's own dropouts drop for
    this run; some published code trains with all of them off.
    """

    seed: int
    step: int = 0
    micro_batch: int = 0
    backbone: bool = True
    padding: dict[str, int] = field(default_factory=dict)

    def of_backbone(self, p: float) -> float:
        """The probability at which one of the backbone's own dropouts drops for this run."""
        return p if self.backbone else 0.0

    def dropout(self, x: Tensor, p: float, site: str, tokens: Mapping[int, str] | None = None) -> Tensor:
        """Inverted dropout of `x`, (B, ..) -> (B, ..). tokens: which axes are tokens, and whose, e.g. {1: "input"}."""
        if p == 0.0:
            return x
        if p >= 1.0:
            return torch.zeros_like(x)
        own = list(x.shape)
        for axis, whose in (tokens or {}).items():
            own[axis] -= self.padding.get(whose, 0)
        keep = torch.rand(own, generator=self._generator(site, x.device), device=x.device) >= p
        if own != list(x.shape):
            # What lies beyond the run's own length is padding: no loss depends on it, so all of it may stay.
            padded = torch.ones(x.shape, dtype=torch.bool, device=x.device)
            padded[tuple(slice(0, n) for n in own)] = keep
            keep = padded
        return x * keep / (1.0 - p)  # not x * (keep / (1 - p)): in bfloat16 that factor is 0.2 % off

    def _generator(self, site: str, device: torch.device) -> torch.Generator:
        key = f"{self.seed}/{self.step}/{self.micro_batch}/{site}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")
        return torch.Generator(device=device).manual_seed(seed)


class Dropout(nn.Module):
    """Dropout of an attached module: it draws from its run's stream, which `attach` hands over with whose `tokens` lie
    on the second axis.

    p: probability of zeroing an element. Without a stream (module used on its own) training with p > 0 is refused.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout={p}: expected 0 <= dropout < 1; change it in the method's YAML file")
        self.p = p
        self.stream: DropoutStream | None = None
        self.site = ""
        self.tokens = "input"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.stream is None:
            raise RuntimeError("Dropout has no stream: attach the module to a backbone before training it")
        return self.stream.dropout(x, self.p, self.site, {1: self.tokens} if x.dim() == 3 else None)
