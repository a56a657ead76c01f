"""`peft-bench rehearse`: every experiment at scale=paper for two steps, offline, on stand-ins in hub layout.

What a user with a GPU and the hub will run (composition with the published recipe, loading, tokenizing at the
published length, training, evaluation, record, report) is executed for every experiment file and each of its tasks,
with the paper's settings and, where conf/recipe/script has them, the script's. They read local folders; some runs are
then repeated as if the hub had been used, from its cache. The scores mean nothing; that each run is recorded, and the
report made, without one attempt to reach a network, is what is checked.
"""

import argparse
import contextlib
import csv
import dataclasses
import fnmatch
import io
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from ..config.compose import compose_job
from ..config.multirun import expand
from ..config.schema import CONF_DIR, RunConfig, TaskConfig, generation_of, is_control
from ..records.store import predictions_path, read_record, record_path
from .offline import OFFLINE, no_network

STEPS = 2


@dataclass(frozen=True)
class Act:
    """One experiment file with one setting, and the Hydra overrides of each of its runs."""

    experiment: str
    settings: str
    jobs: tuple[tuple[str, ...], ...]


# Experiments on the tasks of prompt_tuning/table3, which sees every one; and those of them that see every backbone.
EVERY_BACKBONE = {f"prompt_tuning/{name}" for name in ("size", "model_tuning", "lm_steps", "in_context_gpt2")}
PROMPT_ABLATIONS = EVERY_BACKBONE | {
    f"prompt_tuning/{name}"
    for name in ("multitask_model_tuning", "length", "init", "pretraining", "optimizer", "in_context")
}


def plan(patterns: Sequence[str] = ("*",), task: str = "*") -> list[Act]:
    """Every experiment file (or those that match a pattern), with settings paper, then script where a recipe exists.

    Of the file's own sweep, tasks and method sizes run in full (PROMPT_ABLATIONS: one task, and one backbone where
    another experiment has all); of trainer.*, task.*, prompts and seed the first value.
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
        first = ("seed", "trainer.", "task.", "start_words", "hand_written", "in_context")
        values = {key: v[:1] if key.startswith(first) else v for key, v in values.items()}
        if experiment.startswith("grid/"):
            values["task"] = values["task"][:1]  # at micro scale, where every task is seen elsewhere
        if experiment in PROMPT_ABLATIONS:
            values["task"] = ["task=super_glue/cb"]  # the quickest
            if experiment not in EVERY_BACKBONE and "backbone" in values:
                values["backbone"] = values["backbone"][:1]
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
    """The act's runs, cut to two steps; a parent (init_from) is cut in the same way.

    At scale=paper; the experiments in the folders small/ and grid/ are in no paper, theirs are small and micro.
    """
    scale = {"small": "small", "grid": "micro"}.get(act.experiment.partition("/")[0], "paper")
    short = [f"trainer.max_steps={STEPS}"]
    places = [f"results_dir={folder / 'results'}", *([] if scale == "micro" else [f"data_dir={folder / 'data'}"])]
    cfgs = [compose_job([*job, f"scale={scale}", *short, *places]) for job in act.jobs]
    for cfg in cfgs:
        whole = cfg.backbone.model_type == "t5" and scale != "micro"  # texts: attention over 700 words and a prompt
        if whole:
            cfg.trainer.eval_batch_size = 1
        if generation_of(cfg.task, cfg.scale) is not None:
            cfg.decoding.max_new_tokens, cfg.decoding.min_new_tokens = 6, 0
            cfg.decoding.batch_size = 1 if whole else cfg.decoding.batch_size
        if scale == "small" and cfg.task.generation is not None:
            cfg.task.generation.train_rows = cfg.task.generation.validation_rows = None  # there are fewer
        if scale != "micro":
            unpublished = "" if cfg.backbone.hub_id else f"_{cfg.backbone.name}"  # in backbone_dir itself: its own one
            cfg.backbone_dir = str(folder / "backbones" / f"layers_{_layers(cfg)}{unpublished}")
        if cfg.init_from is not None:
            cfg.init_from = dataclasses.replace(cfg.init_from, seeds=[cfg.seed], overrides=short)
    return cfgs


def build_standins(cfgs: Sequence[RunConfig]) -> None:
    """The backbones and data that these runs, and their parents, read."""
    from ..config.init_from import parent_configs
    from .standins import make_backbone, make_task

    children = {(c.init_from.experiment, c.init_from.task, c.settings): c for c in cfgs if c.init_from is not None}
    everyone = [*cfgs, *(parent_configs(child)[0] for child in children.values())]
    everyone = [cfg for cfg in everyone if not cfg.scale.backbones]  # the others have what they need
    for cfg in {(cfg.backbone_dir, cfg.backbone.hub_id): cfg for cfg in everyone}.values():
        make_backbone(Path(cfg.backbone_dir or ""), cfg.backbone, _layers(cfg))
    tasks = [(cfg.data_dir or "", task) for cfg in everyone for task in _tasks(cfg)]
    for root, task in {(root, t.dataset, t.subset, *t.validation_splits): (root, t) for root, t in tasks}.values():
        make_task(Path(root), task)


def _tasks(cfg: RunConfig) -> list[TaskConfig]:
    return [cfg.task, *cfg.transfer.values(), *cfg.mixture.values()]


def _layers(cfg: RunConfig) -> int:
    """One layer and those that the method leaves out (AdapterDrop), or as many as it trains (FT-top2)."""
    return max(1 + int(cfg.method.get("skip_layers", 0)), int(cfg.method.get("layers", 1)))


def rehearse(cfg: RunConfig) -> list[str]:
    """One run, from configuration to record; what is wrong with the record, nothing if it is as it must be."""
    from ..runs.run import How, run

    outcome = run(cfg, How(show_progress=False))
    if outcome.status == "failed":
        return [f"failed: {outcome.message}"]
    record = read_record(record_path(cfg.results_dir, cfg.experiment, outcome.run_id))
    control = is_control(cfg) or not cfg.trainer.epochs
    scored = {(s["split"], s["checkpoint"], s["metric"]) for s in record["scores"]}
    wanted = set(product(cfg.task.validation_splits, ("best", "last"), cfg.task.metrics))
    steps = [point["step"] for point in record["history"]]
    checks = {
        f"status is {record['status']}": record["status"] == "done",
        f"no score for {sorted(wanted - scored)}": wanted <= scored,
        f"trained for steps {steps}, expected {STEPS}": control or max(steps, default=0) == STEPS,
        "no parameter trained": control or record["params"]["method"] + record["params"]["head"] > 0,
        f"{len(record['parents'])} parents": (cfg.init_from is not None) == bool(record["parents"]),
        "no predictions": predictions_path(cfg.results_dir, cfg.experiment, outcome.run_id).is_file(),
        f"recorded as {record['settings']}, {record['scale']}": (record["settings"], record["scale"])
        == (cfg.settings, cfg.scale.name),
    }
    return [problem for problem, fine in checks.items() if not fine]


def one_of_each(cfgs: Sequence[RunConfig]) -> list[RunConfig]:
    """Runs that read, between them, every backbone and every task."""
    chosen: list[RunConfig] = []
    for cfg in cfgs:
        new = cfg.backbone not in [c.backbone for c in chosen] or cfg.task not in [c.task for c in chosen]
        if (
            new
            and cfg.backbone.hub_id
            and all(task.hub_id for task in _tasks(cfg))
            and cfg.backbone.pretrained
            and cfg.init_from is None
            and not is_control(cfg)
            and _layers(cfg) == 1
        ):
            chosen.append(cfg)
    return chosen


def as_from_hub(cfg: RunConfig) -> RunConfig:
    """Without local folders; with another seed, since the run would be found done with the same one."""
    return dataclasses.replace(cfg, seed=cfg.seed + 1, backbone_dir=None, data_dir=None)


def check_report(results: Path, cfgs: Sequence[RunConfig]) -> list[str]:
    """Make the report of these results; what is wrong with it: a run it does not show, or a stand-in it compares."""
    from ..cli import main as command
    from ..report.reference import TABLES

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = command(["report", "--results", str(results)])
    if status:
        return [f"peft-bench report exits with {status}: {' '.join(output.getvalue().split())}"]
    tables = results / "tables"
    cells = [cell for name in TABLES for cell in _cells(tables / f"{name}.csv")]
    problems, printed = [], {cell["experiment"] for cell in cells}
    made = {(cfg.experiment, cfg.task.name) for cfg in cfgs if cfg.settings == "paper" and cfg.scale.name == "paper"}
    for cell in cells:
        if cell["rule"] == "majority_vote":  # made by `peft-bench ensemble`
            continue
        if (cell["experiment"], cell["task"]) in made and not cell["reason"].startswith("not comparable"):
            where = f"{cell['experiment']}, {cell['column']}"
            problems.append(f"{where} says {cell['reason'] or cell['difference']!r}, expected 'not comparable (...)'")
    index = (tables / "README.md").read_text()
    others = {experiment for experiment, _ in made} - printed - _in_curves(tables)
    problems += [f"README.md does not name {name}" for name in sorted(others) if f"{name} (paper)" not in index]
    small = {(cfg.experiment, cfg.task.name) for cfg in cfgs if cfg.scale.name == "small"}
    files = [tables / f"{name}.csv" for name in ("small", "small_e2e", "small_prompt_tuning")] if small else []
    done = {(c["experiment"], c["task"]) for file in files for c in _cells(file) if c["state"] == "done"}
    return problems + [f"no small table has a score of {name} on {task}" for name, task in sorted(small - done)]


def _in_curves(tables: Path) -> set[str]:
    """The experiments whose runs a curve at scale=paper shows."""
    from ..report.pages.curves import CURVES

    drawn = [curve for curve in CURVES if (tables / f"paper_{curve.name}.csv").is_file()]
    return {name for curve in drawn for name in curve.experiments}


def _cells(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """The verb. 0 if everything passed, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="peft-bench rehearse",
        description=f"Run experiments at scale=paper for {STEPS} steps, offline, on stand-ins of the published "
        "backbones and data; those of the grid at scale=micro, one task each.",
    )
    parser.add_argument("experiments", nargs="*", help="names or patterns of experiments ('lora/*'); all without any")
    parser.add_argument("--task", default="*", help="a task name or pattern (rte); all without it")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the experiments (1)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave stand-ins, records and tables in this new folder"
    )
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: expected 1 or more")
    os.environ.update(OFFLINE)  # for what is imported below; cli.py does it for what is imported above
    acts = plan(options.experiments or ["*"], options.task)
    with contextlib.ExitStack() as stack:
        if options.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peft-bench-rehearsal-")))
        else:
            options.keep.mkdir(parents=True)
            folder = options.keep.resolve()
        attempts = stack.enter_context(no_network())
        return _perform(acts, folder, attempts, options.workers)


def _perform(acts: Sequence[Act], folder: Path, attempts: list[str], workers: int) -> int:
    start = time.perf_counter()
    _quiet()
    cfgs = {act: compose_act(act, folder) for act in acts}
    everyone = [cfg for group in cfgs.values() for cfg in group]
    build_standins(everyone)
    print(
        f"{len(everyone)} runs of {len(acts)} settings composed, stand-ins made: {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    tally, reached = Tally(), list[str]()
    for (act, group), (problems, seconds, found) in zip(cfgs.items(), _performed(cfgs.values(), workers), strict=True):
        tally.add(act.experiment, act.settings, len(group), problems, seconds)
        reached += found
    from .standins import hub_cache

    local = one_of_each([cfg for cfg in everyone if not cfg.scale.backbones])
    backbones = [(str(cfg.backbone_dir), cfg.backbone) for cfg in local]
    tasks = [(str(cfg.data_dir), task) for cfg in local for task in _tasks(cfg)]
    with hub_cache(folder / "cache", backbones, tasks):
        problems, seconds = perform([as_from_hub(cfg) for cfg in local])
        tally.add("as from the hub", "", len(local), problems, seconds)
    tally.check("report", check_report(folder / "results", everyone))
    tally.check("no network", [f"asked for {attempt}" for attempt in dict.fromkeys([*reached, *attempts])])
    print(f"{tally.passed} passed, {tally.failed} failed in {time.perf_counter() - start:.0f} s")
    return int(tally.failed > 0)


def _performed(groups: Iterable[list[RunConfig]], workers: int) -> Iterator[tuple[list[str], float, list[str]]]:
    """Of each group, in order: what is wrong, its seconds, and what it has tried to reach (if not in this process)."""
    if workers == 1:  # here, where `no_network` watches
        yield from ((*perform(group), []) for group in groups)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        yield from pool.map(_perform_watched, groups)


def _perform_watched(group: list[RunConfig]) -> tuple[list[str], float, list[str]]:
    with no_network() as attempts:
        return (*perform(group), [*attempts])


def perform(cfgs: Sequence[RunConfig]) -> tuple[list[str], float]:
    """Rehearse a group of runs: a line for each that has problems, and the seconds."""
    start = time.perf_counter()
    problems = [f"    {_title(cfg)}: {'; '.join(found)}" for cfg in cfgs if (found := _problems_of(cfg))]
    return problems, time.perf_counter() - start


@dataclass
class Tally:
    """Counts, and a line for each thing counted."""

    passed: int = 0
    failed: int = 0

    def add(self, name: str, settings: str, runs: int, problems: Sequence[str], seconds: float) -> None:
        """A group of runs."""
        done = runs - len(problems)
        line = f"{name:44} {settings:7} {done:3} passed {len(problems):3} failed {seconds:6.1f} s"
        print(line, *problems, sep="\n", flush=True)
        self.passed, self.failed = self.passed + done, self.failed + len(problems)

    def check(self, what: str, problems: Sequence[str]) -> None:
        """One check of the whole."""
        print(f"{what}: {'; '.join(problems) or 'passed'}", flush=True)
        self.passed, self.failed = self.passed + (not problems), self.failed + bool(problems)


def _title(cfg: RunConfig) -> str:
    return f"{cfg.experiment} task={cfg.task.name} settings={cfg.settings} learning_rate={cfg.trainer.learning_rate}"


def _problems_of(cfg: RunConfig) -> list[str]:
    try:
        return rehearse(cfg)
    except Exception as error:  # the next experiment is rehearsed all the same
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return [f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"]


def _quiet() -> None:
    """Several hundred loads: no bars, and no list of the pretraining heads that are left out each time."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
