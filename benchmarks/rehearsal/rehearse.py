"""Acts on stand-ins: their runs, from configuration to record and report, what must be true of them, and a tally."""

import contextlib
import csv
import dataclasses
import io
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from ..config.init_from import parent_configs
from ..config.schema import RunConfig, is_control
from ..records.places import TABLES as TABLES_FOLDER
from ..records.store import predictions_path, read_record, record_path
from .acts import STEPS, Act, compose_act, layers_of, tasks_of
from .hub_cache import fill_cache, hub_cache
from .offline import no_network
from .standin_data import make_task
from .standins import make_backbone

Each = Callable[..., Iterable[Any]]  # `map`, or a pool's


def build_standins(cfgs: Sequence[RunConfig]) -> None:
    """The backbones and data that these runs, and their parents, read."""
    children = {(c.init_from.experiment, c.init_from.task, c.settings): c for c in cfgs if c.init_from is not None}
    everyone = [*cfgs, *(parent_configs(child)[0] for child in children.values())]
    everyone = [cfg for cfg in everyone if not cfg.scale.backbones]  # the others have what they need
    for cfg in {(cfg.backbone_dir, cfg.backbone.hub_id): cfg for cfg in everyone}.values():
        make_backbone(Path(cfg.backbone_dir or ""), cfg.backbone, layers_of(cfg))
    tasks = [(cfg.data_dir or "", task) for cfg in everyone for task in tasks_of(cfg)]
    for root, task in {(root, t.dataset, t.subset, *t.validation_splits): (root, t) for root, t in tasks}.values():
        make_task(Path(root), task)


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
            and all(task.hub_id for task in tasks_of(cfg))
            and cfg.backbone.pretrained
            and cfg.init_from is None
            and not is_control(cfg)
            and layers_of(cfg) == 1
        ):
            chosen.append(cfg)
    return chosen


def as_from_hub(cfg: RunConfig) -> RunConfig:
    """Without local folders; with another seed, since the run would be found done with the same one."""
    return dataclasses.replace(cfg, seed=cfg.seed + 1, backbone_dir=None, data_dir=None)


def check_report(results: Path, cfgs: Sequence[RunConfig]) -> list[str]:
    """Make the report of these results; what is wrong with it: a run it does not show, or a stand-in it compares."""
    from ..report import main as report
    from ..report.reference import paper_tables
    from ..report.table import read_tables

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = report.main(["--results", str(results)])
        except (ValueError, OSError) as error:
            return [f"peft-bench report: {error}"]
    if status:
        return [f"peft-bench report exits with {status}: {' '.join(output.getvalue().split())}"]
    tables = results / TABLES_FOLDER
    cells = [cell for table in paper_tables() for cell in _cells(tables / f"{table.name}.csv")]
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
    ours = [table for page in ("micro", "small", "texts") for table in read_tables(page) if table.scale == "small"]
    files = [tables / f"{table.name}.csv" for table in ours] if small else []
    done = {(c["experiment"], c["task"]) for file in files for c in _cells(file) if c["state"] == "done"}
    return problems + [f"no small table has a score of {name} on {task}" for name, task in sorted(small - done)]


def _in_curves(tables: Path) -> set[str]:
    """The experiments whose runs a curve at scale=paper shows."""
    from ..report.pages.curves import read_curves

    drawn = [curve for curve in read_curves() if (tables / f"paper_{curve.name}.csv").is_file()]
    return {name for curve in drawn for name in curve.experiments}


def _cells(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def perform_acts(acts: Sequence[Act], folder: Path, attempts: list[str], workers: int) -> int:
    """All of them, some again as from the hub, the report: a line each; 0 if everything passed, 1 if not.

    folder: of stand-ins, records and tables. attempts: where `no_network` lists what was reached for.
    """
    start = time.perf_counter()
    _quiet()
    tally, reached = Tally(), list[str]()
    with _shared_out(workers) as each:
        cfgs = dict(zip(acts, each(partial(compose_act, folder=folder), acts), strict=True))
        everyone = [cfg for group in cfgs.values() for cfg in group]
        build_standins(everyone)
        seconds = time.perf_counter() - start
        print(f"{len(everyone)} runs of {len(acts)} settings composed, stand-ins made: {seconds:.1f} s", flush=True)
        for (act, group), (problems, seconds, found) in zip(cfgs.items(), each(_watched, cfgs.values()), strict=True):
            tally.add(act.experiment, act.settings, len(group), problems, seconds)
            reached += found
        runs, problems, seconds, found = _again_from_hub(everyone, folder / "cache", each)
        tally.add("as from the hub", "", runs, problems, seconds)
        reached += found
    tally.check("report", check_report(folder / "results", everyone))
    tally.check("no network", [f"asked for {attempt}" for attempt in dict.fromkeys([*reached, *attempts])])
    print(f"{tally.passed} passed, {tally.failed} failed in {time.perf_counter() - start:.0f} s")
    return int(tally.failed > 0)


def _again_from_hub(cfgs: Sequence[RunConfig], cache: Path, each: Each) -> tuple[int, list[str], float, list[str]]:
    """One run of every backbone and task again, from a cache as the hub's: how many, and as `_watched`, of all."""
    local = one_of_each([cfg for cfg in cfgs if not cfg.scale.backbones])
    backbones = [(str(cfg.backbone_dir), cfg.backbone) for cfg in local]
    fill_cache(cache, backbones, [(str(cfg.data_dir), task) for cfg in local for task in tasks_of(cfg)])
    problems, seconds, reached = list[str](), 0.0, list[str]()
    for found, took, attempts in each(partial(_watched, cache=cache), [[as_from_hub(cfg)] for cfg in local]):
        problems, seconds, reached = problems + found, seconds + took, reached + attempts
    return len(local), problems, seconds, reached


@contextlib.contextmanager
def _shared_out(workers: int) -> Iterator[Each]:
    """`map` over this many processes; over this one, where `no_network` watches, with one worker."""
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet) as pool:
        yield pool.map


def _watched(group: list[RunConfig], cache: Path | None = None) -> tuple[list[str], float, list[str]]:
    """Of a group of runs: what is wrong, its seconds, and what it has tried to reach (if not in the first process).

    cache: take this one for the hub's.
    """
    with contextlib.nullcontext() if cache is None else hub_cache(cache):
        if multiprocessing.parent_process() is None:
            return (*perform(group), [])
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
