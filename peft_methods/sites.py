"""Sites: the places in the forward pass of a frozen backbone where modules attach.

The kind of a site says what a module there sees and gives (B rows of one run, T tokens, H width of the site):

    projection   forward(x, y): input x (B, T, in) and output y (B, T, out) of a linear map -> (B, T, out)
                 with `module.takes_map`: forward(x, y, frozen), the frozen map's weight (out, in) and bias (out,) too
    input        forward(x): input of a linear map (B, T, in) -> what the map gets instead (B, T, in)
    sublayer     forward(x, h): sub-layer input x (B, T, H) and its output h after the dropout, before the residual sum
                 (B, T, H) -> (B, T, H)
    block        forward(h): output of a layer, after the residual sum (B, T, H) -> (B, T, H)
    norm         forward(z, norm): the norm's input z (B, T, H) and the frozen norm itself -> (B, T, H)
    attention    forward(k, v): keys and values (B, heads, T, H / heads) -> others, or longer ones (B, heads, P + T, ..)
                 `module.length`: how many positions of the text they take, P of a prefix
    embeddings   forward(e, where): the model's input, lengthened by `module.length` places, as embeddings e (B, T, H),
                 and where those places are (B, T) -> (B, T, H); `module.place` is "front" or "boundary"

Where an architecture has them: peft_methods/architectures.py.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from peft_methods.architectures import ARCHITECTURES, Stack, Tokens

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


class FrozenMap(NamedTuple):
    """The frozen linear map of a projection: views of the backbone's weight (out, in) and bias (out,), if it has one.

    Made anew for each use, so that it is right after the backbone has moved. No gradient flows into it.
    """

    weight: Tensor
    bias: Tensor | None


class Sites:
    """The sites of one backbone.

    tokenizer: for methods that start from words.
    Raises ValueError where the architecture is unknown or a role does not exist on it.
    """

    def __init__(self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None):
        model_type = backbone.config.model_type
        if model_type not in ARCHITECTURES:
            raise ValueError(
                f"no sites for model_type={model_type!r} (known: {', '.join(sorted(ARCHITECTURES))}); "
                f"add an entry to ARCHITECTURES in peft_methods/architectures.py"
            )
        self.model_type = model_type
        self.architecture = ARCHITECTURES[model_type](backbone.config)
        self.backbone = backbone
        self.base = cast(PreTrainedModel, backbone.base_model)
        self.depths = {stack.name: len(self._layers(stack)) for stack in self.architecture.stacks}
        self.num_layers = min(self.depths.values())
        self.all = list(self._build())
        self.by_name = {site.name: site for site in self.all}
        self._tokenizer = tokenizer

    def projections(self, roles: Collection[str]) -> list[Site]:
        """Projections with one of `roles`, in order of depth; an unknown role is an error."""
        self._check_projections(roles)
        return self._select("projection", roles)

    def projection_inputs(self, roles: Collection[str]) -> list[Site]:
        """The inputs of projections with one of `roles`: sites named `layer.3.ffn_out_input`."""
        self._check_projections(roles)
        return self._select("input", [f"{role}_input" for role in roles])

    def _check_projections(self, roles: Collection[str]) -> None:
        if isinstance(roles, str):
            raise ValueError(f"targets={roles!r}: expected a list of them, [{roles}]; change method.targets")
        known = {site.role for site in self.all if site.kind == "projection"}
        unknown = sorted(set(roles) - known)
        if unknown or not roles:
            raise ValueError(
                f"targets={list(roles)} match no projection of {self.model_type}: unknown {unknown or 'empty list'} "
                f"(known: {', '.join(sorted(known))}); change method.targets"
            )

    def has(self, role: str) -> bool:
        """Whether any site has this role."""
        return any(site.role == role for site in self.all)

    def sublayers(self, roles: Collection[str]) -> list[Site]:
        """Sub-layer outputs: "attention", "ffn", and "cross_attention" where there is one."""
        known = dict.fromkeys(site.role for site in self.all if site.kind == "sublayer")
        if unknown := sorted(set(roles) - set(known)):
            raise ValueError(f"no sub-layer {unknown} on {self.model_type} (known: {', '.join(known)})")
        return self._select("sublayer", roles)

    def norms(self) -> list[Site]:
        """Every LayerNorm, those outside the layers included."""
        return self._select("norm", None)

    def norms_after_ffn(self, skip_layers: int = 0) -> list[Site]:
        """The LayerNorm after the feed-forward sub-layer's residual sum, without the first layers of each stack."""
        if not all(stack.post_norm for stack in self.architecture.stacks):
            raise ValueError(
                f"{self.model_type} has no LayerNorm after its feed-forward sub-layers (it normalizes their input): "
                "use houlsby, parallel or adapter_l there"
            )
        if not 0 <= skip_layers < self.num_layers:
            raise ValueError(
                f"skip_layers={skip_layers}: expected 0 to {self.num_layers - 1}, the backbone has "
                f"{self.num_layers} layers; change method.skip_layers"
            )
        return [site for site in self._select("norm", ["ffn_norm"]) if cast(int, site.layer) >= skip_layers]

    def blocks(self) -> list[Site]:
        """The output of each layer where norms come first, so that it is the plain residual sum."""
        if any(stack.post_norm for stack in self.architecture.stacks):
            raise ValueError(
                f"the layers of {self.model_type} end in a LayerNorm, not in the residual sum that adapter_l sees: "
                "use houlsby, pfeiffer or parallel there"
            )
        return self._select("block", None)

    def attentions(self) -> list[Site]:
        """Keys and values of every attention: self-attentions, and cross-attentions where there are some."""
        if not (sites := self._select("attention", None)):
            raise ValueError(
                f"{self.model_type} computes its attention without an attention function, so that nothing can be put "
                "before its keys and values: prefixes are not defined there"
            )
        return sites

    def embeddings(self) -> Site:
        """The model's input (of an encoder-decoder: the encoder's)."""
        return self.by_name[EMBEDDINGS]

    def embedding_rows(self) -> Tensor:
        """(vocabulary, H): frozen; what the model's input is made of, scaled where the model scales it."""
        embedding = cast(nn.Embedding, self.base.get_input_embeddings())
        with torch.no_grad():
            return embedding(torch.arange(embedding.num_embeddings, device=embedding.weight.device))

    def biased_projections(self) -> list[Site]:
        """Every linear map that has a bias, the pooler's included where the backbone has one.

        Raises ValueError where the backbone has no biases, or has some that no site covers.
        """
        sites = [s for s in self.all if s.kind == "projection" and self.bias(s) is not None]
        covered = {f"{s.path}.bias" for s in [*sites, *self.norms()]}
        every = {name for name, _ in self.base.named_parameters() if name.endswith(".bias")}
        if not sites:
            raise ValueError(f"{self.model_type} has no biases: bitfit is not defined there")
        if left := sorted(every - covered - {"lm_head.bias"}):
            raise ValueError(f"no site covers the bias {left[0]!r} of this {self.model_type}: bitfit cannot train it")
        return sites

    def module(self, site: Site) -> nn.Module:
        """The frozen module hooked at `site`."""
        return self.base.get_submodule(site.path)

    def weight(self, site: Site) -> Tensor:
        """(out, in) of a projection: a view of the backbone's weight, whichever way round and fused with whatever other
        projections it lies there. No gradient flows into it. Once the backbone has moved, ask for another."""
        weight: Tensor = self._linear(site).weight.detach()
        rows = weight.T if isinstance(self.module(site), Conv1D) else weight
        return rows[slice(*site.columns)] if site.columns else rows

    def bias(self, site: Site) -> Tensor | None:
        """(out,) of a projection or a norm, a view like `weight`; None where it has none (T5, RMSNorm)."""
        bias: Tensor | None = getattr(self.module(site), "bias", None)
        if bias is None:
            return None
        return bias.detach()[slice(*site.columns)] if site.columns else bias.detach()

    def frozen_map(self, site: Site) -> FrozenMap:
        """Weight and bias of a projection."""
        return FrozenMap(self.weight(site), self.bias(site))

    def input_of(self, sublayer: Site) -> Site:
        """The projection whose input is the input of a sub-layer site."""
        stack = next(stack for stack in self.architecture.stacks if stack.name == sublayer.stack)
        role = stack.sublayer_inputs[sublayer.role]
        return self.by_name[f"{_prefix(stack)}layer.{sublayer.layer}.{role}"]

    def check_room(self, length: int) -> None:
        """Raises ValueError where `length` rows of a prompt or prefix leave no position for text."""
        limit = self.architecture.position_limit
        if limit is not None and length >= (most := limit(self.backbone.config)):
            raise ValueError(
                f"length={length} leaves no position for text: {self.model_type} has {most}; change method.length"
            )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens; a text with a piece that the vocabulary lacks is an error. (One
        with a piece for every letter or byte lacks few.)"""
        if self._tokenizer is None:
            raise ValueError(f"a start from the words {text!r} needs the tokenizer: give attach(..., tokenizer=...)")
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids or self._tokenizer.unk_token_id in ids:
            raise ValueError(
                f"{text!r} is not in the vocabulary of {self.model_type}: expected words the tokenizer knows; change "
                "method.labels or method.words, or the task's labels and prompt_words where they come from it"
            )
        return ids

    def layer_path(self, layer: int) -> str:
        """Path in the backbone of one layer; negative numbers count from the top. Single stacks only."""
        if len(self.architecture.stacks) > 1:
            raise ValueError(f"{self.model_type} has an encoder and a decoder: its last layers are not one thing")
        path = f"{self.architecture.stacks[0].layers}.{range(self.num_layers)[layer]}"
        return path if self.base is self.backbone else f"{self.backbone.base_model_prefix}.{path}"

    def layer_parameters(self) -> int:
        """Parameters of the Transformer layers alone: no embeddings, no pooler (the denominator of Houlsby et al.)."""
        return sum(p.numel() for stack in self.architecture.stacks for p in self._layers(stack).parameters())

    def _select(self, kind: Kind, roles: Collection[str] | None) -> list[Site]:
        return [site for site in self.all if site.kind == kind and (roles is None or site.role in roles)]

    def _linear(self, site: Site) -> Any:
        """The linear map of a projection site, nn.Linear or GPT-2's Conv1D."""
        if site.kind != "projection":
            raise ValueError(f"{site.name} is a site of kind {site.kind}: only projections have a weight and a bias")
        return self.module(site)

    def _layers(self, stack: Stack) -> nn.ModuleList:
        layers = self.base.get_submodule(stack.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _build(self) -> Iterator[Site]:
        arch = self.architecture
        width = cast(nn.Embedding, self.base.get_input_embeddings()).embedding_dim
        yield Site(EMBEDDINGS, "embeddings", EMBEDDINGS, None, arch.inputs, width, width)
        for name, path in arch.outer_norms.items():
            stack = next((s for s in arch.stacks if s.name and name.startswith(f"{s.name}.")), arch.stacks[0])
            yield self._site("norm", name.rpartition(".")[2], None, path, stack, name)
        for stack in arch.stacks:
            for i in range(self.depths[stack.name]):
                yield from self._layer(stack, i)
        for role, path in arch.outer_projections.items():
            if getattr(self.base, path.split(".")[0], None) is not None:  # the pooler may not have been built
                yield self._site("projection", role, None, path, arch.stacks[0], role)

    def _layer(self, stack: Stack, i: int) -> Iterator[Site]:
        path, name = f"{stack.layers}.{i}", f"{_prefix(stack)}layer.{i}."
        thirds = {role: (place, (n, of)) for role, (place, n, of) in stack.fused.items()}
        for role, (place, third) in {**thirds, **{r: (p, None) for r, p in stack.projections.items()}}.items():
            yield self._site("projection", role, i, f"{path}.{place}", stack, name + role, third)
            if third is None:  # the roles of a fused map have one input
                yield self._site("input", f"{role}_input", i, f"{path}.{place}", stack, f"{name}{role}_input")
        for role, place in stack.sublayers.items():
            yield self._site("sublayer", role, i, f"{path}.{place}", stack, name + role)
        for role, place in stack.norms.items():
            yield self._site("norm", role, i, f"{path}.{place}", stack, name + role)
        for role, place in stack.attentions.items():
            yield self._site("attention", role, i, f"{path}.{place}", stack, name + role)
        if not stack.post_norm:
            yield self._site("block", "block", i, path, stack, f"{name}block")

    def _site(
        self, kind: Kind, role: str, layer: int | None, path: str, stack: Stack, name: str,
        third: tuple[int, int] | None = None,
    ) -> Site:  # fmt: skip
        module = self.base.get_submodule(path)
        in_features = width = self.base.config.hidden_size
        if kind in ("projection", "input"):
            in_features, width = _widths(module)
            width = in_features if kind == "input" else width
        columns = None
        if third is not None:
            n, of = third
            width //= of
            columns = (n * width, (n + 1) * width)
        # The keys and values of a cross-attention are computed from the encoder's tokens.
        crossing = role.removesuffix("_input") in ("cross_key", "cross_value")
        tokens: Tokens = "input" if crossing else stack.tokens
        return Site(name, kind, role, layer, path, in_features, width, stack.name, tokens, columns)


def _prefix(stack: Stack) -> str:
    return f"{stack.name}." if stack.name else ""


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear map, nn.Linear or GPT-2's Conv1D (which holds its weight transposed)."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
