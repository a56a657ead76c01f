"""Every site of a backbone, from its architecture's entry. The kinds: sites.py, which methods import `Site` from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_methods.architectures import Architecture, Stack, Tokens

Kind = Literal["projection", "input", "sublayer", "block", "norm", "attention", "embeddings"]
EMBEDDINGS = "embeddings"  # name of the one site of that kind


@dataclass(frozen=True)
class Site:
    """One place a module can attach.

    name: stable, used in checkpoints ("layer.3.query", "decoder.layer.0.cross_value"). role: its last part. path: the
    hooked module, below the base model. in_features, width: its input and output widths. columns: those of a fused
    linear map that are this projection's. tokens: whose tokens lie on the second axis.
    """

    name: str
    kind: Kind
    role: str
    layer: int | None
    path: str
    in_features: int
    width: int
    stack: str = ""
    tokens: Tokens = "input"
    columns: tuple[int, int] | None = None


def all_sites(base: PreTrainedModel, architecture: Architecture, depths: Mapping[str, int]) -> Iterator[Site]:
    """The sites of a base model: its input, the norms outside the layers, each layer's, the projections after them.

    depths: name of a stack -> how many layers it has.
    """
    width = cast(nn.Embedding, base.get_input_embeddings()).embedding_dim
    yield Site(EMBEDDINGS, "embeddings", EMBEDDINGS, None, architecture.inputs, width, width)
    stacks = architecture.stacks
    for name, path in architecture.outer_norms.items():
        stack = next((s for s in stacks if s.name and name.startswith(f"{s.name}.")), stacks[0])
        yield _site(base, stack, "norm", name, None, path)
    for stack in stacks:
        for i in range(depths[stack.name]):
            yield from _layer(base, stack, i)
    for role, path in architecture.outer_projections.items():
        if getattr(base, path.split(".")[0], None) is not None:  # the pooler may not have been built
            yield _site(base, stacks[0], "projection", role, None, path)


def _layer(base: PreTrainedModel, stack: Stack, i: int) -> Iterator[Site]:
    path, name = f"{stack.layers}.{i}", f"{stack.name}.layer.{i}.".removeprefix(".")
    for role, (place, n, of) in stack.fused.items():
        yield _site(base, stack, "projection", name + role, i, f"{path}.{place}", (n, of))
    for role, place in stack.projections.items():
        yield _site(base, stack, "projection", name + role, i, f"{path}.{place}")
        # the roles of a fused map have one input, which is no site
        yield _site(base, stack, "input", f"{name}{role}_input", i, f"{path}.{place}")
    others: dict[Kind, Mapping[str, str]]
    others = {"sublayer": stack.sublayers, "norm": stack.norms, "attention": stack.attentions}
    for kind, places in others.items():
        for role, place in places.items():
            yield _site(base, stack, kind, name + role, i, f"{path}.{place}")
    if not stack.post_norm:
        yield _site(base, stack, "block", f"{name}block", i, path)


def _site(
    base: PreTrainedModel, stack: Stack, kind: Kind, name: str, layer: int | None, path: str,
    third: tuple[int, int] = (0, 1),
) -> Site:  # fmt: skip
    """third: which part of a fused linear map it is, of how many."""
    role, (n, of) = name.rpartition(".")[2], third
    in_features = width = base.config.hidden_size
    if kind in ("projection", "input"):
        in_features, width = _widths(base.get_submodule(path))
        width = in_features if kind == "input" else width // of
    columns = (n * width, (n + 1) * width) if of > 1 else None
    # The keys and values of a cross-attention are computed from the encoder's tokens.
    crossing = role.removesuffix("_input") in ("cross_key", "cross_value")
    tokens: Tokens = "input" if crossing else stack.tokens
    return Site(name, kind, role, layer, path, in_features, width, stack.name, tokens, columns)


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear map, nn.Linear or GPT-2's Conv1D (which holds its weight transposed)."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
