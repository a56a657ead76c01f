"""Attach K runs' modules to one frozen backbone and send each run's slice of the batch through its own.

A pack stacks the batches of its runs along the first axis, pushes them through the backbone together, and at each
site routes every run's rows through that run's module. K = 1 is the ordinary case. Nothing here knows a method or an
architecture: methods name sites, sites.py names modules.

    backbone            frozen, shared; its dropout is replaced by the runs' own counter-based streams
    forward hooks       on dropouts (a run's masks) and on sites (a run's module)
    attention function  the stock SDPA, or, where attention dropout is on, its equation with the run's masks
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peft_methods.dropout import Dropout, DropoutStream
from peft_methods.sites import Site, Sites

ATTENTION = "peft_methods"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Batch = Mapping[str, Tensor]


class Method(Protocol):
    """What a method file provides: the modules it wants, by site.

    It may also define `trained_in_place(sites) -> list[str]`, the backbone parameters that train (baselines.py).
    """

    def modules(self, sites: Sites) -> dict[Site, nn.Module]: ...


class RunModules(nn.Module):
    """What one run trains: its modules by site, its head, and (full fine-tuning) backbone parameters in place."""

    def __init__(
        self, method: Method, modules: dict[Site, nn.Module], head: nn.Module | None, in_place: dict[str, Any]
    ):
        super().__init__()
        self.method = method
        # ModuleDict forbids dots in keys; `trained` gives the dotted names back.
        self.sites = nn.ModuleDict({site.name.replace(".", "/"): module for site, module in modules.items()})
        self.head = head
        self.in_place: dict[str, nn.Parameter] = in_place

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter: `sites.<site>.<name>`, `head.<name>`, `backbone.<name>`."""
        named = {name.replace("/", "."): p for name, p in self.named_parameters()}
        return named | {f"backbone.{name}": p for name, p in self.in_place.items()}


class Attached(nn.Module):
    """A backbone with K runs on it. Call it with one batch per run; it returns one tensor of logits per run.

    Made by `attach`; `detach` removes every hook and restores the backbone.
    """

    def __init__(self, backbone: PreTrainedModel, runs: Sequence[RunModules], streams: Sequence[DropoutStream]):
        super().__init__()
        self.backbone = backbone
        self.runs = nn.ModuleList(runs)
        self.streams = list(streams)
        self._slices: list[slice] = [slice(0, 0)] * len(runs)
        self._handles: list[Any] = []
        self._originals: dict[str, Tensor] = {}
        self._merged: dict[str, Tensor] = {}
        self._sublayer_inputs: dict[str, Tensor] = {}
        self._attention_before = backbone.config._attn_implementation
        self._was_training = backbone.training
        self._required_grad = [parameter.requires_grad for parameter in backbone.parameters()]

    def run(self, k: int) -> RunModules:
        """What run k trains."""
        return cast(RunModules, self.runs[k])

    def forward(self, batches: Sequence[Batch | None]) -> list[Tensor | None]:
        """One batch per run, each padded on the right to its own width: `input_ids` (B_k, T_k), `attention_mask`,
        and `token_type_ids` where the backbone has them. None skips a run that has ended.

        Returns per run the head's logits (B_k, num_labels), or the backbone's last hidden states without a head.
        With gradient checkpointing, run backward before the next call and before a stream's step moves on: the layers
        are recomputed from the slices and masks of the latest call.
        """
        if len(batches) != len(self.runs):
            raise ValueError(f"{len(batches)} batches for {len(self.runs)} runs: give one per run, None to skip one")
        outputs = self.backbone(**self._stack(batches))
        pooled = getattr(outputs, "pooler_output", None)
        results: list[Tensor | None] = []
        for k, batch in enumerate(batches):
            if batch is None:
                results.append(None)
                continue
            rows, length, head = self._slices[k], self.streams[k].length, self.run(k).head
            hidden = outputs.last_hidden_state[rows, :length]
            results.append(hidden if head is None else head(hidden, None if pooled is None else pooled[rows]))
        return results

    def train(self, mode: bool = True) -> "Attached":
        """Training mode; the backbone's own dropout modules stay off, the runs' streams take their place."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        return self

    def detach(self) -> PreTrainedModel:
        """Remove every hook, restore what trained in place, and give the backbone back as it was."""
        if self._merged:
            self.unmerge()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self.backbone.modules():
            _ATTACHED.pop(module, None)
        with torch.no_grad():
            parameters = dict(self.backbone.named_parameters())
            for name, original in self._originals.items():
                parameters[name].copy_(original)
        for run in self.runs:
            cast(RunModules, run).in_place = {}
        for parameter, required in zip(self.backbone.parameters(), self._required_grad, strict=True):
            parameter.requires_grad_(required)
        self.backbone.zero_grad(set_to_none=True)
        self.backbone.set_attn_implementation(self._attention_before)
        self.backbone.train(self._was_training)
        return self.backbone

    def merge(self) -> None:
        """Add each low-rank update to its frozen weight: same logits, no added latency. One run only; `unmerge` undoes
        it bit for bit (the original weights are kept, since W + D - D is not W in floating point)."""
        if len(self.runs) != 1:
            raise ValueError(f"merge needs exactly one run on the backbone, this pack has {len(self.runs)}")
        mergeable = {name: m for name, m in self.run(0).sites.items() if hasattr(m, "delta_weight")}
        if not mergeable or self._merged:
            raise ValueError(
                "nothing to merge: the weights are merged already"
                if self._merged
                else f"{type(self.run(0).method).__name__} has no module that merges; only low-rank updates do"
            )
        table = Sites(self.backbone)
        with torch.no_grad():
            for key, module in mergeable.items():
                site = table.by_name[key.replace("/", ".")]
                weight = cast(Tensor, table.module(site).weight)
                self._merged[site.name] = weight.clone()
                weight += cast(Any, module).delta_weight()

    def unmerge(self) -> None:
        """Restore the frozen weights as they were before `merge`."""
        table = Sites(self.backbone)
        with torch.no_grad():
            for name, original in self._merged.items():
                cast(Tensor, table.module(table.by_name[name]).weight).copy_(original)
        self._merged.clear()

    def _stack(self, batches: Sequence[Batch | None]) -> dict[str, Tensor]:
        """Stack the runs' batches, padded to the widest; remembers whose rows are where."""
        present = [b for b in batches if b is not None]
        if not present:
            raise ValueError("every batch is None: nothing to run")
        keys = [key for key in present[0] if key in INPUTS]
        for k, batch in enumerate(batches):
            # Without a mask a run would attend to the padding that its neighbors need.
            if batch is not None and ("attention_mask" not in batch or {*keys} != {*INPUTS} & {*batch}):
                raise ValueError(
                    f"the batch of run {k} has {sorted(batch)}: expected input_ids and attention_mask, and "
                    f"token_type_ids in every run's batch or in none"
                )
        width = max(b["input_ids"].shape[1] for b in present)
        start = 0
        for k, batch in enumerate(batches):
            rows, length = (0, 0) if batch is None else batch["input_ids"].shape
            self._slices[k] = slice(start, start + rows)
            self.streams[k].length = length
            start += rows
        pad = {"input_ids": self.backbone.config.pad_token_id or 0}
        return {key: torch.cat([_widen(b[key], width, pad.get(key, 0)) for b in present]) for key in keys}

    def _each_run(self, tensors: Sequence[Tensor], function: Callable[..., Tensor]) -> Tensor:
        """function(k, *slices of run k) for every run with rows, put together again along the first axis."""
        active = [k for k, rows in enumerate(self._slices) if rows.stop > rows.start]
        if len(active) == 1:
            return function(active[0], *tensors)
        return torch.cat([function(k, *(t[self._slices[k]] for t in tensors)) for k in active])

    def _hook_dropout(self, name: str, p: float) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.training or p == 0.0:
                return None
            return self._each_run([output], lambda k, y: self.streams[k].dropout(y, p, name))

        return hook

    def _hook_site(self, site: Site) -> Callable[..., Tensor | None]:
        key = site.name.replace(".", "/")
        tables = [dict(self.run(k).sites.items()) for k in range(len(self.runs))]
        owners = [table.get(key) for table in tables]

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._merged.get(site.name) is not None:
                return None

            def through(k: int, x: Tensor, y: Tensor) -> Tensor:
                owner = owners[k]
                if owner is None:
                    return y
                return owner(x, module) if site.kind == "norm" else owner(x, y)

            x = self._sublayer_inputs.pop(site.name) if site.kind == "sublayer" else args[0]
            return self._each_run([x, output], through)

        return hook

    def _hook_input(self, site: Site) -> Callable[..., tuple[Any, ...]]:
        key = site.name.replace(".", "/")
        owners = [dict(self.run(k).sites.items()).get(key) for k in range(len(self.runs))]

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
            def through(k: int, x: Tensor) -> Tensor:
                owner = owners[k]
                return x if owner is None else owner(x)

            return self._each_run([args[0]], through), *args[1:]

        return hook

    def _hook_sublayer_input(self, site: Site) -> Callable[..., None]:
        """Keeps the input from the start of a sub-layer to its end, also when the layer is recomputed."""

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._sublayer_inputs[site.name] = args[0]

        return hook

    def _install(self) -> None:
        """Put the hooks in place: dropouts first, so that a sub-layer site sees the output after its dropout."""
        table = Sites(self.backbone)
        for name, module in self.backbone.named_modules():
            if isinstance(module, nn.Dropout):
                self._handles.append(module.register_forward_hook(self._hook_dropout(name, module.p)))
        names = {key.replace("/", ".") for run in self.runs for key in cast(RunModules, run).sites}
        for site in table.all:  # before the hooks that change a projection's input
            if site.name in names and site.kind == "sublayer":
                hook = self._hook_sublayer_input(site)
                self._handles.append(table.input_of(site).register_forward_pre_hook(hook))
        for site in table.all:
            if site.name in names and site.kind == "input":
                self._handles.append(table.module(site).register_forward_pre_hook(self._hook_input(site)))
            elif site.name in names:
                self._handles.append(table.module(site).register_forward_hook(self._hook_site(site)))
        for i in range(table.num_layers):
            path = f"{table.architecture.layers}.{i}.{table.architecture.attention}"
            _ATTACHED[self.backbone.get_submodule(path)] = (ref(self), path)
        self.backbone.set_attn_implementation(ATTENTION)


def attach(
    backbone: PreTrainedModel,
    methods: Sequence[Method],
    heads: Sequence[Callable[[], nn.Module] | None] | None = None,
    seeds: Sequence[int] | None = None,
) -> Attached:
    """Put K = len(methods) runs on one backbone and freeze it.

    heads: one factory per run (called under the run's seed), or None for no head. seeds: one per run, 0 by default;
    a run's initial weights and dropout masks follow from its seed alone, so they are the same alone and in a pack.

    Raises ValueError where a method has no site on this architecture, a pack holds a method that trains the backbone
    in place, the backbone is compiled (a hook attached then is silently ignored) or has a pack on it already. Nothing
    is half attached after an error.
    """
    k_runs = len(methods)
    heads, seeds = heads or [None] * k_runs, seeds or [0] * k_runs
    if not k_runs or len(heads) != k_runs or len(seeds) != k_runs:
        raise ValueError(f"{k_runs} methods, {len(heads)} heads, {len(seeds)} seeds: give one of each per run")
    if isinstance(backbone, torch._dynamo.OptimizedModule) or any(
        module._compiled_call_impl is not None for module in backbone.modules()
    ):
        raise ValueError("the backbone is compiled: hooks attached now would be ignored; attach first, compile after")
    if any(module in _ATTACHED for module in backbone.modules()):
        raise ValueError("the backbone has runs attached already: detach them first")

    sites = Sites(backbone)
    original_parameters = dict(backbone.named_parameters())
    device, dtype = backbone.device, backbone.dtype
    runs, streams = [], []
    for method, head, seed in zip(methods, heads, seeds, strict=True):
        in_place = method.trained_in_place(sites) if hasattr(method, "trained_in_place") else []
        if in_place and k_runs > 1:
            raise ValueError(
                f"{type(method).__name__} trains the backbone in place: it cannot share a pack, attach it alone"
            )
        meta = device.type == "meta"
        with torch.random.fork_rng(enabled=not meta), torch.device("meta" if meta else "cpu"):
            if not meta:
                torch.manual_seed(seed)
            modules = method.modules(sites)
            run = RunModules(method, modules, head() if head else None, {n: original_parameters[n] for n in in_place})
        stream = DropoutStream(seed)
        for name, module in run.named_modules():
            if isinstance(module, Dropout):
                module.stream, module.site = stream, name
        runs.append(run.to(device=device, dtype=dtype))
        streams.append(stream)

    attached = Attached(backbone, runs, streams)
    backbone.requires_grad_(False)
    for run in runs:
        for name, parameter in run.in_place.items():
            attached._originals[name] = parameter.detach().clone()
            parameter.requires_grad_(True)
    attached._install()
    return attached.eval()


# Attention module -> (its pack, its name). The attention function finds the runs' masks through it. Weak on both sides,
# or a pack that is dropped without `detach` would keep its backbone in memory for ever.
_ATTACHED: "WeakKeyDictionary[nn.Module, tuple[ReferenceType[Attached], str]]" = WeakKeyDictionary()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Stock SDPA; with attention dropout, softmax(q k / sqrt(d) + mask), each run's own masks, times v.

    query, key, value: (B, heads, T, d); attention_mask: None or boolean (B, 1, T, T). Gives (B, T, heads, d).
    """
    if dropout == 0.0:
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **kwargs)
    pack, name = _ATTACHED[module]
    attached = cast(Attached, pack())
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = attached._each_run([weights], lambda k, w: attached.streams[k].dropout(w, dropout, f"{name}.weights"))
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _widen(x: Tensor, width: int, value: int) -> Tensor:
    return x if x.shape[1] == width else F.pad(x, (0, width - x.shape[1]), value=value)
