"""From Hydra overrides to a RunConfig.

`register()` stores the schema (schema.py) with Hydra; conf/config.yaml starts from it, so a misspelt key fails at
composition. For the same reason every file of conf/method/ inherits the schema node of its name
(`/schema/method@_here_: lora`), made of the fields of its `_target_`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from . import schema
from .booleans import check_booleans
from .schema import CONF_DIR, BackboneConfig, DecodingConfig, RunConfig

CONFIGURATION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)  # of reading YAML files and overrides


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The RunConfig that `peft-bench run` composes from these overrides."""
    return typed(compose_cfg(overrides))


def compose_cfg(overrides: Sequence[str], hydra: bool = False) -> DictConfig:
    """The same before it is typed; with Hydra's own part if `hydra`."""
    register()
    if GlobalHydra.instance().is_initialized():
        return compose("config", list(overrides), return_hydra_config=hydra)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=hydra)


def compose_job(overrides: Sequence[str]) -> RunConfig:
    """One of many runs. Raises ValueError that names it, in one sentence."""
    try:
        return compose_run(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"{' '.join(overrides)}: {explain(error)}") from error


@cache
def register() -> None:
    """Store the schema in Hydra's ConfigStore: of a run, and of each file of conf/method/ by the class it names."""
    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig, package="_global_")
    for path in sorted((CONF_DIR / "method").glob("*.yaml")):
        store.store(group="schema/method", name=path.stem, node=_method_schema(method_class(_target(path))))


def _target(path: Path) -> str:
    """The class that a file of conf/method/ names. Raises ValueError where it names none."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("_target_"), str):
        raise ValueError(f"conf/method/{path.name} has no _target_: expected the full name of its class, as lora.yaml")
    return str(content["_target_"])


def typed(cfg: DictConfig) -> RunConfig:
    """The composed configuration as a RunConfig; `method` stays a plain dictionary with its `_target_`."""
    if added := _not_in_schema(cfg, ""):
        raise ValueError(f"{', '.join(added)}: no such key, and a + before it does not make it one; leave it out")
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise TypeError(f"expected a configuration composed from conf/config.yaml, got {type(run).__name__}")
    if dataclasses.is_dataclass(run.method):
        run.method = dataclasses.asdict(run.method)  # type: ignore[arg-type]
    tasks = [run.task, *run.transfer.values(), *run.mixture.values()]
    check_booleans(run, [task_choice(task.dataset, task.name) for task in tasks])
    return run


def _not_in_schema(cfg: DictConfig, prefix: str) -> list[str]:
    """Keys that `+key=` has added: OmegaConf would drop them without a word."""
    schema = OmegaConf.get_type(cfg)
    keys = [str(key) for key in cfg]
    known = [f.name for f in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else keys
    wrong = [f"{prefix}{key}" for key in keys if key not in known]
    for key in keys:
        if not OmegaConf.is_missing(cfg, key) and isinstance(part := cfg[key], DictConfig):
            wrong += _not_in_schema(part, f"{prefix}{key}.")
    return wrong


def method_class(target: str) -> Any:
    """The class that a method's `_target_` names. Raises ValueError where there is none."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"method._target_={target}: {error}; expected the full name of a class, as in conf/method/lora.yaml"
        ) from error
    if not isinstance(getattr(found, "result_version", None), int):
        raise ValueError(f"method._target_={target}: no result_version = 1 in it, which every method has (lora.py)")
    return found


def build_method(method: Mapping[str, Any]) -> Any:
    """The method of a configuration; those within a composition stay objects, not configurations of their own."""
    return instantiate(dict(method), _convert_="all")


def backbone_choice(name: str) -> BackboneConfig:
    """conf/backbone/<name>.yaml alone. Composing a whole run costs a quarter of a second, this a hundredth."""
    return cast(BackboneConfig, _file_alone(BackboneConfig, "backbone", name))


def decoding_choice(name: str) -> DecodingConfig:
    """conf/decoding/<name>.yaml alone."""
    return cast(DecodingConfig, _file_alone(DecodingConfig, "decoding", name))


def _file_alone(kind: type, group: str, name: str) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(_choice(group, name))))


def method_choice(name: str, settings: str = "") -> dict[str, Any]:
    """conf/method/<name>.yaml alone with `settings`, such as "rank=4 targets=[query]", as a run's `method`."""
    register()
    part = cast(DictConfig, OmegaConf.load(_choice("method", name)))
    del part["defaults"]
    node = ConfigStore.instance().load(f"schema/method/{name}.yaml").node
    merged = OmegaConf.merge(node, part, OmegaConf.from_dotlist(settings.split()))
    return cast(dict[str, Any], OmegaConf.to_container(merged, throw_on_missing=True))


def _choice(group: str, name: str) -> Path:
    if not (path := CONF_DIR / group / f"{name}.yaml").is_file():
        raise ValueError(f"no file conf/{group}/{name}.yaml; expected one of {', '.join(choices(group))}")
    return path


def choices(group: str) -> list[str]:
    """The names of a group of conf/: what may follow `<group>=`."""
    folder = CONF_DIR / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def task_choice(dataset: str, name: str) -> str:
    """What follows `task=` ("glue/rte", "wnli", "e2e_tokenized"): the file of conf/task/ with both; else the name."""
    return _task_files().get((dataset, name), (name, 1))[0]


def task_version(dataset: str, name: str) -> int:
    """The result version of a task today: of the file of conf/task/ with both; 1 without one."""
    return _task_files().get((dataset, name), (name, 1))[1]


@cache
def _task_files() -> dict[tuple[str, str], tuple[str, int]]:
    """Data set and name -> choice and result version."""
    files = {choice: cast(DictConfig, OmegaConf.load(_choice("task", choice))) for choice in choices("task")}
    return {(file.dataset, file.name): (choice, file.get("version", 1)) for choice, file in files.items()}


def reaches_into_null(error: AssertionError) -> bool:
    """Whether OmegaConf failed at an override within a part that is null."""
    return "Unexpected type for root" in str(error)


def explain(error: Exception) -> str:
    """Why a configuration could not be composed, as one sentence: Hydra's message with what exists instead."""
    if isinstance(error, AssertionError) and reaches_into_null(error):
        return (
            "an override reaches into a part that is null here; init_from.* is only for tasks that start from a parent "
            "(name them in task=...)"
        )
    both = [str(reason).partition("Config search path:")[0] for reason in (error, error.__cause__) if reason]
    text = " ".join(" ".join(both).split())
    if missing := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = missing.groups()
        known = ", ".join(choices(group)) or f"no such group: {', '.join(sorted(p.name for p in CONF_DIR.iterdir()))}"
        return f"{group}={name}: no file conf/{group}/{name}.yaml; expected one of {known}"
    if wrong := re.search(r"Key '(\w+)' (?:not in '(\w+)'|is not in struct).* full_key: (\S+)", text):
        key, class_name, path = wrong.groups()
        known_class = getattr(schema, class_name or "", None)
        names = [f.name for f in dataclasses.fields(known_class)] if dataclasses.is_dataclass(known_class) else []
        expected = (
            f"; expected one of {', '.join(names)}" if names else " (peft-bench run --cfg job shows those there are)"
        )
        return f"{path}: there is no key {key!r}" + expected
    if grammar := re.search(r"(.*?) See https://hydra.cc", text):
        return f"{grammar[1]}; expected key=value, in quotes where a shell would read its brackets or commas"
    return re.sub(r" (full_key|reference_type|object_type)[:=] ?\S*", "", text)


def _method_schema(method: type) -> type:
    """The method's dataclass with every field required and its `_target_`, as Hydra's structured configs need it."""
    as_list: dict[Any, Any] = {Sequence[str]: list[str], Sequence[float]: list[float], Sequence[Any]: list[Any]}
    fields: list[Any] = [("_target_", str, field(default=f"{method.__module__}.{method.__qualname__}"))]
    for f in dataclasses.fields(method):
        fields.append((f.name, as_list.get(f.type, f.type), field(default=MISSING)))
    return dataclasses.make_dataclass(f"{method.__name__}Schema", fields)
