"""Counter-based dropout: every mask follows from (run seed, step, micro-batch, site), never from a global generator.

Why not torch's generator: with it, gradient checkpointing recomputes other masks and gives wrong gradients silently,
and a run in a pack would see masks that depend on its neighbors. Here a recomputed layer draws the same mask, and
a run draws the same masks alone and in any pack: they are drawn in the shape of the run's own batch and padded.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class DropoutStream:
    """The mask counter of one run. The training loop sets `step` and `micro_batch`; `attach` sets `length`.

    seed: the run's seed. length: number of tokens T of the run's own batch before padding to the pack's.
    """

    seed: int
    step: int = 0
    micro_batch: int = 0
    length: int = 0

    def dropout(self, x: Tensor, p: float, site: str) -> Tensor:
        """Inverted dropout of `x`, (B, ..) -> (B, ..); token axes: 1 of (B, T, C), 2 and 3 of (B, heads, T, T)."""
        if p == 0.0:
            return x
        if p >= 1.0:
            return torch.zeros_like(x)
        own = list(x.shape)
        for axis in {3: (1,), 4: (2, 3)}.get(x.dim(), ()):
            own[axis] = min(own[axis], self.length)
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
    """Dropout of an attached module: it draws from its run's stream, which `attach` hands over.

    p: probability of zeroing an element. Without a stream (module used on its own) training with p > 0 is refused.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout={p}: expected 0 <= dropout < 1; change it in the method's YAML file")
        self.p = p
        self.stream: DropoutStream | None = None
        self.site = ""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.stream is None:
            raise RuntimeError("Dropout has no stream: attach the module to a backbone before training it")
        return self.stream.dropout(x, self.p, self.site)
