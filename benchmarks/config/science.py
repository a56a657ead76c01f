"""What of a configuration decides a result, shared by identity, departures and report. No torch.

Works on the configuration as plain data: dataclasses.asdict of a RunConfig, or `config` of a record.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from .schema import writes_text

# What a sweep searches over; columns of their own in the report.
SEARCHED = {"trainer": ("learning_rate", "batch_size", "epochs"), "method": ("bottleneck_dim", "rank", "alpha")}
# Fields that change speed, memory or rounding: they belong to the numerics class of the record.
_NOT_SCIENTIFIC = {
    "backbone": {"architecture", "dtype", "hub_id", "weights_sha256"},
    "task": {"hub_revision"},
    "trainer": {"eval_batch_size", "precision", "gradient_checkpointing"},
}
# Fields younger than the first records: left out at the value those runs had, so that their identities stand.
_ADDED_LATER: dict[str, dict[str, Any]] = {
    "task": {
        "public_test": False,
        "group_columns": [],
        "target_prefix": "",
        "prompt_words": [],
        "cut_from": "",
        "cut_by": "",
    },
    "trainer": {
        "regression_bias": "zero",
        "loss_reduction": "token_mean",
        "label_smoothing": 0.0,
        "backbone_dropout": None,
        "parameter_scaling": False,
        "z_loss": 0.0,
        "eval_max_length": None,
    },
    "generation": {
        "target_tokens": None,
        "source_columns": [],
        "truth_column": "",
        "targets": "all",
        "grouped": True,
    },  # within the task
    "text": {"replace": {}},  # likewise
}

_SPEED_OF_DECODING = {"name", "batch_size"}
# Modules that have another name than in the first records: identities keep the name of then.
RENAMED_MODULES = {"peft_bench.controls": "benchmarks.controls"}


def scientific(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a result follows from; where things lie and how they are tracked is left out."""
    part = {key: config[key] for key in ("backbone", "method", "task", "trainer", "experiment", "settings", "seed")}
    for group, names in _NOT_SCIENTIFIC.items():
        part[group] = {k: v for k, v in part[group].items() if k not in names}
    part["method"] = _moved(part["method"], RENAMED_MODULES)
    part["trainer"] = _without_later("trainer", part["trainer"])
    part["task"] = _task(config, config["task"])
    if "generation" in part["task"]:
        part["decoding"] = {k: v for k, v in config["decoding"].items() if k not in _SPEED_OF_DECODING}
    if transfer := config.get("transfer"):
        part["transfer"] = {name: _task(config, task) for name, task in transfer.items()}
    if mixture := config.get("mixture"):
        part["mixture"] = {name: _task(config, task) for name, task in mixture.items()}
    if in_context := config.get("in_context"):
        of = in_context["of"]
        part["in_context"] = {k: v for k, v in in_context.items() if k != "name"} | {"of": of and _task(config, of)}
    part["scale"] = config["scale"]["name"]
    return part


def present_method(method: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded method with the `_target_` under which its class is found today."""
    return _moved(method, {former: now for now, former in RENAMED_MODULES.items()})


def _moved(method: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    module, _, name = method["_target_"].rpartition(".")
    return {**method, "_target_": f"{names.get(module, module)}.{name}"}


def _task(config: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """What a task is to this backbone at this scale."""
    left_out = {*_NOT_SCIENTIFIC["task"], "text", "micro_text", "generation", "micro_generation"}
    part = _without_later("task", {k: v for k, v in task.items() if k not in left_out})
    micro = config["scale"]["data"] == "micro"
    if writes_text(config["backbone"]["model_type"]):
        text = task["micro_text" if micro else "text"]
        part["text"] = text and _without_later("text", text)
    generation = task.get("micro_generation" if micro else "generation")
    if generation is not None:
        part["generation"] = _without_later("generation", generation)
    return part


def _without_later(group: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _ADDED_LATER[group]
    return {k: v for k, v in fields.items() if k not in defaults or v != defaults[k]}


def start(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of `init_from` a result follows from; None without a parent."""
    init = config.get("init_from")
    return {key: value for key, value in init.items() if key != "if_missing"} if init else None


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
