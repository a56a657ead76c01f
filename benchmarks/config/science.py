"""What of a configuration decides a result, shared by identity, departures and report. No torch.

Works on the configuration as plain data: dataclasses.asdict of a RunConfig, or `config` of a record.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from .fields import scientific_part
from .kinds import writes_text
from .schema import (
    BackboneConfig,
    DecodingConfig,
    GenerationConfig,
    InContextConfig,
    InitFromConfig,
    TaskConfig,
    TextConfig,
    TrainerConfig,
)

# What a sweep searches over; columns of their own in the report.
SEARCHED = {"trainer": ("learning_rate", "batch_size", "epochs"), "method": ("bottleneck_dim", "rank", "alpha")}
# Likewise of fields of methods, by class: at the value that older runs had, the identity leaves them out.
YOUNG_FIELDS_OF_METHODS: dict[str, dict[str, Any]] = {"peft_methods.lora.Lora": {"shared_dropout": False}}
# Modules that have another name than in the first records: identities keep the name of then.
RENAMED_MODULES = {"peft_bench.controls": "benchmarks.controls"}


def scientific(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a result follows from; fields.py says of each field whether it belongs to it."""
    part = {key: config[key] for key in ("backbone", "method", "task", "trainer", "experiment", "settings", "seed")}
    part["backbone"] = scientific_part(BackboneConfig, part["backbone"])
    part["method"] = with_target(without_young(part["method"]), RENAMED_MODULES)
    part["trainer"] = scientific_part(TrainerConfig, part["trainer"])
    part["task"] = _task(config, part["task"])
    if "generation" in part["task"]:
        part["decoding"] = scientific_part(DecodingConfig, config["decoding"])
    if transfer := config.get("transfer"):
        part["transfer"] = {name: _task(config, task) for name, task in transfer.items()}
    if mixture := config.get("mixture"):
        part["mixture"] = {name: _task(config, task) for name, task in mixture.items()}
    if in_context := config.get("in_context"):
        of = in_context["of"]
        part["in_context"] = scientific_part(InContextConfig, in_context) | {"of": of and _task(config, of)}
    part["scale"] = config["scale"]["name"]
    return part


def with_target(method: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The method with its `_target_` in the module of another name. names: of modules -> what they are called."""
    module, _, name = method["_target_"].rpartition(".")
    return {**method, "_target_": f"{names.get(module, module)}.{name}"}


def without_young(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method without its young fields at their old value, also within a composition."""
    young = YOUNG_FIELDS_OF_METHODS.get(method["_target_"], {})
    kept = {k: v for k, v in method.items() if not (k in young and v == young[k])}
    return kept | ({"parts": [without_young(part) for part in method["parts"]]} if "parts" in method else {})


def _task(config: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """What a task is to this backbone at this scale."""
    forms = ("text", "micro_text", "generation", "micro_generation")
    part = scientific_part(TaskConfig, {key: value for key, value in task.items() if key not in forms})
    micro = config["scale"]["data"] == "micro"
    if writes_text(config["backbone"]["model_type"]):
        text = task["micro_text" if micro else "text"]
        part["text"] = text and scientific_part(TextConfig, text)
    if (generation := task.get("micro_generation" if micro else "generation")) is not None:
        part["generation"] = scientific_part(GenerationConfig, generation)
    return part


def start(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of `init_from` a result follows from; None without a parent."""
    init = config.get("init_from")
    return scientific_part(InitFromConfig, init) if init else None


def digest_apart_from_search(config: Mapping[str, Any], versions: Any) -> str:
    """Equal for the seeds, subsamples and points of a sweep of one setting: a hash without seed, train_sample and
    SEARCHED fields.

    versions: the result versions of the identity.
    """
    part = scientific(config)
    del part["seed"]
    if "generation" in part["task"]:
        part["task"]["generation"].pop("train_sample", None)
    for group, names in SEARCHED.items():
        part[group] = {k: v for k, v in part[group].items() if k not in names}
    text = orjson.dumps([part, start(config), versions], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=8).hexdigest()
