"""The start from another task's module (`init_from`): which parent, found or trained first, and what carries over."""

import copy
import dataclasses
import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from peft_methods.attached import Attached
from peft_methods.state import copy_trained, read_safetensors

from ..config.compose import compose_job
from ..config.fields import NUMERICS, PLACE, names
from ..config.schema import InitFromConfig, RunConfig
from ..records.places import TRAINED


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
    for name in ("_target_", "rank", "targets", "bottleneck_dim"):  # what gives the tensors their shapes
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


def pick_parent(scores: dict[str, float]) -> str:
    """The run id with the highest validation score; ties go to the earlier seed (the order of the dictionary)."""
    return max(scores, key=lambda run_id: scores[run_id])


def start_from(attached: Attached, k: int, parent: Path, head_dense: bool) -> None:
    """Copy the parent's method tensors into run k, and the head's dense layer if asked; never the output layer."""
    tensors, _ = read_safetensors(parent)
    for prefix in ["sites.", "backbone."] + (["head.dense."] if head_dense else []):
        copy_trained(attached, tensors, k, only=prefix)


def trained_path(cfg: RunConfig, run_id: str) -> Path:
    """Where a run's selected checkpoint lies: what its children start from."""
    return Path(cfg.results_dir) / TRAINED / cfg.experiment / f"{run_id}.safetensors"


def is_whole(trained: Path) -> bool:
    """Whether the trained tensors are there in full: records travel, tensors may not, and a copy may be cut short."""
    try:
        with safe_open(trained, framework="pt"):  # compares the header with the length of the file
            return True
    except (OSError, SafetensorError):
        return False


def parent_of(cfg: RunConfig, score_of: Callable[[RunConfig], tuple[str, float]]) -> str:
    """The run id of the parent; `score_of` finds or makes one candidate's run and gives its id and validation score."""
    return pick_parent(dict(score_of(parent) for parent in parent_configs(cfg)))


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
