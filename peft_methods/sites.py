"""The site table: where modules attach, per architecture. The only file that knows Hugging Face module names.

A site is a place in the forward pass of a frozen backbone. Its kind says what a module there sees and gives
(B rows of one run, T tokens, H width of the site):

    projection   forward(x, y): input x (B, T, in) and output y (B, T, out) of a linear map -> (B, T, out)
    input        forward(x): input of a linear map (B, T, in) -> what the map gets instead (B, T, in)
    sublayer     forward(x, h): sub-layer input x (B, T, H) and its output h after the dropout, before the residual sum
                 (B, T, H) -> (B, T, H)
    norm         forward(z, norm): the norm's input z (B, T, H) and the frozen norm itself -> (B, T, H)

A new architecture is one more entry in `ARCHITECTURES`; no method file changes.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

Kind = Literal["projection", "input", "sublayer", "norm"]


@dataclass(frozen=True)
class Architecture:
    """Module paths of one `model_type`; those of a layer are relative to it, the others to the base model.

    sublayer_inputs: for each sub-layer the projection whose input is the sub-layer's.
    """

    layers: str
    projections: dict[str, str]
    sublayers: dict[str, str]
    sublayer_inputs: dict[str, str]
    norms: dict[str, str]
    outer_projections: dict[str, str] = field(default_factory=dict)
    outer_norms: dict[str, str] = field(default_factory=dict)
    attention: str = ""


_BERT = Architecture(
    layers="encoder.layer",
    projections={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
    },
    # The hook sits on the dropout module: its output is the sub-layer output after dropout, before the residual sum.
    sublayers={"attention": "attention.output.dropout", "ffn": "output.dropout"},
    sublayer_inputs={"attention": "query", "ffn": "ffn_in"},
    norms={"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"},
    outer_projections={"pooler": "pooler.dense"},
    outer_norms={"embedding_norm": "embeddings.LayerNorm"},
    attention="attention.self",
)

# RoBERTa copies BERT's module names; its classification head replaces the pooler, which is then not built.
ARCHITECTURES: dict[str, Architecture] = {"bert": _BERT, "roberta": _BERT}


@dataclass(frozen=True)
class Site:
    """One place a module can attach.

    `name` is stable and used in checkpoints ("layer.3.query", "embedding_norm"); `role` is its last part; `path` is
    the hooked module inside the backbone; `in_features` and `width` are its input and output widths.
    """

    name: str
    kind: Kind
    role: str
    layer: int | None
    path: str
    in_features: int
    width: int


class Sites:
    """The sites of one backbone.

    Raises ValueError where the architecture is unknown or a role does not exist on it.
    """

    def __init__(self, backbone: PreTrainedModel):
        model_type = backbone.config.model_type
        if model_type not in ARCHITECTURES:
            raise ValueError(
                f"no sites for model_type={model_type!r} (known: {', '.join(sorted(ARCHITECTURES))}); "
                f"add an entry to ARCHITECTURES in peft_methods/sites.py"
            )
        self.model_type = model_type
        self.architecture = ARCHITECTURES[model_type]
        self.backbone = backbone
        self.num_layers = len(_children(backbone, self.architecture.layers))
        self.all = list(self._build())
        self.by_name = {site.name: site for site in self.all}

    def projections(self, roles: Collection[str], layers: Collection[int] | None = None) -> list[Site]:
        """Projections with one of `roles`, in order of depth; an unknown role is an error."""
        self._check_projections(roles)
        return self._select("projection", roles, layers)

    def projection_inputs(self, roles: Collection[str], layers: Collection[int] | None = None) -> list[Site]:
        """The inputs of projections with one of `roles`: sites named `layer.3.ffn_out_input`."""
        self._check_projections(roles)
        return self._select("input", [f"{role}_input" for role in roles], layers)

    def _check_projections(self, roles: Collection[str]) -> None:
        known = {*self.architecture.projections, *self.architecture.outer_projections}
        unknown = sorted(set(roles) - known)
        if unknown or not roles:
            raise ValueError(
                f"targets={list(roles)} match no projection of {self.model_type}: unknown {unknown or 'empty list'} "
                f"(known: {', '.join(sorted(known))}); change method.targets"
            )

    def sublayers(self, roles: Collection[str], layers: Collection[int] | None = None) -> list[Site]:
        """Sub-layer outputs ("attention", "ffn") of the given layers, all layers by default."""
        unknown = sorted(set(roles) - set(self.architecture.sublayers))
        if unknown:
            raise ValueError(
                f"no sub-layer {unknown} on {self.model_type} (known: {', '.join(self.architecture.sublayers)})"
            )
        return self._select("sublayer", roles, layers)

    def norms(self, roles: Collection[str] | None = None, layers: Collection[int] | None = None) -> list[Site]:
        """LayerNorms: those of the given roles, or every one including the embeddings' when `roles` is None."""
        return self._select("norm", roles, layers)

    def biased_projections(self) -> list[Site]:
        """Every linear map that has a bias, the pooler's included where the backbone has one."""
        return [s for s in self.all if s.kind == "projection" and self.module(s).bias is not None]

    def module(self, site: Site) -> nn.Module:
        """The frozen module hooked at `site`."""
        return self.backbone.get_submodule(site.path)

    def input_of(self, sublayer: Site) -> nn.Module:
        """The frozen projection whose input is the input of a sub-layer site."""
        projection = self.architecture.sublayer_inputs[sublayer.role]
        return self.module(self.by_name[f"layer.{sublayer.layer}.{projection}"])

    def layer_path(self, layer: int) -> str:
        """The path of one Transformer layer; negative numbers count from the top."""
        return f"{self.architecture.layers}.{range(self.num_layers)[layer]}"

    def layer_parameters(self) -> int:
        """Parameters of the Transformer layers alone: no embeddings, no pooler (the denominator of Houlsby et al.)."""
        return sum(p.numel() for p in self.backbone.get_submodule(self.architecture.layers).parameters())

    def _select(self, kind: Kind, roles: Collection[str] | None, layers: Collection[int] | None) -> list[Site]:
        if layers is not None and (outside := [i for i in layers if not 0 <= i < self.num_layers]):
            raise ValueError(f"layers {outside} do not exist: the backbone has layers 0 to {self.num_layers - 1}")
        return [
            site
            for site in self.all
            if site.kind == kind
            and (roles is None or site.role in roles)
            and (layers is None or site.layer is None or site.layer in layers)
        ]

    def _build(self) -> Iterator[Site]:
        arch = self.architecture
        for role, path in arch.outer_norms.items():
            yield self._site("norm", role, None, path)
        for i in range(self.num_layers):
            prefix = f"{arch.layers}.{i}."
            for role, path in arch.projections.items():
                yield self._site("projection", role, i, prefix + path)
                yield self._site("input", f"{role}_input", i, prefix + path)
            for role, path in arch.sublayers.items():
                yield self._site("sublayer", role, i, prefix + path)
            for role, path in arch.norms.items():
                yield self._site("norm", role, i, prefix + path)
        for role, path in arch.outer_projections.items():
            if getattr(self.backbone, path.split(".")[0], None) is not None:  # the pooler may not have been built
                yield self._site("projection", role, None, path)

    def _site(self, kind: Kind, role: str, layer: int | None, path: str) -> Site:
        module = self.backbone.get_submodule(path)
        if isinstance(module, nn.Linear):
            in_features, width = module.in_features, module.in_features if kind == "input" else module.out_features
        elif isinstance(module, nn.LayerNorm):
            in_features = width = module.normalized_shape[-1]
        else:
            in_features = width = self.backbone.config.hidden_size
        name = role if layer is None else f"layer.{layer}.{role}"
        return Site(name, kind, role, layer, path, in_features, width)


def _children(backbone: nn.Module, path: str) -> nn.ModuleList:
    layers = backbone.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers
