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

Where an architecture has them: architectures.py; how a backbone's are listed: site_list.py.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from peft_methods.architectures import ARCHITECTURES
from peft_methods.module_paths import Stack
from peft_methods.site_list import EMBEDDINGS, Kind, Site, all_sites


class FrozenMap(NamedTuple):
    """The frozen linear map of a projection: its weight (out, in), and its bias (out,) if it has one."""

    weight: Tensor
    bias: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "FrozenMap":
        """The same map with its tensors changed."""
        return FrozenMap(function(self.weight), None if self.bias is None else function(self.bias))


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
        self.all = list(all_sites(self.base, self.architecture, self.depths))
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
        module: Any = self.module(site)
        rows = (module.weight.T if isinstance(module, Conv1D) else module.weight).detach()
        return rows[slice(*site.columns)] if site.columns else rows

    def bias(self, site: Site) -> Tensor | None:
        """(out,) of a projection or a norm, a view like `weight`; None where it has none (T5, RMSNorm)."""
        bias: Tensor | None = getattr(self.module(site), "bias", None)
        if bias is None:
            return None
        return bias.detach()[slice(*site.columns)] if site.columns else bias.detach()

    def input_of(self, sublayer: Site) -> Site:
        """The projection whose input is the input of a sub-layer site."""
        stack = next(stack for stack in self.architecture.stacks if stack.name == sublayer.stack)
        role = stack.sublayer_inputs[sublayer.role]
        return self.by_name[sublayer.name.removesuffix(sublayer.role) + role]

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

    def top_paths(self, layers: int) -> list[str]:
        """Paths in the backbone of its last layers and of the norm after them, where it has one. Single stacks only."""
        if len(self.architecture.stacks) > 1:
            raise ValueError(f"{self.model_type} has an encoder and a decoder: its last layers are not one thing")
        within = "" if self.base is self.backbone else f"{self.backbone.base_model_prefix}."
        paths = [f"{self.architecture.stacks[0].layers}.{self.num_layers - i}" for i in range(1, layers + 1)]
        final = self.architecture.outer_norms.get("final_norm")
        return [within + path for path in [*paths, *([final] if final else [])]]

    def layer_parameters(self) -> int:
        """Parameters of the Transformer layers alone: no embeddings, no pooler (the denominator of Houlsby et al.)."""
        return sum(p.numel() for stack in self.architecture.stacks for p in self._layers(stack).parameters())

    def _select(self, kind: Kind, roles: Collection[str] | None) -> list[Site]:
        return [site for site in self.all if site.kind == kind and (roles is None or site.role in roles)]

    def _layers(self, stack: Stack) -> nn.ModuleList:
        layers = self.base.get_submodule(stack.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers
