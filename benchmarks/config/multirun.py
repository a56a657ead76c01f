"""The override lists of the runs of a sweep: a named one (conf/sweep), an experiment's own, globs and ranges.

A sweep file lists multiruns; each is a list of Hydra overrides, sweeps included ("task=glob(glue/*)", "seed=range(5)").
"""

from collections.abc import Sequence
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf

from .compose import choices
from .schema import CONF_DIR


def expand(multirun: Sequence[str]) -> list[list[str]]:
    """The override lists of the single runs of one multirun, in Hydra's order."""
    parsed = OverridesParser.create().parse_overrides(expand_globs(multirun))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]


def expand_globs(overrides: Sequence[str]) -> list[str]:
    """`task=glob(glue/*)` becomes `task=glue/cola,glue/mnli,...`: Hydra's own glob does not look into subfolders and
    expands to nothing without a word."""
    expanded = []
    for word in overrides:
        # Hydra would take a name without a file for "no file".
        if word.startswith(("recipe=", "at=", "at@")):
            raise ValueError(f"{word}: it follows from experiment, task, settings and scale; change values one by one")
        if "=glob(" not in word:
            expanded.append(word)
            continue
        override = OverridesParser.create().parse_override(word)
        group, value = override.key_or_group, override.value()
        names = choices(group)
        chosen: list[str] = value.filter(names) if isinstance(value, Glob) else []
        if not chosen:
            raise ValueError(f"{word} matches nothing (conf/{group} has: {', '.join(names) or 'no such group'})")
        expanded.append(f"{group}={','.join(chosen)}")
    return expanded


def load_sweep(name: str) -> list[list[str]]:
    """The multiruns of conf/sweep/<name>.yaml."""
    path = CONF_DIR / "sweep" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ValueError(f"no sweep {name!r}: expected one of {known}, or a new file {path.name} in conf/sweep/")
    multiruns = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(multiruns, list) or not all(
        isinstance(multirun, list) and multirun and all(isinstance(word, str) for word in multirun)
        for multirun in multiruns
    ):
        raise ValueError(f"conf/sweep/{name}.yaml: expected a list of lists of Hydra overrides, each a text")
    return multiruns


def own_sweep(words: Sequence[str]) -> list[str]:
    """What the experiment file itself sweeps (tasks, grid, seeds), where the words name one experiment; some of it
    otherwise where its file of conf/at/ says so, since a scale may have other tasks and sizes."""
    named = dict(word.split("=", 1) for word in words if word.startswith(("experiment=", "scale=")))
    experiment, scale = named.get("experiment", ""), named.get("scale", "micro")
    if not (path := CONF_DIR / "experiment" / f"{experiment}.yaml").is_file():
        return []
    params: dict[str, Any] = {}
    for file in (path, CONF_DIR / "at" / scale / f"{experiment}.yaml"):
        if file.is_file():
            params |= OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {}
    return [f"{key}={value}" for key, value in params.items()]
