"""Adapters put into transformers' models by replacing their sub-modules, the equations written out."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.peft_methods.oracle import Leaves

# (x, y) -> what the sub-layer with input x gives instead of y
Change = Callable[[Tensor, Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: x * (x > 0),
    "swish": lambda x: x / (1 + torch.exp(-x)),
}


def bottleneck(x: Tensor, own: Leaves, activation: str) -> Tensor:
    """W_up f(W_down x + b_down) + b_up."""
    inside = ACTIVATIONS[activation](x @ own["down.weight"].T + own["down.bias"])
    return inside @ own["up.weight"].T + own["up.bias"]


def in_series(own: Leaves, activation: str) -> Change:
    return lambda x, y: y + bottleneck(y, own, activation)


def in_parallel(own: Leaves, activation: str, scale: float) -> Change:
    return lambda x, y: y + scale * bottleneck(x, own, activation)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """gain * (x - mean) / std + bias."""
    centered = x - x.mean(-1, keepdim=True)
    return gain * centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() + bias


class Beside(nn.Module):
    """A sub-module whose first output is changed."""

    def __init__(self, inner: nn.Module, change: Change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x, output = args[0] if args else kwargs["hidden_states"], self.inner(*args, **kwargs)
        if isinstance(output, tuple):
            return self.change(x, output[0]), *output[1:]
        return self.change(x, output)


class BertOutput(nn.Module):
    """BERT's end of a sub-layer, which is given what its dense layer reads and the sub-layer's own input."""

    def __init__(self, inner: Any, change: Change):
        super().__init__()
        self.dense, self.LayerNorm, self.change = inner.dense, inner.LayerNorm, change

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.change(x, self.dense(y)) + x)


class BartIn(nn.Module):
    """fc1, which keeps what it is given for fc2's sake."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.given = inner, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return self.inner(x)


class BartOut(nn.Module):
    def __init__(self, inner: nn.Module, fc1: BartIn, change: Change):
        super().__init__()
        self.inner, self.change = inner, change
        self.fc1 = [fc1]  # in a list: not a module of this one

    def forward(self, y: Tensor) -> Tensor:
        return self.change(self.fc1[0].given, self.inner(y))


class Norm(nn.Module):
    """A LayerNorm, or gain * x / rms(x) of T5 and Llama, with offsets to its gain and bias."""

    def __init__(self, inner: Any, own: Leaves):
        super().__init__()
        self.gain = inner.weight.detach() + own["weight"]
        self.bias = inner.bias.detach() + own["bias"] if "bias" in own else None
        self.eps = inner.variance_epsilon if self.bias is None else inner.eps

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return self.gain * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return layer_norm(x, self.gain, self.bias, self.eps)


def change_sublayer(architecture: str, layer: Any, role: str, change: Change) -> None:
    """Replace the part of a layer that gives the output of "attention", "cross_attention" or "ffn"."""
    if architecture in ("bert", "roberta", "deberta_v2"):
        owner = {"attention": layer.attention, "ffn": layer}[role]
        owner.output = BertOutput(owner.output, change)
    elif architecture == "bart" and role == "ffn":
        layer.fc1 = BartIn(layer.fc1)
        layer.fc2 = BartOut(layer.fc2, layer.fc1, change)
    elif architecture in ("bart", "gpt2", "llama"):
        names = {
            "bart": {"attention": "self_attn", "cross_attention": "encoder_attn"},
            "gpt2": {"attention": "attn", "ffn": "mlp"},
            "llama": {"attention": "self_attn", "ffn": "mlp"},
        }
        name = names[architecture][role]
        setattr(layer, name, Beside(getattr(layer, name), change))
    else:
        i, name = {
            "attention": (0, "SelfAttention"),
            "cross_attention": (1, "EncDecAttention"),
            "ffn": (-1, "DenseReluDense"),
        }[role]
        setattr(layer.layer[i], name, Beside(getattr(layer.layer[i], name), change))
