"""What `peft-bench latency` compares: methods at published size on GPT-2 shapes with random weights, and no method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from ..config.compose import backbone_choice, build_method, method_choice

# Ends in a minute or two on a laptop's processor.
SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0}
BACKBONES = ("small", "gpt2", "gpt2_medium", "gpt2_large")


@dataclass(frozen=True)
class Candidate:
    """A method at published size: settings(width) for conf/method/<method>.yaml; None: the backbone alone."""

    method: str | None
    settings: Callable[[int], str] = lambda width: ""
    merged: bool = False


# Sizes of LoRA's Tables 1 and 3 on GPT-2 medium (11M for both adapters), in proportion to the width.
CANDIDATES = {
    "backbone": Candidate(None),
    "LoRA": Candidate("lora", lambda width: "rank=4"),
    "LoRA merged": Candidate("lora", lambda width: "rank=4", merged=True),
    "Adapter^H": Candidate("adapter_h", lambda width: f"bottleneck_dim={112 * width // 1024}"),
    "Adapter^L": Candidate("adapter_l", lambda width: f"bottleneck_dim={224 * width // 1024}"),
    "prefix": Candidate("prefix", lambda width: "length=5"),
    "prompt": Candidate("prompt", lambda width: "length=100"),
}


def random_backbone(name: str, device: torch.device) -> GPT2LMHeadModel:
    """A GPT-2 of the shape of conf/backbone/<name>.yaml, or SMALL, with random weights."""
    if name not in BACKBONES:
        raise ValueError(f"--backbone {name}: expected one of {', '.join(BACKBONES)}")
    shape = SMALL if name == "small" else backbone_choice(name).architecture
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel._from_config(GPT2Config(**shape), attn_implementation="sdpa").to(device).eval()


def make_method(name: str, width: int) -> Any:
    """The method of a candidate at this width."""
    candidate = CANDIDATES[name]
    assert candidate.method is not None
    return build_method(method_choice(candidate.method, candidate.settings(width)))


def some_batch(backbone: GPT2LMHeadModel, batch_size: int, length: int) -> dict[str, Tensor]:
    """(batch_size, length) tokens without padding; which ones does not matter."""
    ids = torch.arange(batch_size * length, device=backbone.device) % backbone.config.vocab_size
    return {"input_ids": ids.view(batch_size, length), "attention_mask": torch.ones_like(ids).view(batch_size, length)}
