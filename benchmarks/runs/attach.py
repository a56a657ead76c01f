"""A pack on its backbone: every run's method and head attached, parents' tensors copied, its job made."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.heads import ClassificationHead

from ..answers.job import Job, make_job
from ..backbones.loading import Backbone
from ..config.compose import build_method
from ..config.kinds import writes_text
from ..config.schema import RunConfig, text_of
from ..records.places import CHECKPOINTS
from ..training.tracking import Tracker
from . import parents
from .checks import check_length
from .lease import NO_LEASE, Lease
from .prepare import Prepared

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Pack:
    """Runs on one backbone: prepared, attached, with their jobs and trackers, in one order."""

    runs: Sequence[Prepared]
    backbone: Backbone
    attached: Attached
    jobs: list[Job]
    trackers: list[Tracker]
    lease: Lease

    @property
    def run_ids(self) -> list[str]:
        return [p.run_id for p in self.runs]

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted training goes on from."""
        cfg, ids = self.runs[0].cfg, self.run_ids
        name = f"{'+'.join(ids[:4])}.{len(ids)}.safetensors"
        return Path(cfg.results_dir) / CHECKPOINTS / cfg.experiment / name


def attach_pack(
    runs: Sequence[Prepared], backbone: Backbone, micro_batch_size: int | None = None, lease: Lease = NO_LEASE
) -> Pack:
    """Attach every run's method and head, copy parents' tensors, tokenize.

    micro_batch_size: the most examples of a forward pass, in training and in evaluation; None leaves it to the runs.
    Raises ValueError for what only shows on the backbone, which is then as it was.
    """
    config = backbone.model.config
    writes = writes_text(config.model_type)
    heads = [
        None if writes else partial(ClassificationHead, config, p.cfg.task.num_labels, p.cfg.trainer.head_dropout)
        for p in runs
    ]
    methods = [build_method(with_labels(p.cfg)) for p in runs]
    attached = attach(backbone.model, methods, heads, [p.cfg.seed for p in runs], backbone.tokenizer)
    try:
        jobs = []
        for k, p in enumerate(runs):
            check_length(p.cfg, attached.positions(k))
            _check_trained(p.cfg, bool(attached.run(k).trained()))
            if p.parent is not None and p.cfg.init_from is not None:
                parents.start_from(attached, k, p.parent.trained, p.cfg.init_from.head_dense)
            cfg = _with_micro_batch(p.cfg, micro_batch_size)
            attached.streams[k].backbone = p.cfg.trainer.backbone_dropout is None
            if heads[k] is not None and p.cfg.task.num_labels == 1 and p.cfg.trainer.regression_bias == "label_mean":
                mean = float(np.mean(p.data.own.labels[p.cfg.task.train_split]))
                nn.init.constant_(cast(ClassificationHead, attached.run(k).head).out_proj.bias, mean)
            job = make_job(cfg, p.data, backbone, attached.positions(k))
            for note in job.notes:
                log.warning("%s: %s", p.run_id, note)
            jobs.append(job)
        return Pack(runs, backbone, attached, jobs, [_tracker(p) for p in runs], lease)
    except BaseException:
        attached.detach()
        raise


def _tracker(p: Prepared) -> Tracker:
    name = f"{p.cfg.experiment} {p.cfg.task.name} seed {p.cfg.seed}"
    return Tracker(p.cfg.tracking, p.run_id, p.cfg.experiment, name, p.identity["config"], p.cfg.results_dir)


def with_labels(cfg: RunConfig) -> dict[str, Any]:
    """The method; a prompt that starts from class labels takes the task's (or its prompt_words) unless it has some."""
    if cfg.method.get("init") != "class_labels" or cfg.method["labels"]:
        return cast(dict[str, Any], cfg.method)
    text = text_of(cfg.task, cfg.scale)
    labels = cfg.task.prompt_words or (text.labels if text else [])
    if not labels:
        raise ValueError(
            f"method.init=class_labels with task={cfg.task.name}, which has no labels: give method.labels, "
            "task.prompt_words or another method.init"
        )
    return {**cfg.method, "labels": labels}


def _check_trained(cfg: RunConfig, trains: bool) -> None:
    """A run trains something for some steps, or nothing for none."""
    method = cfg.method["_target_"].rpartition(".")[2]
    if not trains and cfg.trainer.epochs:
        raise ValueError(
            f"{method} trains nothing but a head, and {cfg.backbone.name} answers in text without one: change method=, "
            "or set trainer.epochs=0 to score the frozen backbone"
        )
    if trains and not cfg.trainer.epochs:
        raise ValueError(f"trainer.epochs=0 with {method}, which would stay as it is drawn: give it some epochs")


def _with_micro_batch(cfg: RunConfig, size: int | None) -> RunConfig:
    """The same effective batch in smaller pieces, in training and in evaluation."""
    if size is None:
        return cfg
    trainer = dataclasses.replace(
        cfg.trainer,
        micro_batch_size=min(size, cfg.trainer.micro_batch_size or cfg.trainer.batch_size),
        eval_batch_size=min(size, cfg.trainer.eval_batch_size),
    )
    return dataclasses.replace(cfg, trainer=trainer)
