"""From a RunConfig to the configuration that its record holds, and back to a RunConfig of today."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from .compose import task_version
from .fields import PLACE, VERSION, names
from .schema import RunConfig, TaskConfig
from .science import RENAMED_MODULES, with_target


def as_recorded(cfg: Any) -> dict[str, Any]:
    """A configuration as plain data, as a record has it: without places and result versions."""
    kind: type = type(cfg)
    left_out = names(kind, VERSION, PLACE)
    values = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(kind) if f.name not in left_out}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_recorded(value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def run_config(config: Mapping[str, Any]) -> RunConfig:
    """The RunConfig of a record. Raises ValueError for a field that this version does not know."""
    config = {**config, "method": _present_method(config["method"])}
    return typing.cast(RunConfig, _typed(RunConfig, config, "config"))


def _typed(kind: type, value: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{where}.{unknown[0]}: this version of peft-bench has no such field; use the record's own")
    if kind is TaskConfig:  # a record has the result versions in its identity; a run made today has those of today
        value = {**value, "version": task_version(value["dataset"], value["name"])}
    fields = {}
    for name, part in value.items():
        kinds = [k for k in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(k)]
        if not kinds or part is None:
            fields[name] = part
        elif typing.get_origin(hints[name]) is dict:  # transfer
            inner = typing.cast(type, kinds[0])
            fields[name] = {key: _typed(inner, each, f"{where}.{name}.{key}") for key, each in part.items()}
        else:
            fields[name] = _typed(typing.cast(type, kinds[0]), part, f"{where}.{name}")
    return kind(**fields)


def _present_method(method: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded method with the `_target_` under which its class is found today."""
    return with_target(method, {former: now for now, former in RENAMED_MODULES.items()})
