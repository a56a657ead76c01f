"""Adafactor without momentum, as T5X runs it (google-research/t5x, adafactor.py; Shazeer & Stern 2018,
arXiv:1804.04235):

    b2    = 1 - t^-0.8                                                t = 1, 2, ... steps
    v     <- b2 v + (1 - b2) (g^2 + 1e-30)                            factored for large matrices: row and column means
    u     = g / sqrt(v);   u <- u / max(1, RMS(u))
    p     <- (1 - decay) p - lr u                                     with parameter scaling: lr max(RMS(p), 0.001) u

transformers' and torch's Adafactor differ in two ways that matter to a prompt: they factor every matrix, where T5X does
not below 128 rows or columns, and multiply the weight decay by the learning rate.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

DECAY_EXPONENT = 0.8  # t5x adafactor.py: decay_rate
FACTORED_FROM = 128  # min_dim_size_to_factor
SQUARE_FLOOR, SCALE_FLOOR = 1e-30, 1e-3  # epsilon1, epsilon2
CLIPPING = 1.0  # clipping_threshold, of the update's root mean square


class Adafactor(Optimizer):
    """parameter_scaling: steps are relative to a parameter's root mean square (T5's own training), or absolute (prompt
    tuning: Lester et al. 2021, section 3)."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, parameter_scaling: bool = False):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "parameter_scaling": parameter_scaling})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = self._update(p)
                scale = max(_rms(p).item(), SCALE_FLOOR) if group["parameter_scaling"] else 1.0
                p.mul_(1 - group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)

    def _update(self, p: Tensor) -> Tensor:
        """The gradient over the root of its running square, its own root mean square at most 1."""
        assert p.grad is not None
        grad, state = p.grad.to(torch.promote_types(p.dtype, torch.float32)), self.state[p]
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        new = float(state["step"]) ** -DECAY_EXPONENT  # the share of this step's square
        square = grad.square() + SQUARE_FLOOR
        if p.ndim >= 2 and min(p.shape[-2:]) >= FACTORED_FROM:
            rows = _running(state, "exp_avg_sq_row", square.mean(-1), new)
            columns = _running(state, "exp_avg_sq_col", square.mean(-2), new)
            row_factor = (rows / rows.mean(-1, keepdim=True)).rsqrt()
            update = grad * row_factor.unsqueeze(-1) * columns.rsqrt().unsqueeze(-2)
        else:
            update = grad * _running(state, "exp_avg_sq", square, new).rsqrt()
        return update / (_rms(update) / CLIPPING).clamp(min=1)


def _running(state: dict[str, Any], name: str, value: Tensor, new: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    mean: Tensor = state[name].lerp_(value, new)
    return mean


def _rms(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).square().mean().sqrt()
