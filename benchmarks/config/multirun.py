"""Named sweeps: several Hydra multiruns as one, from conf/sweep/<name>.yaml, in local worker processes.

A sweep file lists multiruns; each is a list of Hydra overrides, sweeps included ("task=glob(glue/*)", "seed=range(5)").
"""

import argparse
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf

from ..runs.prepare import check_writable
from ..sweeps.display import summary
from .compose import choices
from .schema import CONF_DIR, RunConfig


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


_PLACES = ("results_dir=", "data_dir=", "backbone_dir=", "tracking")


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


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, as override lists, and how they are to be made."""

    name: str
    jobs: list[list[str]]
    workers: int
    pack: int | None
    budget: float | None  # seconds
    retry: bool
    launcher: list[str]  # words for Hydra's launcher; none: local processes


def read_arguments(verb: str, argv: Sequence[str], description: str) -> tuple[Sweep, argparse.Namespace]:
    """The arguments of `peft-bench sweep`, `plan` and `run -m`."""
    parser = argparse.ArgumentParser(prog=f"peft-bench {verb}", description=description)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="NAME | OVERRIDE",
        help="a file name in conf/sweep without .yaml (quickstart, ...), and Hydra overrides for every run, sweeps "
        "included: 'task=glob(glue/*)' 'seed=range(3)'. Also pack=8 (runs trained together; default: by device and "
        "memory), budget=2h (refuse what is predicted to take longer; s, m, h or d)",
    )
    workers = (
        "processes, of one thread each where there are several (a single one takes all, or $OMP_NUM_THREADS: set it "
        "to 1 where two sweeps share a machine); with GPUs one for each (default: the number of GPUs or cores)"
    )
    parser.add_argument("--workers", type=int, help=workers)
    parser.add_argument("--retry", action="store_true", help="begin runs that failed with a bug or diverged again, too")
    parser.add_argument("--calibrate", action="store_true", help="measure the speed of what has never run here first")
    options = parser.parse_intermixed_args(argv)
    words = list(options.words)
    name = words.pop(0) if "=" not in words[0] else ""
    own = dict.fromkeys(("pack", "budget"), "")
    for word in list(words):
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
            words.remove(word)
    launcher = [word for word in words if word.startswith(("hydra.", "hydra/"))]
    words = [word for word in words if word not in launcher]
    if wrong := [w for w in launcher if not w.startswith(("hydra/launcher=", "hydra.launcher.", "hydra.sweep.dir="))]:
        raise ValueError(
            f"{wrong[0]}: of Hydra's own keys a sweep takes hydra/launcher, hydra.launcher.*, hydra.sweep.dir"
        )
    multiruns = [[*multirun, *words] for multirun in load_sweep(name)] if name else [[*own_sweep(words), *words]]
    jobs = [job for multirun in multiruns for job in expand(multirun)]
    if not jobs:
        raise ValueError(f"{' '.join(words)}: these overrides name no run; give each sweep at least one value")
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers}: expected at least 1")
    sweep = Sweep(
        name or " ".join(word for word in words if not word.startswith(_PLACES)),
        jobs,
        options.workers or _default_workers(words),
        _number("pack", own["pack"]),
        _seconds(own["budget"]),
        options.retry,
        launcher,
    )
    return sweep, options


def _number(key: str, text: str) -> int | None:
    if text and (not text.isdecimal() or int(text) < 1):
        raise ValueError(f"{key}={text}: expected a number of at least 1")
    return int(text) if text else None


def _seconds(text: str) -> float | None:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        raise ValueError(f"budget={text}: expected a number with its unit, such as 90m, 2h or 1.5d")
    return float(match[1]) * units[match[2]]


def _default_workers(words: Sequence[str]) -> int:
    import torch

    gpus = 0 if "device=cpu" in words else torch.cuda.device_count()
    return gpus or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else gpus or os.cpu_count() or 1


def main(argv: Sequence[str], verb: str = "sweep") -> int:
    """`peft-bench sweep NAME [overrides]`, and `peft-bench run -m OVERRIDES`."""
    sweep, options = read_arguments(
        verb,
        argv,
        "Make all runs of a sweep in local worker processes, or with hydra/launcher=slurm on a cluster. Runs that are "
        "done are left out, so the same command continues an interrupted sweep; several machines may run it at once.",
    )
    from ..sweeps.forecast import check_budget, plan_text, write_plan
    from ..sweeps.plan import make_plan
    from ..sweeps.workers import LocalPool, run_all
    from .many import compose_all

    start = time.monotonic()
    cluster = None
    if sweep.launcher:
        from ..sweeps.slurm import launcher_pool

        cluster = launcher_pool(sweep.launcher)
    cfgs = compose_all(sweep.jobs)
    for folder in {cfg.results_dir for cfg in cfgs}:
        check_writable(folder)
    plan = make_plan(cfgs, sweep.pack, sweep.workers, sweep.retry)
    print(plan_text(sweep.name, plan, sweep.workers), flush=True)
    if sweep.budget is not None:
        check_budget(plan, sweep.budget, sweep.workers, options.calibrate)
    write_plan(sweep.name, plan)
    done = sum(cell.state == "done" for cell in plan.cells)
    if cluster is not None:
        lines = run_all(cfgs, plan, cluster, sweep.workers, sweep.pack, sweep.retry)
    else:
        pool = LocalPool(sweep.workers, gpus_for(cfgs))
        ended = False
        try:
            lines = run_all(cfgs, plan, pool, sweep.workers, sweep.pack, sweep.retry)
            ended = True
        finally:
            pool.close(now=not ended)
    print(summary(lines, done, time.monotonic() - start))
    return int(any(line.status in ("failed", "skipped") for line in lines))


def gpus_for(cfgs: Sequence[RunConfig]) -> int:
    """GPUs that these runs may use."""
    from ..sweeps.packs import uses_gpu

    if not any(uses_gpu(cfg) for cfg in cfgs):
        return 0
    import torch

    return torch.cuda.device_count()


def plan_main(argv: Sequence[str]) -> int:
    """`peft-bench plan NAME [overrides]`."""
    sweep, options = read_arguments(
        "plan",
        argv,
        "Say what a sweep has to do, without doing it: its runs by state, the packs, and the time, memory and disk "
        "that records of like runs and short calibrations predict. --workers: how many devices share the work.",
    )
    from ..sweeps.forecast import check_budget, costs_text, plan_text, write_plan
    from ..sweeps.plan import make_plan
    from .many import compose_all

    plan = make_plan(compose_all(sweep.jobs), sweep.pack, sweep.workers, sweep.retry)
    print(plan_text(sweep.name, plan, sweep.workers))
    print(costs_text(plan, sweep.workers, options.calibrate))
    write_plan(sweep.name, plan)
    if sweep.budget is not None:
        check_budget(plan, sweep.budget, sweep.workers, options.calibrate)
    return 0
