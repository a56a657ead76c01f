"""Where a run departs from its experiment's own configuration: what a `key=value` on the command line has changed.

A printed score may be compared with a run only if the run is the published setting, so this stands in every record.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import OmegaConf

from .compose import choices, compose_run, decoding_choice, task_choice
from .schema import CONF_DIR, RunConfig, generation_of
from .science import scientific, start


def departures(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dotted key -> [given, expected] for every scientific field that is not what experiment, task, settings and scale
    compose to; seeds, and the values the experiment's own sweep names, are none. {} for experiment=custom.

    config: as plain data, see science.py.
    """
    experiment, scale = config["experiment"], config["scale"]["name"]
    if experiment == "custom":
        return {}
    task, unknown = _choice(experiment, config["task"]["dataset"], config["task"]["name"])
    if unknown:
        return {group: [name, None] for group, name in unknown.items()}
    grid = _grid(experiment) if scale == "paper" else {}
    given = _flat(config)

    def changes(*choices: str) -> dict[str, list[Any]]:
        expected = _own(experiment, task, config["settings"], scale, *choices)
        keys = sorted((given.keys() | expected.keys()) - {"seed"})
        changed = {key: [given.get(key), expected.get(key)] for key in keys if given.get(key) != expected.get(key)}
        return {key: both for key, both in changed.items() if both[0] not in grid.get(key, ())}

    of_the_experiment = changes()
    files = [[f"{key}={name}" for name in grid[key]] for key in grid if key != "task" and (CONF_DIR / key).is_dir()]
    swept = itertools.product(*files) if files and of_the_experiment else ()
    return {} if any(not changes(*choices) for choices in swept) else of_the_experiment


def unused_decoding(cfg: RunConfig) -> list[str]:
    """The keys of `decoding` that were changed although the task is answered with labels, which are written greedily.

    [] where the task is answered in texts, for an experiment or task that has no file, and for the configuration of a
    record from before `decoding`.
    """
    if generation_of(cfg.task, cfg.scale) is not None or not dataclasses.is_dataclass(cfg.decoding):
        return []
    if cfg.experiment == "custom":
        decoding = decoding_choice(cfg.decoding.name)
    else:
        task, unknown = _choice(cfg.experiment, cfg.task.dataset, cfg.task.name)
        if unknown:
            return []
        decoding = _composed(*_words(cfg.experiment, task, cfg.settings, cfg.scale.name)).decoding  # as `departures`
    expected = dataclasses.asdict(decoding)
    return [f"decoding.{key}" for key, value in dataclasses.asdict(cfg.decoding).items() if value != expected[key]]


@functools.lru_cache(maxsize=256)  # looking through conf/ takes as long as all the rest
def _choice(experiment: str, dataset: str, name: str) -> tuple[str, dict[str, str]]:
    """What follows `task=`, and the first of experiment and task that has no file."""
    task = task_choice(dataset, name)
    unknown = [(group, n) for group, n in (("experiment", experiment), ("task", task)) if n not in choices(group)]
    return task, dict(unknown[:1])


@functools.lru_cache(maxsize=256)
def _own(experiment: str, task: str, settings: str, scale: str, *choices: str) -> dict[str, Any]:
    return _flat(dataclasses.asdict(_composed(*_words(experiment, task, settings, scale), *choices)))


@functools.lru_cache(maxsize=256)
def _composed(*words: str) -> RunConfig:
    return compose_run(list(words))


def _words(experiment: str, task: str, settings: str, scale: str) -> list[str]:
    return [f"experiment={experiment}", f"task={task}", f"settings={settings}", f"scale={scale}"]


def swept_keys(experiment: str) -> set[str]:
    """What the experiment file's published sweep varies."""
    return set() if experiment == "custom" else set(_grid(experiment))


@functools.lru_cache(maxsize=64)
def _grid(experiment: str) -> dict[str, list[Any]]:
    """The values that the experiment file's published sweep names, by key."""
    file = OmegaConf.load(CONF_DIR / "experiment" / f"{experiment}.yaml")
    params = OmegaConf.select(file, "hydra.sweeper.params") or {}
    parse = OverridesParser.create().parse_override
    swept = {str(key): parse(f"{key}={value}") for key, value in params.items()}
    return {k: list(o.sweep_iterator(Transformer.identity)) for k, o in swept.items() if o.is_sweep_override()}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = flattened(scientific(config) | {"init_from": start(config) or {}})
    # Not in the identity, which has the weights themselves (and their type where it is not float32); but whose weights
    # they claim to be depends on these.
    claimed = {name: config["backbone"].get(name) for name in ("hub_id", "weights_sha256", "dtype")}
    return flat | {f"backbone.{name}": value for name, value in claimed.items()}


def flattened(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in part.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
