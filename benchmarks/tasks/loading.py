"""All that a run reads of its tasks, checked.

Nothing is repaired: a row that cannot be trained on or scored stops the run before training, by its number (from 0).
"""

import hashlib

from ..config.schema import InContextConfig, RunConfig, ScaleConfig, TaskConfig, generation_of, others_of
from .examples import DataError, RunData, TaskData
from .labelled import load_labelled
from .texts import load_texts


def load_run_data(cfg: RunConfig) -> RunData:
    """All that a run reads: its task's splits, those of the tasks it is scored on (transfer), and the training splits
    of those it is trained on (mixture). Raises DataError."""
    own = load_task(cfg.task, cfg.scale, cfg.data_dir)
    others = others_of(cfg)
    if not cfg.transfer and not others and (cfg.in_context is None or cfg.in_context.of is None):
        return RunData(own, own.sha256)
    digest = hashlib.sha256(own.sha256.encode())
    if cfg.in_context is not None and cfg.in_context.of is not None:
        digest.update(f"in_context\0{examples_of(cfg.in_context, cfg.in_context.of, cfg).sha256}\0".encode())
    transfer = {
        name: load_task(task, cfg.scale, cfg.data_dir, trains=False) for name, task in sorted(cfg.transfer.items())
    }
    for name, data in transfer.items():
        digest.update(f"{name}\0{data.sha256}\0".encode())
    mixture = {}
    for name, task in others.items():
        data = load_task(task, cfg.scale, cfg.data_dir)
        digest.update(f"mixture\0{name}\0{data.sha256}\0".encode())
        train = task.train_split
        mixture[name] = TaskData({train: data.texts[train]}, {train: data.labels[train]}, data.source, data.sha256)
    return RunData(own, digest.hexdigest(), transfer, mixture)


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
