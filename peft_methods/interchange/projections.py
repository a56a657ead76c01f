"""LoRA and (IA)^3 in peft's layout: what peft.py writes and reads at projections.

    <module>.lora_A.weight (r x in), <module>.lora_B.weight (out x r)
    <module>.ia3_l (out x 1); before a projection (1 x in)

GPT-2's query, key and value are columns of one map, which peft gives one pair of factors. Ours are separate per role:
n of them are exactly the pair A = [A_q; A_v], B block diagonal, of rank n·r and alpha n·alpha. The other way, blocks
are told apart by the zeros between them; a pair that is not blocked becomes one pair per role with a copy of A each:
the same function, no longer tied if it trains on. In training peft draws one dropout mask for the map, we one a role
(with `shared_dropout` one, too).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from peft_methods.ia3 import IA3
from peft_methods.interchange.folders import check_fields
from peft_methods.lora import Lora
from peft_methods.run_modules import RunModules
from peft_methods.sites import Site, Sites

Contents = tuple[dict[str, Any], dict[str, Tensor]]  # configuration, tensors by path of the module

EVERYWHERE = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("auto_mapping", "modules_to_save", "target_modules", "exclude_modules"),
)
_LORA_FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"),
    *("fan_in_fan_out", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *("megatron_core", "qalora_group_size", "loftq_config", "eva_config"),  # settings of starts and switches
)
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal")


def write_lora(sites: Sites, run: RunModules) -> Contents:
    """A run's configuration and factors."""
    method: Any = run.method
    groups = _by_module(sites.projections(method.targets))
    tensors: dict[str, Tensor] = {}
    for path, members in groups.items():
        factors = [run.at(site.name) for site in members]
        tensors[f"{path}.lora_A.weight"] = torch.cat([own.A for own in factors])
        tensors[f"{path}.lora_B.weight"] = B = factors[0].B.new_zeros(
            _out(sites, members[0]), method.rank * len(members)
        )
        for i, (site, own) in enumerate(zip(members, factors, strict=True)):
            start, stop = site.columns or (0, site.width)
            B[start:stop, i * method.rank : (i + 1) * method.rank] = own.B.detach()
    times = {_in_layer(sites, members[0]): len(members) for members in groups.values()}
    fewest = min(times.values())
    more = {path: n for path, n in times.items() if n > fewest}
    return {
        "peft_type": "LORA",
        "r": method.rank * fewest,
        "lora_alpha": _integral(method.alpha * fewest),
        "lora_dropout": method.dropout,
        "rank_pattern": {path: method.rank * n for path, n in more.items()},
        "alpha_pattern": {path: _integral(method.alpha * n) for path, n in more.items()},
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": _transposed(sites),
        "target_modules": _names(sites, [site for members in groups.values() for site in members]),
    }, tensors


def read_lora(sites: Sites, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Lora, dict[str, Tensor]]:
    """The method and its tensors. Raises ValueError where one `Lora` cannot express the folder."""
    check_fields(config, (*EVERYWHERE, *_LORA_FIELDS))
    if config.get("bias", "none") != "none":
        raise ValueError(f"bias={config['bias']!r} trains biases beside the factors: expected 'none'")
    if isinstance(start := config.get("init_lora_weights", True), str) and start not in _HARMLESS_STARTS:
        raise ValueError(
            f"init_lora_weights={start!r} changes the backbone's own weights: expected true, false or one of "
            f"{', '.join(_HARMLESS_STARTS)}; convert it with path_initial_model_for_weight_conversion in peft"
        )
    modules = _modules(sites, tensors, ("lora_A.weight", "lora_B.weight"))
    alphas: dict[str, float] = {}  # by site
    own: dict[str, Tensor] = {}
    targets: list[str] = []
    for layers in _same_module(sites, modules).values():
        pairs = [(modules[path]["lora_A.weight"], modules[path]["lora_B.weight"]) for path in layers]
        for path, (A, B) in zip(layers, pairs, strict=True):
            _check_pair(sites, path, A, B)
        ways = _untied([_projections(sites)[path] for path in layers], pairs)
        for path, rows in zip(layers, ways, strict=True):
            rank = len(modules[path]["lora_A.weight"])
            r, alpha = (_setting(config, path, f) for f in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")))
            if r != rank:
                raise ValueError(f"{path} has factors of rank {rank}, the configuration says {r}: save it again")
            for site, A, B in rows:
                own |= {f"sites.{site.name}.A": A, f"sites.{site.name}.B": B}
                alphas[site.name] = alpha * len(A) / (math.sqrt(rank) if config.get("use_rslora") else rank)
                targets += [site.role] if site.role not in targets else []
    settings = {(len(own[f"sites.{name}.A"]), alpha) for name, alpha in alphas.items()}
    if len(settings) != 1:
        raise ValueError(
            f"the targets differ in rank and alpha ({', '.join(map(str, sorted(settings)))}): expected one of each"
        )
    ((rank, alpha),) = settings
    dropout = float(config.get("lora_dropout") or 0.0)
    return Lora(rank, alpha, dropout, tuple(targets), "kaiming_uniform"), own


def _untied(members: list[list[Site]], pairs: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Site, Tensor, Tensor]]]:
    """One module's factors, layer by layer, as separate factors of the roles it serves."""
    if len(members[0]) == 1:
        return [[(sites[0], A, B)] for sites, (A, B) in zip(members, pairs, strict=True)]
    blocks = [
        [(site, A, B[slice(*_columns(site))]) for site in sites] for sites, (A, B) in zip(members, pairs, strict=True)
    ]
    roles = range(len(members[0]))
    live = [i for i in roles if any(layer[i][2].any() for layer in blocks)] or list(roles)
    rank, left = divmod(len(pairs[0][0]), len(live))

    def outside(i: int, B: Tensor) -> Tensor:
        return torch.cat([B[:, : live.index(i) * rank], B[:, (live.index(i) + 1) * rank :]], dim=1)

    untrained = not any(B.any() for _, B in pairs)
    if left or untrained or any(outside(i, layer[i][2]).any() for layer in blocks for i in live):
        return [[layer[i] for i in live] for layer in blocks]  # shared: every role gets all of A
    spans = {i: slice(n * rank, (n + 1) * rank) for n, i in enumerate(live)}
    return [[(layer[i][0], layer[i][1][spans[i]], layer[i][2][:, spans[i]]) for i in live] for layer in blocks]


def write_ia3(sites: Sites, run: RunModules) -> Contents:
    """A run's configuration and vectors."""
    used = [site for site in sites.all if run.at(site.name) is not None]
    tensors: dict[str, Tensor] = {}
    for path, members in _by_module(used).items():
        first = run.at(members[0].name).scale
        if members[0].kind == "input":
            tensors[f"{path}.ia3_l"] = first[None, :]
            continue
        scale = first.new_ones(_out(sites, members[0]), 1)
        for site in members:
            scale[slice(*_columns(site)), 0] = run.at(site.name).scale.detach()
        tensors[f"{path}.ia3_l"] = scale
    return {
        "peft_type": "IA3",
        "target_modules": _names(sites, used),
        "feedforward_modules": _names(sites, [site for site in used if site.kind == "input"]),
        "fan_in_fan_out": _transposed(sites),
        "init_ia3_weights": True,
    }, tensors


def read_ia3(sites: Sites, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[IA3, dict[str, Tensor]]:
    """The method and its tensors. Raises ValueError where something else than keys, values and ffn_out is scaled."""
    check_fields(config, (*EVERYWHERE, "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"))
    wanted = {site.name for site in IA3().modules(sites)}
    own: dict[str, Tensor] = {}
    for path, named in _modules(sites, tensors, ("ia3_l",)).items():
        scale, members = named["ia3_l"], _projections(sites)[path]
        if scale.ndim != 2 or 1 not in scale.shape:
            raise ValueError(f"{path}.ia3_l is {tuple(scale.shape)}, expected (out, 1) or (1, in)")
        before = scale.shape[0] == 1
        if not before and len(scale) != _out(sites, members[0]):
            raise ValueError(f"{path}.ia3_l is {tuple(scale.shape)}, expected ({_out(sites, members[0])}, 1)")
        for site in members:
            name = f"{site.name}_input" if before else site.name
            part = scale[0] if before else scale[slice(*_columns(site)), 0]
            if name in wanted:
                own[f"sites.{name}.scale"] = part
            elif not torch.equal(part, torch.ones_like(part)):
                where = "input" if before else "output"
                raise ValueError(
                    f"{path}.ia3_l scales the {where} of the {site.role} projection: expected key and value outputs "
                    "and ffn_out inputs alone, as (IA)^3 is published; set target_modules and feedforward_modules so"
                )
    return IA3(), own


def _by_module(sites: list[Site]) -> dict[str, list[Site]]:
    """Sites of projections or their inputs by the module they belong to, in order of columns."""
    groups: dict[str, list[Site]] = {}
    for site in sorted(sites, key=lambda site: site.columns or (0, 0)):
        groups.setdefault(site.path, []).append(site)
    return groups


def _projections(sites: Sites) -> dict[str, list[Site]]:
    return _by_module([site for site in sites.all if site.kind == "projection"])


def _modules(sites: Sites, tensors: dict[str, Tensor], kinds: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module path and kind. Raises ValueError for a name that is none of ours, or a module without all."""
    known, modules = _projections(sites), dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        kind = next((kind for kind in kinds if name.endswith(f".{kind}")), None)
        path = name.removesuffix(f".{kind}")
        if kind is None or path not in known:
            raise ValueError(
                f"{name} has no place on this {sites.model_type}: expected {' and '.join(kinds)} of its projections"
            )
        modules.setdefault(path, {})[kind] = tensor
    for path, own in modules.items():
        if len(own) != len(kinds):
            raise ValueError(f"{path} has {', '.join(own)} alone: expected {' and '.join(kinds)}; save it again")
    if not modules:
        raise ValueError(f"the file holds no {' or '.join(kinds)}: save it again")
    return modules


def _same_module(sites: Sites, modules: Mapping[str, Any]) -> dict[str, list[str]]:
    """Paths that are the same module of different layers, by its path in the layer, in the order of the sites."""
    groups: dict[str, list[str]] = {}
    for path, members in _projections(sites).items():
        if path in modules:
            groups.setdefault(_in_layer(sites, members[0]), []).append(path)
    return groups


def _check_pair(sites: Sites, path: str, A: Tensor, B: Tensor) -> None:
    site = _projections(sites)[path][0]
    if A.ndim != 2 or A.shape[1] != site.in_features or B.shape != (_out(sites, site), len(A)):
        raise ValueError(
            f"the factors of {path} are {tuple(A.shape)} and {tuple(B.shape)}, expected (r, {site.in_features}) and "
            f"({_out(sites, site)}, r): import onto the backbone that they were trained on"
        )


def _setting(config: dict[str, Any], path: str, fields: tuple[str, str]) -> float:
    """A module's own value, by the first pattern that matches the end of its path, or the common one."""
    pattern, common = fields
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return _number(pattern, value)
    return _number(common, config.get(common, 8))  # peft's default


def _number(field: str, value: object) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{field} has {value!r}: expected a number")
    return float(value)


def _names(sites: Sites, used: list[Site]) -> list[str]:
    """What peft finds exactly these modules by: their ends where these are unambiguous, or whole paths."""
    ends, paths = {_in_layer(sites, site) for site in used}, {site.path for site in used}
    found = {name for name, _ in sites.base.named_modules() if any(f".{name}".endswith(f".{end}") for end in ends)}
    return sorted(ends if found == paths else paths)


def _in_layer(sites: Sites, site: Site) -> str:
    """A module's path below its layer: `attn.c_attn` of `h.3.attn.c_attn`."""
    stack = next(stack for stack in sites.architecture.stacks if stack.name == site.stack)
    return site.path if site.layer is None else site.path.removeprefix(f"{stack.layers}.{site.layer}.")


def _columns(site: Site) -> tuple[int, int]:
    return site.columns or (0, site.width)


def _out(sites: Sites, site: Site) -> int:
    """Output width of the whole module, all roles of a fused one."""
    module: Any = sites.module(site)
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)


def _transposed(sites: Sites) -> bool:
    return any(isinstance(module, Conv1D) for module in sites.base.modules())


def _integral(value: float) -> float | int:
    return int(value) if value == int(value) else value
