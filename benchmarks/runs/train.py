"""The training of an attached pack, from its checkpoint where there is one: progress, checkpoints, W&B."""

import logging
from collections.abc import Mapping
from typing import Any

from ..training import devices
from ..training.checkpoint import load_checkpoint
from ..training.loop import Run, train
from ..training.progress import Checkpointing, StepProgress
from .attach import Pack

log = logging.getLogger(__name__)


def train_pack(pack: Pack, machine: devices.Machine) -> list[Run]:
    """Train every run of the pack to its end, and measure the memory that it took."""
    cfg, ids = pack.runs[0].cfg, pack.run_ids
    checkpointing = Checkpointing(pack.checkpoint, ids, cfg.checkpoint_seconds)
    others = f" +{len(ids) - 1}" * (len(ids) > 1)
    progress = StepProgress(f"{cfg.experiment} {cfg.task.name} seed {cfg.seed}{others}", machine.show_progress)
    devices.reset_peak_memory(machine.accelerator.device)

    def resume(runs: list[Run]) -> None:
        if load_checkpoint(runs, ids, pack.checkpoint):
            log.info("resumed at step %d of %d", runs[0].position.step, runs[0].total_steps)

    def on_step(runs: list[Run]) -> None:
        progress(runs)
        if machine.accelerator.is_main_process:
            checkpointing(runs)

    def on_evaluation(run: Run, point: Mapping[str, Any]) -> None:
        pack.trackers[run.k].log(_flat(point), point["step"])

    runs = train(pack.attached, pack.jobs, machine.accelerator, on_step, resume, on_evaluation)
    progress.close()
    checkpointing.trained(runs)
    machine.peak_memory = devices.peak_memory(machine.accelerator.device)
    return runs


def _flat(point: Mapping[str, Any]) -> dict[str, float]:
    values = {key: point[key] for key in ("train_loss", "learning_rate", "epoch")}
    return values | {f"{split}/{m}": v for split, by_metric in point["scores"].items() for m, v in by_metric.items()}
