"""The hooks that put K runs into the forward pass of a backbone.

Each gives back the type that it was handed, so that no run changes what its neighbors or the backbone compute in.

Order, where several lie on one module: the dropout of a projection's input, then what changes that input; what changes
the projection's output, then that output's dropout, then the sub-layer it ends.
"""

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.attached import TAKEN, Attached
from peft_methods.attention import ATTENTION, PLACES, AttentionPlace
from peft_methods.protocols import map_taken
from peft_methods.sites import EMBEDDINGS, Site


def install(attached: Attached) -> None:
    """Put every hook of the pack in place, each with the step that removes it."""
    sites, arch = attached.sites, attached.sites.architecture
    names = {name for k in range(len(attached.runs)) for name in attached.run(k).by_site}
    used = [site for site in sites.all if site.name in names]

    def before(path: str, hook: Callable[..., Any], with_kwargs: bool = False) -> None:
        module = sites.base.get_submodule(path)
        attached.undo.callback(module.register_forward_pre_hook(hook, with_kwargs=with_kwargs).remove)

    def after(path: str, hook: Callable[..., Any]) -> None:
        attached.undo.callback(sites.base.get_submodule(path).register_forward_hook(hook).remove)

    for name, module in sites.base.named_modules():
        if isinstance(module, nn.Dropout):
            after(name, _dropout(attached, name, module.p))
    functional = _functional_dropouts(attached)
    for path, side, field in functional:
        if side == "input":
            before(path, _input_dropout(_dropout(attached, f"{path}.{field}", _probability(attached, field))))
    sublayer_inputs: dict[str, Tensor] = {}
    for site in used:
        if site.kind == "sublayer":  # before the hooks that change a projection's input
            before(sites.input_of(site).path, _keep_input(site, sublayer_inputs))
    for site in used:
        if site.kind == "input":
            before(site.path, _input(attached, site))
        elif site.kind in ("projection", "norm", "block"):
            after(site.path, _output(attached, site, sublayer_inputs))
    for path, side, field in functional:
        if side == "output":
            after(path, _dropout(attached, f"{path}.{field}", _probability(attached, field)))
    for site in used:
        if site.kind == "sublayer":
            after(site.path, _output(attached, site, sublayer_inputs))
    if EMBEDDINGS in names or arch.counts_prefix:
        before(arch.inputs, _model_input(attached), with_kwargs=True)
    if EMBEDDINGS in names and arch.pooler and getattr(sites.base, arch.pooler, None) is not None:
        before(arch.pooler, _first_token(attached))
    if arch.position_module:
        after(arch.position_module, _positions(attached))
    _switch_off(attached, {field for _, _, field in functional})
    if any(site.kind == "attention" for site in sites.all):
        _attention_places(attached)
        attached.undo.callback(attached.backbone.set_attn_implementation, attached.backbone.config._attn_implementation)
        attached.backbone.set_attn_implementation(ATTENTION)
    TAKEN[sites.base] = ref(attached)  # the hooks hold it
    attached.undo.callback(TAKEN.pop, sites.base)


def is_ours(hook: Callable[..., Any]) -> bool:
    """Whether `install` has put this hook somewhere."""
    return getattr(hook, "__module__", None) == __name__


def _dropout(attached: Attached, name: str, p: float) -> Callable[..., Any]:
    """Draws every run's own masks for the output of the dropout `name` (or of what stands for it)."""
    stacks = attached.sites.architecture.stacks
    tokens = next((s.tokens for s in stacks if s.name and name.startswith(f"{s.name}.")), "input")
    in_a_layer = any(name.startswith(f"{stack.layers}.") for stack in stacks)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not attached.training or p == 0.0:
            return None
        site = name
        if not in_a_layer:  # T5 calls one dropout for its embeddings and again at its end (layers may be recomputed)
            calls = attached.dropout_calls[name] = attached.dropout_calls.get(name, 0) + 1
            site = name if calls == 1 else f"{name}/{calls}"
        x, rest = _first(output)
        axes = {3: {1: tokens}, 4: {2: tokens, 3: tokens}}.get(x.dim())

        def drop(k: int, y: Tensor) -> Tensor:
            stream = attached.streams[k]
            return stream.dropout(y, stream.of_backbone(p), site, axes)

        return _join(attached.each_run([x], drop), rest)

    return hook


def _input_dropout(dropout: Callable[..., Any]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        dropped = dropout(module, (), args[0])
        return None if dropped is None else (dropped, *args[1:])

    return hook


def _functional_dropouts(attached: Attached) -> list[tuple[str, str, str]]:
    """(path, "input" or "output", configuration field) of every dropout that is no module."""
    sites, arch = attached.sites, attached.sites.architecture
    inside = [
        (f"{stack.layers}.{i}.{path}", side, field)
        for stack in arch.stacks
        for i in range(sites.depths[stack.name])
        for path, side, field in stack.functional_dropouts
    ]
    return [*((path, "output", field) for path, field in arch.outer_functional_dropouts), *inside]


def _probability(attached: Attached, field: str) -> float:
    return float(getattr(attached.backbone.config, field))


def _switch_off(attached: Attached, fields: set[str]) -> None:
    """Switch off the functional dropouts whose equals are hooked now."""
    attentions = {id(attached.sites.module(site)) for site in attached.sites.all if site.kind == "attention"}
    for module in attached.sites.base.modules():
        for field in fields:
            value = getattr(module, field, None)
            if isinstance(value, float) and id(module) not in attentions:  # those the attention function draws
                attached.undo.callback(setattr, module, field, value)
                setattr(module, field, 0.0)


def _output(attached: Attached, site: Site, sublayer_inputs: dict[str, Tensor]) -> Callable[..., Any]:
    """Sends each run's rows of a module's output through the run's own module at `site`."""
    owners = attached.owners(site.name)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if site.name in attached.merged.at:
            return None
        whole, rest = _first(output)
        start, stop = site.columns or (0, whole.shape[-1])
        y = whole[..., start:stop]

        def through(k: int, x: Tensor, y: Tensor) -> Tensor:
            owner = owners[k]
            if owner is None:
                return y
            wide_x, wide_y = attached.widened(x), attached.widened(y)
            if site.kind == "norm":
                changed = owner(wide_x, module)
            elif site.kind == "block":
                changed = owner(wide_y)
            else:
                maps = (frozen.map(attached.widened) for frozen in map_taken(owner, attached.sites, site))
                changed = owner(wide_x, wide_y, *maps)
            return changed.to(y.dtype)

        x = sublayer_inputs.pop(site.name) if site.kind == "sublayer" else y if site.kind == "block" else args[0]
        y = attached.each_run([x, y], through)
        if site.columns:
            y = torch.cat([whole[..., :start], y, whole[..., stop:]], dim=-1)
        return _join(y, rest)

    return hook


def _input(attached: Attached, site: Site) -> Callable[..., Any]:
    owners = attached.owners(site.name)

    def through(k: int, x: Tensor) -> Tensor:
        return x if owners[k] is None else owners[k](attached.widened(x)).to(x.dtype)

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return attached.each_run([args[0]], through), *args[1:]

    return hook


def _keep_input(site: Site, sublayer_inputs: dict[str, Tensor]) -> Callable[..., None]:
    """Keeps the input from the start of a sub-layer to its end, also when the layer is recomputed."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        sublayer_inputs[site.name] = args[0]

    return hook


def _model_input(attached: Attached) -> Callable[..., Any]:
    """Embeds the ids, puts the runs' own rows into their places, and counts prefixes in the positions."""
    owners = attached.owners(EMBEDDINGS)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids, stacked = args[0] if args else kwargs.get("input_ids"), attached.stacked
        attached.check_called()
        if kwargs.get("position_ids") is not None:
            kwargs = {**kwargs, "position_ids": _after_prefixes(attached, kwargs["position_ids"])}
        width = stacked.inputs["input_ids"].shape[1]
        if ids is None or all(owner is None for owner in owners) or ids.shape[1] < width:
            return args, kwargs  # cached generation sees the inputs' own places once, in its first call

        def through(k: int, ids: Tensor) -> Tensor:
            embedded, where = attached.sites.base.get_input_embeddings()(ids), stacked.inserted[k]
            if where is None:
                return embedded
            where = F.pad(where.repeat_interleave(len(ids) // len(where), dim=0), (0, ids.shape[1] - width))
            return owners[k](embedded, where)

        embedded = attached.each_run([ids], through)
        return (), {**kwargs, "input_ids": None, "inputs_embeds": embedded}

    return hook


def _after_prefixes(attached: Attached, positions: Tensor) -> Tensor:
    """(B, T) positions after each run's prefix."""
    return attached.each_run([positions], lambda k, own: own + attached.prefix(k))


def _first_token(attached: Attached) -> Callable[..., Any]:
    """The pooler reads the first token; behind a prompt that is not the first row."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        def first(k: int, hidden: Tensor) -> Tensor:
            kept = attached.stacked.kept[k]
            if kept is None:
                return hidden[:, :1]
            return hidden.gather(1, kept[:, :1, None].expand(-1, -1, hidden.shape[2]))

        return attached.each_run([args[0]], first), *args[1:]

    return hook


def _positions(attached: Attached) -> Callable[..., Any]:
    """BART takes no positions: its embeddings of them are looked up again, at those that follow from the mask."""

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        attached.check_called()
        return F.embedding(attached.stacked.inputs["position_ids"] + module.offset, module.weight)

    return hook


def _attention_places(attached: Attached) -> None:
    sites = attached.sites
    attached.undo.callback(attached.places.clear)
    for site in sites.all:
        if site.kind != "attention":
            continue
        module: Any = sites.module(site)
        relative, keys = None, site.tokens
        if site.role == "cross_kv":
            keys = "input"
        elif hasattr(module, "has_relative_attention_bias"):  # T5's first layer computes it for all
            relative = sites.module(sites.by_name[site.name.replace(f"layer.{site.layer}.", "layer.0.")])
        owners, tokens = attached.owners(site.name), (site.tokens, keys)
        paddings = attached.paddings if site.tokens == "input" else attached.no_paddings
        place = AttentionPlace(site.path, owners, attached.streams, attached.each_run, tokens, relative, paddings)
        attached.places.append(place)
        PLACES[module] = ref(place)
        attached.undo.callback(PLACES.pop, module, None)


def _first(output: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """The hidden states of a module's output, and what else it gives."""
    return (output[0], tuple(output[1:])) if isinstance(output, tuple) else (output, ())


def _join(hidden: Tensor, rest: tuple[Any, ...]) -> Any:
    return (hidden, *rest) if rest else hidden
