"""From a finished (or failed) run to its record: every number of the record is put together here."""

import dataclasses
import functools
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from ..answers.decoding import Outputs
from ..answers.words import ILLEGAL
from ..config.schema import LOSS, RunConfig, task_of, writes_text
from ..records.schema import tolerance_for
from ..records.store import SCHEMA, Record
from ..tasks.examples import TaskData
from ..training.evaluation import has_illegal, is_constant, scores, text_scores

CUT_OFF = "cut_off"  # share of outputs that max_new_tokens cut off
ILLEGAL_ANSWERS = "illegal"  # share of written answers that are no label
PARAMS = ("method", "head", "added", "stored", "backbone", "layers")  # of ParameterCounts


@dataclass
class RunOutput:
    """What a run leaves behind. predictions: checkpoint -> split -> (N,) predictions of the selected and last step, or
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


def assemble(
    cfg: RunConfig, identity: dict[str, Any], run_id: str, departures: dict[str, list[Any]], data: TaskData,
    backbone: dict[str, Any], numerics: dict[str, Any], output: RunOutput,
) -> Record:  # fmt: skip
    """The record of a finished run."""
    entries = []
    for checkpoint, by_split in output.predictions.items():
        for split, predictions in by_split.items():
            for metric, (value, n) in _scores(cfg, predictions, split, checkpoint, output, data).items():
                entries.append(
                    {
                        "split": split,
                        "checkpoint": checkpoint,
                        "epoch": output.epochs[checkpoint],
                        "metric": metric,
                        "score": value,
                        "n": n,
                    }
                )
    selection = cfg.task.validation_splits[0]
    chosen = output.predictions[cfg.trainer.selection][selection]
    flags = _flags_of_texts(chosen, entries) if isinstance(chosen, Outputs) else _flags_of_labels(cfg, output)
    flags += [*output.flags, *(["parameters_did_not_move"] if output.unmoved else [])]
    record = _common(cfg, identity, run_id, departures) | {
        "status": "done",
        "cause": None,
        "backbone": backbone,
        "data": {"source": data.source, "sha256": data.sha256, "rows": {s: len(y) for s, y in data.labels.items()}},
        "selection": {
            "checkpoint": cfg.trainer.selection,
            "split": selection,
            "metric": cfg.task.selection_metric,
        },
        "scores": entries,
        "history": output.history,
        "params": output.params,
        "trained_sha256": output.trained_sha256,
        "flags": flags,
        "numerics": numerics,
        "tolerance": tolerance_for(numerics["dtype"]),
        "cost": _COST | output.cost,
    }
    return cast(Record, record)


def _scores(
    cfg: RunConfig, predictions: Any, split: str, checkpoint: str, output: RunOutput, data: TaskData
) -> dict[str, tuple[float | None, int]]:
    """Metric -> its value and the number of examples behind it."""
    if not isinstance(predictions, Outputs):
        found = scores(task_of(cfg, split), predictions, data.labels[split], data.groups.get(split))
        if writes_text(cfg.backbone.model_type) and cfg.in_context is None:  # which chooses among the labels
            found[ILLEGAL_ANSWERS] = float((predictions == ILLEGAL).mean())
        return {metric: (value, len(predictions)) for metric, value in found.items()}
    task = task_of(cfg, split)
    of_texts = text_scores(task, predictions.texts, data.references[split], data.groups.get(split))
    cut_off = predictions.ended.count(False) / len(predictions)
    return {
        LOSS: (output.losses[checkpoint][split], len(data.labels[split])),
        **{metric: (value, len(predictions)) for metric, value in of_texts.items()},
        CUT_OFF: (cut_off, len(predictions)),
    }


def _flags_of_labels(cfg: RunConfig, output: RunOutput) -> list[str]:
    """One class on the validation split; illegal answers anywhere, also to the tasks that a run transfers to."""
    predictions = output.predictions[cfg.trainer.selection]
    flags = ["one_class_predictions"] if is_constant(predictions[cfg.task.validation_splits[0]]) else []
    illegal = any(has_illegal(task_of(cfg, split), of_split) for split, of_split in predictions.items())
    return flags + (["illegal_answers"] if illegal else [])


def _flags_of_texts(outputs: Outputs, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    flags = ["one_text_throughout"] if len(outputs) > 1 and len(set(outputs.texts)) == 1 else []
    flags += ["outputs_cut_off"] if not all(outputs.ended) else []
    return flags + (["not_scored_without_java"] if any(entry["score"] is None for entry in entries) else [])


def assemble_failure(
    cfg: RunConfig, identity: dict[str, Any], run_id: str, departures: dict[str, list[Any]],
    kind: str, message: str, history: Sequence[Any],
) -> Record:  # fmt: skip
    """The record of a run that failed: its cause, its history so far, no scores."""
    flags = ["nan_loss"] if kind == "diverged" else []
    cause = {"kind": kind, "message": message}
    failed = {"status": "failed", "cause": cause, "history": list(history), "flags": flags, "scores": []}
    return cast(Record, _common(cfg, identity, run_id, departures) | failed)


def prediction_columns(cfg: RunConfig, output: RunOutput, data: TaskData) -> Mapping[str, Any]:
    """Predictions of the selected checkpoint beside the labels, by split; texts beside whether they came to an end."""
    chosen = output.predictions[cfg.trainer.selection]
    if all(isinstance(outputs, Outputs) for outputs in chosen.values()):
        return {split: {"prediction": o.texts, "ended": o.ended} for split, o in chosen.items()}
    return {split: {"prediction": p, "label": data.labels[split]} for split, p in chosen.items()}


def _common(cfg: RunConfig, identity: dict[str, Any], run_id: str, departures: dict[str, list[Any]]) -> dict[str, Any]:
    places = ("data_dir", "backbone_dir", "results_dir", "checkpoint_seconds", "force")
    commit, dirty = _git()
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "experiment": cfg.experiment,
        "scale": cfg.scale.name,
        "settings": cfg.settings,
        "task": cfg.task.name,
        "seed": cfg.seed,
        "identity": {key: value for key, value in identity.items() if key != "config"},
        "parents": identity["parents"],
        "departures": departures,
        "config": {key: value for key, value in dataclasses.asdict(cfg).items() if key not in places},
        "provenance": {
            "git_commit": commit,
            "git_dirty": dirty,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


_COST = {
    "train_seconds": None,
    "eval_seconds": None,
    "train_tokens": None,
    "tokens_per_second": None,
    "peak_memory_bytes": None,
}


@functools.cache
def _git() -> tuple[str | None, bool | None]:
    """Commit and whether the tree differs from it; None outside a checkout. Read once: the code in memory is of now."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = (
        git("rev-parse", "HEAD"),
        git("status", "--porcelain", "--", ":/peft_methods", ":/benchmarks", ":/conf"),
    )
    return commit, None if changes is None else bool(changes)
