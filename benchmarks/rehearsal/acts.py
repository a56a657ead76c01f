"""What is rehearsed: every experiment file as runs of two steps, at scale=paper but for conf/rehearsal.yaml."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ..config.compose import compose_job
from ..config.multirun import expand
from ..config.schema import CONF_DIR, RunConfig, TaskConfig, generation_of

STEPS = 2
# Of these the first value of a sweep is seen.
ONE_VALUE = ("seed", "trainer.", "task.", "low_data", "start_words", "hand_written", "in_context")


@dataclass(frozen=True)
class Act:
    """One experiment file with one setting, and the Hydra overrides of each of its runs."""

    experiment: str
    settings: str
    jobs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Share:
    """What is rehearsed of the experiments that match one of the patterns: an entry of conf/rehearsal.yaml."""

    experiments: tuple[str, ...]
    scale: str = "paper"
    task: str = ""  # instead of the tasks of the sweep
    first: tuple[str, ...] = ()  # groups of which the first value is taken


def share_of(experiment: str) -> Share:
    """The first entry that matches, or all of the sweep at scale=paper."""
    matching = (share for share in _shares() if any(fnmatch.fnmatch(experiment, name) for name in share.experiments))
    return next(matching, Share((experiment,)))


@cache
def _shares() -> list[Share]:
    entries: list[dict[str, Any]] = yaml.safe_load((CONF_DIR / "rehearsal.yaml").read_text())
    for entry in entries:
        entry.update({name: tuple(value) for name, value in entry.items() if isinstance(value, list)})
    return [Share(**entry) for entry in entries]


def plan(patterns: Sequence[str] = ("*",), task: str = "*") -> list[Act]:
    """Every experiment file (or those that match a pattern), with settings paper, then script where a recipe exists.

    Of the file's own sweep, tasks, backbones and method sizes run in full, but for what conf/rehearsal.yaml leaves out;
    of trainer.*, task.*, prompts and seed the first value.
    """
    acts = []
    for file in sorted((CONF_DIR / "experiment").rglob("*.yaml")):
        experiment = file.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix()
        if not any(fnmatch.fnmatch(experiment, pattern) for pattern in patterns):
            continue
        params = yaml.safe_load(file.read_text()).get("hydra", {}).get("sweeper", {}).get("params", {})
        if "task" not in params:
            raise ValueError(f"{file} names no tasks; expected hydra.sweeper.params.task, as in its neighbors")
        values = {key: [job[0] for job in expand([f"{key}={value}"])] for key, value in params.items()}
        share = share_of(experiment)
        first = (*ONE_VALUE, *share.first)
        values = {key: v[:1] if key.startswith(first) else v for key, v in values.items()}
        if share.task:
            values["task"] = [f"task={share.task}"]
        values["task"] = [t for t in values["task"] if fnmatch.fnmatch(t.rpartition("/")[2], task)]
        scripts = CONF_DIR / "recipe" / "script" / experiment
        scripted = {f"task={p.relative_to(scripts).with_suffix('').as_posix()}" for p in scripts.rglob("*.yaml")}
        for settings, tasks in (
            ("paper", values["task"]),
            ("script", [t for t in values["task"] if t in scripted]),
        ):
            chosen = product(*(values | {"task": tasks}).values())
            jobs = tuple((f"experiment={experiment}", f"settings={settings}", *job) for job in chosen)
            if jobs:
                acts.append(Act(experiment, settings, jobs))
    if not acts:
        raise ValueError(
            f"no experiment matches {' '.join(patterns)} with task {task}; expected names as in conf/experiment/"
        )
    return acts


def compose_act(act: Act, folder: Path) -> list[RunConfig]:
    """The act's runs at their scale, cut to two steps; a parent (init_from) is cut in the same way."""
    scale = share_of(act.experiment).scale
    short = [f"trainer.max_steps={STEPS}"]
    places = [f"results_dir={folder / 'results'}", *([] if scale == "micro" else [f"data_dir={folder / 'data'}"])]
    cfgs = [compose_job([*job, f"scale={scale}", *short, *places]) for job in act.jobs]
    for cfg in cfgs:
        if generation_of(cfg.task, cfg.scale) is not None:
            cfg.decoding.max_new_tokens, cfg.decoding.min_new_tokens = 6, 0
        if scale == "small" and cfg.task.generation is not None:
            cfg.task.generation.train_rows = cfg.task.generation.validation_rows = None  # there are fewer
        if scale != "micro":
            cfg.trainer.eval_batch_size = cfg.decoding.batch_size = 4  # sorted by length: the long rows in few batches
            if cfg.trainer.eval_max_length == 0:  # 64 heads over all of a long text take a second
                cfg.trainer.eval_max_length = 128
            unpublished = "" if cfg.backbone.hub_id else f"_{cfg.backbone.name}"  # in backbone_dir itself: its own one
            cfg.backbone.other_shape = True
            cfg.backbone_dir = str(folder / "backbones" / f"layers_{layers_of(cfg)}{unpublished}")
        if cfg.init_from is not None:
            shape = [] if scale == "micro" else ["backbone.other_shape=true"]
            cfg.init_from = dataclasses.replace(cfg.init_from, seeds=[cfg.seed], overrides=[*short, *shape])
    return cfgs


def tasks_of(cfg: RunConfig) -> list[TaskConfig]:
    """The tasks whose data a run reads."""
    return [cfg.task, *cfg.transfer.values(), *cfg.mixture.values()]


def layers_of(cfg: RunConfig) -> int:
    """One layer and those that the method leaves out (AdapterDrop), or as many as it trains (FT-top2)."""
    return max(1 + int(cfg.method.get("skip_layers", 0)), int(cfg.method.get("layers", 1)))
