"""From a trained run to its scores: both checkpoints read on every split, metrics, flags, predictions."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peft_methods.counting import count_parameters
from peft_methods.state import trained_tensors

from ..answers.decoding import Outputs, decode
from ..answers.texts import INPUTS
from ..answers.words import ILLEGAL
from ..config.kinds import writes_text
from ..config.schema import LOSS, RunConfig, task_of
from ..tasks.examples import TaskData
from ..training.devices import Machine
from ..training.evaluation import has_illegal, is_constant, predict, scores, target_loss, text_scores
from ..training.loop import Run, restore_best
from .prepare import Prepared

CUT_OFF = "cut_off"  # share of outputs that max_new_tokens cut off
ILLEGAL_ANSWERS = "illegal"  # share of written answers that are no label
PARAMS = ("method", "head", "added", "stored", "backbone", "layers")  # of ParameterCounts


@dataclass
class Scored:
    """What a trained run gives. predictions: checkpoint -> split -> (N,) predictions of the selected and last step, or
    the outputs of its inputs where answers are texts. losses: likewise, nats per token of the target texts.
    """

    predictions: dict[str, dict[str, Any]]
    epochs: dict[str, float | None]
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARAMS, 0))
    unmoved: list[str] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)  # of what was read
    trained_sha256: str | None = None


def score(r: Run, machine: Machine) -> Scored | None:
    """Score the last and the best checkpoint on every split; afterwards the selected one is attached.

    None of a run that diverged.
    """
    if r.position.diverged is not None:
        return None
    accelerator = machine.accelerator
    cfg, position, losses = r.job.cfg, r.position, dict[str, dict[str, float]]()
    splits = [s for s in r.job.data if s != cfg.task.train_split and not s.endswith(INPUTS)]

    def decoded(checkpoint: str) -> dict[str, np.ndarray | Outputs]:
        if r.job.texts is None:
            found = {s: predict(r.attached, r.k, r.job, s, accelerator) for s in splits}
            return {s: predictions for s, predictions in found.items() if predictions is not None}
        losses[checkpoint] = {s: target_loss(r.attached, r.k, r.job, r.job.data[s], accelerator) for s in splits}
        title = f"{cfg.experiment} seed {cfg.seed}"
        bars = {s: f"{title}: {s}, {checkpoint}" if machine.show_progress else None for s in splits}
        return {s: decode(r.attached, r.k, r.job, r.job.data[s + INPUTS], accelerator, bars[s]) for s in splits}

    began = time.perf_counter()
    last = trained_tensors(r.attached, r.k)
    predictions = {"last": decoded("last")}
    unmoved = [n for n, t in last.items() if t.equal(r.start[n]) and not n.endswith("key.bias")]
    same = position.best_epoch == r.epoch
    restore_best(r)
    predictions["best"] = predictions["last"] if same else decoded("best")
    losses |= {"best": losses["last"]} if same and losses else {}
    if cfg.trainer.selection == "last" and not same:
        r.best = last
        restore_best(r)
    eval_seconds = position.eval_seconds + time.perf_counter() - began
    cost = {
        "train_seconds": position.train_seconds,
        "eval_seconds": eval_seconds,
        "train_tokens": position.tokens,
        "tokens_per_second": position.tokens / position.train_seconds if position.train_seconds else None,
        "peak_memory_bytes": machine.peak_memory,
    }
    epochs: dict[str, float | None] = {"last": r.epoch, "best": position.best_epoch}
    counts = count_parameters(r.attached, r.k)
    params = {name: getattr(counts, name) for name in PARAMS}
    told = r.job.writer.in_context if r.job.writer is not None else None
    flags = told.flags() if told is not None else []
    return Scored(predictions, epochs, losses, position.history, params, unmoved, cost, flags)


def split_scores(p: Prepared, scored: Scored, checkpoint: str, split: str) -> dict[str, tuple[float | None, int]]:
    """Metric -> its value and the number of examples behind it."""
    cfg, data, predictions = p.cfg, p.data, scored.predictions[checkpoint][split]
    if not isinstance(predictions, Outputs):
        found = scores(task_of(cfg, split), predictions, data.labels[split], data.groups.get(split))
        if writes_text(cfg.backbone.model_type) and cfg.in_context is None:  # which chooses among the labels
            found[ILLEGAL_ANSWERS] = float((predictions == ILLEGAL).mean())
        return {metric: (value, len(predictions)) for metric, value in found.items()}
    task = task_of(cfg, split)
    of_texts = text_scores(task, predictions.texts, data.references[split], data.groups.get(split))
    cut_off = predictions.ended.count(False) / len(predictions)
    return {
        LOSS: (scored.losses[checkpoint][split], len(data.labels[split])),
        **{metric: (value, len(predictions)) for metric, value in of_texts.items()},
        CUT_OFF: (cut_off, len(predictions)),
    }


def flags_of_labels(cfg: RunConfig, scored: Scored) -> list[str]:
    """One class on the validation split; illegal answers anywhere, also to the tasks that a run transfers to."""
    predictions = scored.predictions[cfg.trainer.selection]
    flags = ["one_class_predictions"] if is_constant(predictions[cfg.task.validation_splits[0]]) else []
    illegal = any(has_illegal(task_of(cfg, split), of_split) for split, of_split in predictions.items())
    return flags + (["illegal_answers"] if illegal else [])


def flags_of_texts(outputs: Outputs, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One text for every input, outputs without an end, no score where Java is missing."""
    flags = ["one_text_throughout"] if len(outputs) > 1 and len(set(outputs.texts)) == 1 else []
    flags += ["outputs_cut_off"] if not all(outputs.ended) else []
    return flags + (["not_scored_without_java"] if any(entry["score"] is None for entry in entries) else [])


def prediction_columns(cfg: RunConfig, scored: Scored, data: TaskData) -> Mapping[str, Any]:
    """Predictions of the selected checkpoint beside the labels, by split; texts beside whether they came to an end."""
    chosen = scored.predictions[cfg.trainer.selection]
    if all(isinstance(outputs, Outputs) for outputs in chosen.values()):
        return {split: {"prediction": o.texts, "ended": o.ended} for split, o in chosen.items()}
    return {split: {"prediction": p, "label": data.labels[split]} for split, p in chosen.items()}
