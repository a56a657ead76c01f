"""The verbs `sweep` and `plan`, and `run -m`: read the words, plan the runs, make them or say what they will take."""

import argparse
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..config.many import compose_all
from ..config.multirun import expand, load_sweep, own_sweep
from ..config.schema import RunConfig
from ..runs.prepare import check_writable
from .display import summary

_PLACES = ("results_dir=", "data_dir=", "backbone_dir=", "tracking")


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


def main(argv: Sequence[str]) -> int:
    """`peft-bench sweep NAME [overrides]`."""
    return _sweep("sweep", argv)


def multirun(argv: Sequence[str]) -> int:
    """`peft-bench run -m OVERRIDES`: the same."""
    return _sweep("run -m", [word for word in argv if word not in ("-m", "--multirun")])


def _sweep(verb: str, argv: Sequence[str]) -> int:
    """0, or 1 where a run failed or was not begun."""
    sweep, options = read_arguments(
        verb,
        argv,
        "Make all runs of a sweep in local worker processes, or with hydra/launcher=slurm on a cluster. Runs that are "
        "done are left out, so the same command continues an interrupted sweep; several machines may run it at once.",
    )
    from .forecast import check_budget, plan_text, write_plan
    from .launchers import launcher_pool
    from .plan import make_plan
    from .workers import LocalPool, run_all

    start = time.monotonic()
    cluster = launcher_pool(sweep.launcher) if sweep.launcher else None
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
        pool = LocalPool(sweep.workers, _gpus(cfgs))
        ended = False
        try:
            lines = run_all(cfgs, plan, pool, sweep.workers, sweep.pack, sweep.retry)
            ended = True
        finally:
            pool.close(now=not ended)
    print(summary(lines, done, time.monotonic() - start))
    return int(any(line.status in ("failed", "skipped") for line in lines))


def plan(argv: Sequence[str]) -> int:
    """`peft-bench plan NAME [overrides]`."""
    sweep, options = read_arguments(
        "plan",
        argv,
        "Say what a sweep has to do, without doing it: its runs by state, the packs, and the time, memory and disk "
        "that records of like runs and short calibrations predict. --workers: how many devices share the work.",
    )
    from .forecast import check_budget, costs_text, plan_text, write_plan
    from .plan import make_plan

    plan = make_plan(compose_all(sweep.jobs), sweep.pack, sweep.workers, sweep.retry)
    print(plan_text(sweep.name, plan, sweep.workers))
    print(costs_text(plan, sweep.workers, options.calibrate))
    write_plan(sweep.name, plan)
    if sweep.budget is not None:
        check_budget(plan, sweep.budget, sweep.workers, options.calibrate)
    return 0


def _gpus(cfgs: Sequence[RunConfig]) -> int:
    """GPUs that these runs may use."""
    from .packs import uses_gpu

    if not any(uses_gpu(cfg) for cfg in cfgs):
        return 0
    import torch

    return torch.cuda.device_count()
