"""Optimizers and schedules of the published protocols: torch's AdamW, BERT's Adam, T5X's Adafactor; the schedules of
transformers and of BERT."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from peft_methods.protocols import ParameterGroup

from ..config.schema import TrainerConfig
from .adafactor import Adafactor

OPTIMIZERS = ("adamw", "bert_adam", "adafactor")
SCHEDULES = ("linear", "constant", "bert_linear")


class BertAdam(Optimizer):
    """Adam with decoupled weight decay and without bias correction (google-research/adapter-bert, optimization.py):

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   p <- p - lr (m / (sqrt(v) + eps) + decay p)
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                m = state["exp_avg"].lerp_(p.grad, 1 - beta1)
                v = state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                update = m / (v.sqrt() + group["eps"])
                p.add_(update.add_(p, alpha=group["weight_decay"]), alpha=-group["lr"])


def make_optimizer(parameters: Sequence[ParameterGroup], cfg: TrainerConfig) -> Optimizer:
    """Each group with its learning rate; weight decay on matrices only: never on biases, LayerNorms, offsets (Houlsby's
    code, HF Trainer)."""
    groups: list[dict[str, Any]] = []
    for group in parameters:
        matrices = [p for p in group.parameters.values() if p.ndim >= 2]
        vectors = [p for p in group.parameters.values() if p.ndim < 2]
        rate = {"lr": group.rate * cfg.learning_rate}
        groups += [{"params": matrices, "weight_decay": cfg.weight_decay} | rate]
        groups += [{"params": vectors, "weight_decay": 0.0} | rate]
    # of nothing, for a run that trains nothing: an optimizer wants at least one parameter
    groups = [group for group in groups if group["params"]] or [{"params": [Parameter(torch.empty(0))]}]
    if cfg.optimizer == "adafactor":
        return Adafactor(groups, cfg.learning_rate, parameter_scaling=cfg.parameter_scaling)
    kinds = {"adamw": AdamW, "bert_adam": BertAdam}
    return kinds[cfg.optimizer](groups, lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)


def make_schedule(optimizer: Optimizer, cfg: TrainerConfig, total_steps: int) -> LRScheduler:
    """The factor of the learning rate at each step, with w steps of warm-up of T in all.

    linear        transformers': s / w, then (T - s) / (T - w)
    bert_linear   google-research/bert and adapter-bert (optimization.py): s / w, then (T - s) / T: the decay runs from
                  the first step and the warm-up covers its beginning
    constant      s / w, then 1
    """
    of_bert = cfg.schedule == "bert_linear"
    rounded = int if of_bert else math.ceil  # run_classifier.py; transformers' Trainer
    warmup = rounded(cfg.warmup_ratio * total_steps) if cfg.warmup_steps is None else cfg.warmup_steps
    if of_bert:
        return LambdaLR(optimizer, lambda step: step / warmup if step < warmup else max(0.0, 1 - step / total_steps))
    name = {"linear": "linear", "constant": "constant_with_warmup"}[cfg.schedule]
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
