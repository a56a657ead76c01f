"""The start from another task's module (`init_from`): which runs may be the parent, and the command that makes them."""

import copy
import dataclasses
import functools
import re
import shlex

from .compose import compose_job
from .fields import NUMERICS, PLACE, names
from .schema import InitFromConfig, RunConfig


def parent_configs(cfg: RunConfig) -> list[RunConfig]:
    """The configurations of every possible parent: the one of the same seed, or one per seed of `init_from.seeds`.

    A parent is its own experiment's run on the parent task, with its own recipe; only places and the scale carry over.
    """
    init = _checked(cfg.init_from)
    seeds = [cfg.seed] if init.parent == "same_seed" else init.seeds
    choices = [
        f"experiment={init.experiment}",
        f"task={init.task}",
        f"settings={cfg.settings}",
        f"scale={cfg.scale.name}",
    ]
    first = _composed(*choices, *init.overrides)
    if first.init_from is not None:
        raise ValueError(f"init_from: the parent {init.experiment} on {init.task} starts from a parent itself")
    # What gives the tensors their shapes, and those that are drawn and never saved their values (VeRA).
    for name in ("_target_", "rank", "targets", "bottleneck_dim", "projection_seed"):
        if first.method.get(name) != cfg.method.get(name):
            raise ValueError(
                f"init_from: this run has method.{name}={cfg.method.get(name)}, its parent {first.method.get(name)}; "
                f"give the parent the same: 'init_from.overrides=[\"method.{name}={cfg.method.get(name)}\"]'"
            )
    places = {name: getattr(cfg, name) for name in names(RunConfig, PLACE, NUMERICS) - {"force"}}
    first = dataclasses.replace(first, tracking=cfg.tracking, **places)
    return [dataclasses.replace(copy.deepcopy(first), seed=seed) for seed in seeds]


@functools.lru_cache(maxsize=64)  # once for all seeds
def _composed(*words: str) -> RunConfig:
    return compose_job(list(words))


def command(cfg: RunConfig, init: InitFromConfig) -> str:
    """The exact command that trains the missing parent or parents, quoted for a shell."""
    seeds = str(cfg.seed) if init.parent == "same_seed" else ",".join(map(str, init.seeds))
    places = {n: getattr(cfg, n) for n in ("data_dir", "backbone_dir", "results_dir")}
    words = ["peft-bench", "run", *(["-m"] if "," in seeds else [])]
    words += [f"experiment={init.experiment}", f"task={init.task}", f"scale={cfg.scale.name}"]
    words += [f"settings={cfg.settings}", f"seed={seeds}"]
    words += [f"{n}={_hydra_value(value)}" for n, value in places.items() if value is not None]
    return shlex.join([*words, *init.overrides])


def _hydra_value(path: str) -> str:
    """A path as Hydra's command line reads it: in quotes if it has characters with a meaning there."""
    if re.fullmatch(r"[\w./~:@%?|+-]+", path):
        return path
    # A backslash means itself there, except before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), path) + "'"


def _checked(init: InitFromConfig | None) -> InitFromConfig:
    if init is None:
        raise ValueError("this run has no init_from")
    for name, value, known in (
        ("parent", init.parent, ("same_seed", "best")),
        ("if_missing", init.if_missing, ("train", "error")),
    ):
        if value not in known:
            raise ValueError(f"init_from.{name}={value!r}: expected {' or '.join(known)}")
    if init.parent == "best" and not init.seeds:
        raise ValueError("init_from.seeds is empty: name the seeds among which the best parent is chosen")
    return init
