"""What runs will take: seconds, memory and disk, from records of like runs and from short calibrations.

A run is like another if backbone, method, task and device are the same; its seconds per optimizer step and per
evaluated example carry over. Where there is no such record, a calibration (a few steps and one evaluation, kept in
results/calibrations.json) gives them; without either nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..config.schema import RunConfig, is_control
from ..records.files import write_files
from ..records.places import CALIBRATIONS
from ..records.schema import Record
from ..records.store import iter_records, read_record, record_path
from ..tasks.examples import TaskData
from ..tasks.loading import load_task
from .packs import footprint, memory_bytes

CALIBRATION_STEPS = 12
_PER_PREDICTION = 4.0  # bytes of a compressed prediction with its label, measured on the micro records
_SHAPE = {"batch_size", "max_length", "precision"}  # of the trainer: what the seconds of a step depend on
_PER_RECORD = 12_000.0  # bytes of a record: mostly its history


@dataclass(frozen=True)
class Rate:
    """Seconds per optimizer step and per evaluated example of one run alone; peak bytes of its process."""

    step: float
    example: float
    memory: int | None = None


@dataclass(frozen=True)
class Cost:
    """What one run will take. seconds: None where nothing like it has run."""

    seconds: float | None
    memory: int
    disk: int


class Costs:
    """Rates of what has run here before; `of` predicts a run."""

    def __init__(self, results_dirs: Iterable[str], device: str):
        self.device = device
        self.rates: dict[str, Rate] = {}
        for folder in results_dirs:
            found: dict[str, list[Rate]] = {}
            for record in iter_records(folder):
                if isinstance(record, dict) and (entry := _rate_of(record)) is not None and entry[1] == device:
                    found.setdefault(entry[0], []).append(entry[2])
            self.rates |= _read_calibrations(Path(folder), device)
            self.rates |= {like: _median(rates) for like, rates in found.items()}

    def of(self, cfg: RunConfig) -> Cost:
        """The cost of one run."""
        data = load_task(cfg.task, cfg.scale, cfg.data_dir)
        evaluated = sum(len(y) for split, y in data.labels.items() if split != cfg.task.train_split)
        disk = int(_PER_RECORD + _PER_PREDICTION * evaluated)
        if is_control(cfg):
            return Cost(1.0, 0, disk)
        rate = self.rates.get(like(cfg))
        disk += footprint(cfg).stored * 4
        memory = max(memory_bytes(cfg), (rate.memory or 0) if rate else 0)
        if rate is None:
            return Cost(None, memory, disk)
        steps, examples = _work(cfg, data)
        return Cost(steps * rate.step + examples * rate.example, memory, disk)


def like(cfg: RunConfig) -> str:
    """Equal for runs whose seconds per step can be told from each other's."""
    config = {"method": cfg.method, "trainer": dataclasses.asdict(cfg.trainer)}
    return _like(cfg.backbone.name, cfg.scale.name, cfg.task.name, config)


def _like(backbone: str, scale: str, task: str, config: Mapping[str, Any]) -> str:
    trainer = config["trainer"]
    shape = [trainer[name] for name in sorted(_SHAPE)]
    return json.dumps([backbone, scale, task, config["method"]["_target_"].rpartition(".")[2], *shape])


def _work(cfg: RunConfig, data: TaskData) -> tuple[int, int]:
    """Optimizer steps, and examples evaluated along the way and at the end (last and best checkpoint)."""
    trainer, task = cfg.trainer, cfg.task
    per_epoch = math.ceil(len(data.labels[task.train_split]) / trainer.batch_size)
    steps = min(trainer.epochs * per_epoch, trainer.max_steps or math.inf)
    evaluations = math.ceil(steps / (trainer.evaluate_every_steps or per_epoch))
    validation = sum(len(data.labels[split]) for split in task.validation_splits)
    everything = sum(len(y) for split, y in data.labels.items() if split != task.train_split)
    return int(steps), evaluations * validation + 2 * everything


def _rate_of(record: Record) -> tuple[str, str, Rate] | None:
    """Likeness, device and rate of a finished run; None for a control and for what was not measured."""
    if record["status"] != "done":
        return None
    cost, history = record["cost"], record["history"]
    if not history or not cost.get("train_seconds"):
        return None
    config, numerics, rows = record["config"], record["numerics"], record["data"]["rows"]
    task = config["task"]
    if not {"validation_splits", "train_split"} <= task.keys() or not config["trainer"].keys() >= _SHAPE:
        return None  # made by hand
    validation = sum(rows.get(split, 0) for split in task["validation_splits"])
    everything = sum(n for split, n in rows.items() if split != task["train_split"])
    examples = len(history) * validation + 2 * everything
    # a pack's seconds stand in each of its runs, evaluations only in their own
    step = (cost["train_seconds"] or 0.0) / numerics["pack"] / max(1, history[-1]["step"])
    rate = Rate(step, (cost.get("eval_seconds") or 0.0) / max(1, examples), cost.get("peak_memory_bytes"))
    name = _like(config["backbone"]["name"], record["scale"], config["task"]["name"], config)
    return name, device_name(numerics), rate


def device_name(numerics: Mapping[str, Any]) -> str:
    """What rates belong to: a device, and on a CPU its threads."""
    return numerics["device_name"] + (f" x{numerics['threads']}" if numerics["device"] == "cpu" else "")


def _median(rates: Sequence[Rate]) -> Rate:
    middle = sorted(rates, key=lambda rate: rate.step)[len(rates) // 2]
    return dataclasses.replace(middle, memory=max((rate.memory or 0 for rate in rates), default=0) or None)


def _read_calibrations(folder: Path, device: str) -> dict[str, Rate]:
    try:
        stored = orjson.loads((folder / CALIBRATIONS).read_bytes())
        return {name: Rate(**rate) for name, rate in stored.get(device, {}).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none, or one of another version: measured again
        return {}


def calibrate(cfgs: Sequence[RunConfig], costs: Costs) -> int:
    """Measure one run of every likeness that has no rate yet; returns how many. The runs leave no records."""
    from ..runs.run import How, run

    missing = {like(cfg): cfg for cfg in reversed(cfgs) if not is_control(cfg) and like(cfg) not in costs.rates}
    for name, cfg in missing.items():
        with tempfile.TemporaryDirectory(prefix="peft-bench-calibration-") as folder:
            trainer = dataclasses.replace(
                cfg.trainer, max_steps=CALIBRATION_STEPS, evaluate_every_steps=CALIBRATION_STEPS
            )
            tracking = dataclasses.replace(cfg.tracking, mode="disabled")
            short = dataclasses.replace(
                cfg, trainer=trainer, tracking=tracking, results_dir=folder, init_from=None, force=True
            )
            outcome = run(short, How(show_progress=False))
            if outcome.status != "done":
                raise ValueError(f"the calibration of {cfg.experiment} on {cfg.task.name} failed: {outcome.message}")
            found = _rate_of(read_record(record_path(folder, cfg.experiment, outcome.run_id)))
        if found is not None:
            costs.rates[name] = found[2]
            _keep(Path(cfg.results_dir), found[1], name, found[2])
    return len(missing)


def _keep(folder: Path, device: str, name: str, rate: Rate) -> None:
    path = folder / CALIBRATIONS
    try:
        stored = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        stored = {}
    stored.setdefault(device, {})[name] = dataclasses.asdict(rate)
    write_files({path: json.dumps(stored, indent=1).encode() + b"\n"})


def total_seconds(seconds: Sequence[float], devices: int) -> float:
    """The end of a list of packs that `devices` workers take one after another."""
    ends = [0.0] * devices
    for each in seconds:
        ends[ends.index(min(ends))] += each
    return max(ends)
