"""Put K runs on one backbone: `attach`. What it gives back is in attached.py, how it works in hooks.py."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_methods.attached import TAKEN, Attached
from peft_methods.dropout import Dropout, DropoutStream
from peft_methods.hooks import install, is_ours
from peft_methods.protocols import Method, defines
from peft_methods.run_modules import RunModules
from peft_methods.sites import Site, Sites

# What a training loop may switch on a module of transformers, by its attributes there; the last two are handles.
_SWITCHES = (
    "training",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "_require_grads_hooks",
    "_require_grads_hook",
)
_TASK_HEAD = re.compile(r"For(Sequence|Token)Classification|ForQuestionAnswering|ForMultipleChoice|DoubleHeads")


def attach(
    backbone: PreTrainedModel,
    methods: Sequence[Method],
    heads: Sequence[Callable[[], nn.Module] | None] | None = None,
    seeds: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Attached:
    """Put K = len(methods) runs on one backbone and freeze it.

    heads: one factory per run (called under the run's seed), or None for no head. seeds: one per run, 0 by default;
    a run's initial weights and dropout masks follow from its seed alone, so they are the same alone and in a pack.
    What trains is float32 (float64 on a backbone of float64), also where the frozen weights are bfloat16.
    tokenizer: for methods that start from words.

    Raises ValueError where a method has no site on this architecture, a pack holds a method that trains the backbone
    in place or a module at a site that takes no packs, a method trains half-precision weights in place, or the backbone
    is compiled (a hook attached then is silently ignored), has a pack on it already or is a copy of one that has.
    Nothing is half attached after an error.
    """
    k_runs = len(methods)
    heads, seeds = heads or [None] * k_runs, seeds or [0] * k_runs
    if not k_runs or len(heads) != k_runs or len(seeds) != k_runs:
        raise ValueError(f"{k_runs} methods, {len(heads)} heads, {len(seeds)} seeds: give one of each per run")
    _check_backbone(backbone, any(heads))

    sites = Sites(backbone, tokenizer)
    original_parameters = dict(backbone.named_parameters())
    device, dtype = backbone.device, backbone.dtype
    runs, streams = [], []
    for method, head, seed in zip(methods, heads, seeds, strict=True):
        in_place = method.trained_in_place(sites) if defines(method, "trained_in_place") else []
        meta = device.type == "meta"
        with torch.random.fork_rng(enabled=not meta), torch.device("meta" if meta else "cpu"):
            if not meta:
                torch.manual_seed(seed)
            modules = method.modules(sites)
            run = RunModules(method, modules, head() if head else None, {n: original_parameters[n] for n in in_place})
        pooler = getattr(sites.base, sites.architecture.pooler, None)
        if defines(run.head, "needs_pooled") and run.head.needs_pooled and pooler is None:
            raise ValueError("this head needs the backbone's pooled vector: load the backbone with its pooler")
        if k_runs > 1 and (reason := _why_alone(sites, method, list(modules), bool(in_place))):
            raise ValueError(reason)
        stream = DropoutStream(seed)
        if in_place and dtype.itemsize < 4:
            raise ValueError(
                f"{type(method).__name__} trains the backbone's own weights, which are {dtype}: small updates would be "
                "lost in rounding; load it in float32 (and compute in bf16: backbone.dtype=float32 "
                "trainer.precision=bf16)"
            )
        _hand_over(stream, run, modules)
        runs.append(run.to(device=device, dtype=torch.promote_types(dtype, torch.float32)))
        streams.append(stream)

    attached = Attached(sites, runs, streams)
    _keep_switches(attached)
    _freeze(attached)
    install(attached)
    return attached.eval()


def _keep_switches(attached: Attached) -> None:
    """Let `detach` restore what attaching, training or generating switch on the backbone, which others use after us."""
    modules = {
        module: {n: vars(module)[n] for n in _SWITCHES if n in vars(module)} for module in attached.backbone.modules()
    }
    configs: list[Any] = [config for m in modules if hasattr(config := getattr(m, "config", None), "use_cache")]
    caches = [(config, config.use_cache) for config in configs]

    def restore() -> None:
        for module, values in modules.items():
            handles = vars(module).get("_require_grads_hooks", [])
            if handles is not values.get("_require_grads_hooks"):  # disabling checkpointing does not remove them
                for handle in handles:
                    handle.remove()
            for name in _SWITCHES:
                vars(module).pop(name, None)
            vars(module).update(values)
        for config, use_cache in caches:
            config.use_cache = use_cache

    attached.undo.callback(restore)


def _freeze(attached: Attached) -> None:
    """Freeze the backbone, but for the parameters that train in place, of which a copy is kept."""
    backbone = attached.backbone
    required = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    in_place = [p for k in range(len(attached.runs)) for p in attached.run(k).in_place.values()]
    originals = [(parameter, parameter.detach().clone()) for parameter in in_place]

    @torch.no_grad()
    def thaw() -> None:
        for parameter, original in originals:
            parameter.copy_(original)
        for k in range(len(attached.runs)):
            attached.run(k).in_place = {}
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
        backbone.zero_grad(set_to_none=True)

    attached.undo.callback(thaw)
    attached.undo.callback(attached.unmerge)
    backbone.requires_grad_(False)
    for parameter in in_place:
        parameter.requires_grad_(True)


def attached_to(backbone: PreTrainedModel) -> Attached | None:
    """The runs on a backbone, for whoever has lost them; None where there are none."""
    found = next((TAKEN[module] for module in backbone.modules() if module in TAKEN), None)
    return None if found is None else found()


def _check_backbone(backbone: Any, heads: bool) -> None:
    if isinstance(backbone, torch._dynamo.OptimizedModule) or any(
        module._compiled_call_impl is not None for module in backbone.modules()
    ):
        raise ValueError("the backbone is compiled: hooks attached now would be ignored; attach first, compile after")
    hooks = [h for m in backbone.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    if not any(module in TAKEN for module in backbone.modules()) and any(is_ours(hook) for hook in hooks):
        raise ValueError(
            "this backbone is a copy of one that has runs on it, and their hooks were copied: detach them there first, "
            "then copy"
        )
    if any(module in TAKEN for module in backbone.modules()):
        raise ValueError(
            "the backbone has runs attached already: detach them first "
            "(peft_methods.attach.attached_to(backbone).detach(), where they are lost)"
        )
    if _TASK_HEAD.search(type(backbone).__name__):
        raise ValueError(
            f"{type(backbone).__name__} has a task head of its own: give its base model, and each run's head in heads="
        )
    if heads and backbone.get_output_embeddings() is not None:
        raise ValueError(f"{type(backbone).__name__} has a language-modelling head of its own: give no head")
    for field in ("encoder_layerdrop", "decoder_layerdrop"):
        if getattr(backbone.config, field, 0.0) > 0.0:
            raise ValueError(f"{field} skips whole layers at random, which no run could repeat: set it to 0")


def why_alone(attached: Attached) -> str | None:
    """Why the (first) attached run cannot share a pack on this backbone; None where it can."""
    run = attached.run(0)
    used = [attached.sites.by_name[name] for name in run.by_site]
    return _why_alone(attached.sites, run.method, used, bool(run.in_place))


def _why_alone(sites: Sites, method: Method, used: list[Site], in_place: bool) -> str | None:
    name, arch = type(method).__name__, sites.architecture
    if in_place:
        return f"{name} trains the backbone in place: it cannot share a pack, attach it alone"
    for site in used:
        if site.role in arch.no_packs:
            return f"{name} at {site.name} cannot share a pack: {arch.no_packs[site.role]}; attach it alone"
    for path in arch.shared_dropouts:
        p = sites.base.get_submodule(f"{arch.stacks[0].layers}.0.{path}").p
        if p != 0.0:
            return (
                f"a {sites.model_type} with dropout takes no packs: {path} drops a tensor that all rows of a batch "
                "share; attach one run at a time"
            )
    return None


def _hand_over(stream: DropoutStream, run: RunModules, modules: dict[Site, nn.Module]) -> None:
    """Give every dropout of the run its stream, its name and whose tokens it sees."""
    for name, module in run.named_modules():
        if isinstance(module, Dropout):
            module.stream, module.site = stream, name
    for site, owner in modules.items():
        for module in owner.modules():
            if isinstance(module, Dropout):
                module.tokens = site.tokens
