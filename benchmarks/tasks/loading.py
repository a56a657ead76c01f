"""All that a run reads of its tasks, checked.

Nothing is repaired: a row that cannot be trained on or scored stops the run before training, by its number (from 0).
"""

import dataclasses
import hashlib
from typing import Any

from ..config.schema import InContextConfig, RunConfig, ScaleConfig, TaskConfig, generation_of, others_of
from .examples import PARTS, DataError, TaskData
from .labelled import load_labelled
from .texts import load_texts


def load_run_data(cfg: RunConfig) -> TaskData:
    """All that a run reads: its task's splits, those of the tasks it is scored on (transfer), and the training splits
    of those it is trained on (mixture). Raises DataError."""
    own = load_task(cfg.task, cfg.scale, cfg.data_dir)
    told = cfg.in_context.of if cfg.in_context is not None else None
    others = others_of(cfg)
    if not cfg.transfer and not others and told is None:
        return own
    parts: dict[str, Any] = {part: dict(getattr(own, part)) for part in PARTS}
    digest = hashlib.sha256(own.sha256.encode())
    if told is not None and cfg.in_context is not None:
        digest.update(f"in_context\0{examples_of(cfg.in_context, told, cfg).sha256}\0".encode())
    for name, task in sorted(cfg.transfer.items()):
        other = load_task(task, cfg.scale, cfg.data_dir, trains=False)
        digest.update(f"{name}\0{other.sha256}\0".encode())
        for part in PARTS:
            parts[part] |= {f"{name}/{split}": value for split, value in getattr(other, part).items()}
    for name, task in others.items():
        other = load_task(task, cfg.scale, cfg.data_dir)
        digest.update(f"mixture\0{name}\0{other.sha256}\0".encode())
        for part in ("texts", "labels"):
            parts[part][f"{name}/{task.train_split}"] = getattr(other, part)[task.train_split]
    return dataclasses.replace(own, **parts, sha256=digest.hexdigest())


def examples_of(in_context: InContextConfig, task: TaskConfig, cfg: RunConfig) -> TaskData:
    """The task whose examples stand in a prompt in words. Raises DataError that names the prompt."""
    try:
        return load_task(task, cfg.scale, cfg.data_dir)
    except DataError as error:
        raise DataError(f"in_context={in_context.name}, examples of {task.name}: {error}") from error


def load_task(task: TaskConfig, scale: ScaleConfig, data_dir: str | None, trains: bool = True) -> TaskData:
    """The training (`trains`), validation and (where the scale has labels for them) test splits of a task.

    scale.data "micro" generates them; "published" reads `<data_dir>/<dataset>/<subset>/<split>.parquet` (or the hub's
    `<split>-00000-of-0000N.parquet`), or downloads `hub_id` where data_dir is None. Raises DataError.
    """
    if generation_of(task, scale) is not None:
        return load_texts(task, scale, data_dir, trains)
    return load_labelled(task, scale, data_dir, trains)
