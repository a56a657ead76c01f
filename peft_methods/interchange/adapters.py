"""Bottleneck adapters to and from the folders of AdapterHub's `adapters` library (`use_safetensors=True` there).

    adapter_config.json     model_type, hidden_size, name, config: the library's `BnConfig`
    adapter.safetensors     <base>.<layer>.<place>.adapters.<name>.adapter_down.0 (m x H) and adapter_up (H x m)
    head_config.json        config: the library's classification head
    model_head.safetensors  heads.<name>.<index in its nn.Sequential>

Which configuration is which method: bottlenecks.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_methods.attached import Attached
from peft_methods.bottleneck import Bottleneck
from peft_methods.interchange.bottlenecks import config_of, method_of
from peft_methods.interchange.folders import (
    HEADS,
    Imported,
    fitted,
    head_tensors,
    naming,
    read_json,
    read_tensors,
    take_head,
    write_folder,
)
from peft_methods.sites import Site, Sites

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
VERSION = (
    "adapters.1.3.0"  # whose layout this is; without one the library takes activations for those of older versions
)

# model_type -> its model class there, and where in a layer the library keeps the adapters of a sub-layer.
_POST = {"attention": "attention.output", "ffn": "output"}
_OWN = {"attention": "attention_adapters", "ffn": "output_adapters"}
_PLACES = {
    "bert": ("BertAdapterModel", _POST),
    "roberta": ("RobertaAdapterModel", _POST),
    "deberta-v2": ("DebertaV2AdapterModel", _POST),
    "gpt2": ("GPT2AdapterModel", _OWN),
    "bart": ("BartAdapterModel", _OWN),
    "t5": ("T5AdapterModel", {"attention": "layer.0", "ffn": "layer.1", "decoder.ffn": "layer.2"}),
}
# Our head's activation there, and the indices of its linear maps among dropouts and activations.
_HEADS = {
    "bert": (None, {"1": "out_proj"}),
    "roberta": ("tanh", {"1": "dense", "4": "out_proj"}),
    "deberta-v2": ("gelu", {"1": "dense", "4": "out_proj"}),
}


def export_adapters(attached: Attached, folder: Path, name: str, k: int = 0) -> None:
    """Write run k as a folder that `model.load_adapter(folder, use_safetensors=True)` loads under `name`, its head too.

    Raises ValueError where the folder exists, or the library has no layout for the method or the head.
    """
    run, sites = attached.run(k), attached.sites
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"name={name!r}: expected letters, digits, _ and -, since it is part of every tensor's name")
    config = config_of(sites, run.method)
    model_class = _PLACES[sites.model_type][0]
    tensors: dict[str, Tensor] = {}
    for site in _sites(sites, run.method):
        own = dict(run.at(site.name).named_parameters())
        path = f"{sites.backbone.base_model_prefix}.{_path(sites, site)}.adapters.{name}"
        tensors |= {f"{path}.{theirs}": own[ours] for theirs, ours in _parameters(config).items()}
    about = {
        "model_type": sites.model_type,
        "hidden_size": sites.base.config.hidden_size,
        "model_name": sites.backbone.config.name_or_path or None,
        "model_class": model_class,
        "name": name,
        "version": VERSION,
    }
    files: dict[str, Any] = {CONFIG: about | {"config": config}, WEIGHTS: tensors}
    if own_head := head_tensors(sites, run):
        activation, indices = _HEADS[sites.model_type]
        theirs = {ours: f"heads.{name}.{index}" for index, ours in indices.items()}
        names = {static: theirs[ours] for static, ours in HEADS[sites.model_type].items()}
        files[HEAD_WEIGHTS] = {
            f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in own_head.items()
        }
        labels = len(next(t for key, t in files[HEAD_WEIGHTS].items() if key == f"{theirs['out_proj']}.bias"))
        files[HEAD_CONFIG] = about | {
            "config": {
                "head_type": "classification",
                "num_labels": labels,
                "layers": len(indices),
                "activation_function": activation,
                "use_pooler": sites.model_type == "bert",
                "bias": True,
                "dropout_prob": None,
                "label2id": {f"LABEL_{i}": i for i in range(labels)},
            }
        }
    write_folder(folder, files)


def read_adapters(folder: Path | str, backbone: PreTrainedModel) -> Imported:
    """What a folder saved by adapters holds, in our terms, checked against the backbone, which is left alone. The head
    is read where one lies beside the adapter.

    Raises ValueError, one sentence, where the folder is not whole, holds what we cannot express, or does not fit.
    """
    folder = Path(folder)
    with naming(folder):
        sites = Sites(backbone)
        about = read_json(folder / CONFIG)
        _check_backbone(sites, about)
        config = about.get("config")
        if not isinstance(config, dict) or config.get("architecture") not in (None, "bn"):
            raise ValueError(f"{CONFIG} holds no bottleneck: expected config with mh_adapter and output_adapter")
        tensors = read_tensors(folder / WEIGHTS, "save_adapter(..., use_safetensors=True)")
        prefix = f"{backbone.base_model_prefix}."
        tensors = {key.removeprefix(prefix): t for key, t in tensors.items()}
        bottleneck = next((t.shape[-1] for key, t in tensors.items() if key.endswith(".adapter_up.weight")), 0)
        if not bottleneck:
            raise ValueError(f"{WEIGHTS} holds no adapter_up: expected adapters that save_adapter has written")
        method = method_of(sites, config, bottleneck, "version" in about)
        own: dict[str, Tensor] = {}
        for site in _sites(sites, method):
            path = f"{_path(sites, site)}.adapters.{about.get('name')}"
            for theirs, ours in _parameters(config).items():
                if (tensor := tensors.pop(f"{path}.{theirs}", None)) is not None:
                    own[f"sites.{site.name}.{ours}"] = tensor
            if config.get("ln_before"):  # a module of two parents there, so that it may be saved twice
                for kind in ("weight", "bias"):
                    tensors.pop(f"{path}.adapter_norm_before.{kind}", None)
        if tensors:
            raise ValueError(
                f"{next(iter(tensors))} has no place in {type(method).__name__} on this {sites.model_type}: "
                f"expected the adapters of {about.get('name')!r} that {CONFIG} describes"
            )
        return fitted(sites, method, own | _read_head(sites, folder))


def import_adapters(folder: Path | str, backbone: PreTrainedModel) -> Attached:
    """The backbone with the run of an adapters folder on it, its head included. Raises as `read_adapters` and `attach`
    do, with nothing attached."""
    return read_adapters(folder, backbone).attach(backbone)


def _check_backbone(sites: Sites, about: Mapping[str, Any]) -> None:
    own = {"model_type": sites.model_type, "hidden_size": sites.base.config.hidden_size}
    for field, expected in own.items():
        if about.get(field) != expected:
            raise ValueError(
                f"{field} is {about.get(field)!r}, this backbone's is {expected!r}: import onto the backbone that it "
                "was trained on"
            )


def _read_head(sites: Sites, folder: Path) -> dict[str, Tensor]:
    """Tensors of our head, from the library's own head or from transformers' head saved by it; empty without one."""
    if not (folder / HEAD_CONFIG).exists() and not (folder / HEAD_WEIGHTS).exists():
        return {}
    if sites.model_type not in _HEADS:
        raise ValueError(
            f"{HEAD_CONFIG}: no head of ours on {sites.model_type}; remove it and {HEAD_WEIGHTS} to import"
        )
    about = read_json(folder / HEAD_CONFIG)
    _check_backbone(sites, about)
    tensors = read_tensors(folder / HEAD_WEIGHTS, "save_head(..., use_safetensors=True)")
    activation, indices = _HEADS[sites.model_type]
    names = HEADS[sites.model_type]
    if (config := about.get("config")) is not None:
        names = {f"heads.{about.get('name')}.{index}": ours for index, ours in indices.items()}
        expected = {
            "head_type": "classification",
            "layers": len(indices),
            "activation_function": activation,
            "use_pooler": sites.model_type == "bert",
        }
        for field, value in expected.items():
            if config.get(field) != value and not (field == "activation_function" and len(indices) == 1):
                raise ValueError(
                    f"{HEAD_CONFIG}: {field}={config.get(field)!r}, expected {value!r} on {sites.model_type}, as in "
                    "transformers' sequence classification head"
                )
    head = take_head(names, tensors)
    if tensors or not head:
        raise ValueError(f"{HEAD_WEIGHTS} holds {next(iter(tensors), 'nothing')}: expected {', '.join(names)}")
    return head


def _sites(sites: Sites, method: Any) -> list[Site]:
    with torch.device("meta"):
        modules: dict[Site, nn.Module] = method.modules(sites)
    return [site for site, module in modules.items() if isinstance(module, Bottleneck)]


def _path(sites: Sites, site: Site) -> str:
    """Where the library keeps the adapters of a sub-layer, of the norm after it, or of the block it ends."""
    places = _PLACES[sites.model_type][1]
    role = "attention" if site.role == "attention" else "ffn"
    stack = next(stack for stack in sites.architecture.stacks if stack.name == site.stack)
    return f"{stack.layers}.{site.layer}.{places.get(f'{site.stack}.{role}', places[role])}"


def _parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Their parameter -> ours, in one adapter."""
    norm = (
        {"adapter_down.0.weight": "norm.weight", "adapter_down.0.bias": "norm.bias"} if config.get("ln_before") else {}
    )
    down = f"adapter_down.{len(norm) // 2}"  # the norm comes first in its nn.Sequential
    maps = {down: "down", "adapter_up": "up"}
    return norm | {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in maps.items() for kind in ("weight", "bias")}
