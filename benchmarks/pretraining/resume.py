"""The state of a pretraining run, from which it goes on after it was stopped: one safetensors file beside its output.

Weights, the optimizer's moments, and how far it was. The data need no state: their order follows from the seed, so a
run that goes on draws the batches that it has seen and forgets them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from peft_methods.state import read_safetensors, write_safetensors


@dataclass
class Progress:
    """How far a run is. step: of the next batch. tokens: seen; losses: of every step; seconds: of training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def state_path(output: Path) -> Path:
    """Where the state of the run lies that writes `output`."""
    return output.with_name(f".{output.name}.state.safetensors")


def save_state(
    path: Path, config: dict[str, Any], model: PreTrainedModel, optimizer: Optimizer, progress: Progress
) -> None:
    """Write the state, whole or not at all. config: what the run must agree in to go on from it."""
    tensors: dict[str, Tensor] = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value.detach()
    tensors["losses"] = torch.tensor(progress.losses, dtype=torch.float64)
    header = {"config": config, "step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds}
    write_safetensors({name: t.clone().contiguous() for name, t in tensors.items()}, path, header)


def load_state(path: Path, config: dict[str, Any], model: PreTrainedModel, optimizer: Optimizer) -> Progress:
    """Move model and optimizer to the stored state; the beginning where there is none.

    Raises ValueError for the state of another run and for a damaged one; it may be worth an hour and is not removed.
    """
    if not path.exists():
        return Progress()
    tensors, header = read_safetensors(path)
    if header["config"] != config:
        differ = [key for key in config if header["config"].get(key) != config[key]]
        raise ValueError(
            f"{path} is the state of a run with other {', '.join(differ)}: finish that run with its own settings, or "
            "remove the file to begin anew"
        )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model/{name}"])
            prefix, suffix = "optimizer/", f"/{name}"
            state = {
                key.removeprefix(prefix).removesuffix(suffix): t
                for key, t in tensors.items()
                if key.startswith(prefix) and key.endswith(suffix) and key.count("/") == 2
            }
            if state:
                optimizer.state[p].update(state)
    return Progress(header["step"], header["tokens"], header["seconds"], tensors["losses"].tolist())
