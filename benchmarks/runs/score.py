"""From a trained run to its scores: both checkpoints read on every split, metrics, flags, predictions."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_methods.counting import count_parameters
from peft_methods.state import trained_tensors

from ..answers.one_run import OneRun
from ..answers.predictions import Predictions, Scores
from ..config.schema import RunConfig, TaskConfig
from ..tasks.examples import Gold
from ..training.devices import Machine
from ..training.loop import Run, restore_best

Columns = Mapping[str, Mapping[str, Any]]  # split -> column -> values
PARAMS = ("method", "head", "added", "stored", "backbone", "layers")  # of ParameterCounts


@dataclass
class Scored:
    """What a trained run gives. scores: checkpoint (last, best) -> split -> metric -> value and number of examples.
    columns: split -> the predictions of the selected checkpoint."""

    scores: dict[str, dict[str, Scores]]
    flags: list[str]
    columns: Columns
    epochs: dict[str, float | None]
    history: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARAMS, 0))
    cost: dict[str, Any] = field(default_factory=dict)
    trained_sha256: str | None = None


def score(r: Run, machine: Machine) -> Scored | None:
    """Score the last and the best checkpoint on every split; afterwards the selected one is attached.

    None of a run that diverged, in training or where a checkpoint gives no finite predictions on some split.
    """
    cfg, position, one = r.job.cfg, r.position, OneRun(r.attached, r.k, machine.accelerator)
    if position.diverged is not None:
        return None

    def predicted(checkpoint: str) -> dict[str, Predictions]:
        found: dict[str, Predictions] = {}
        for name, scored in r.job.scored.items():
            title = f"{cfg.experiment} seed {cfg.seed}: {name}, {checkpoint}" if machine.show_progress else None
            if (given := scored.answers.predict(one, scored.split, title)) is None:
                position.diverged = f"the predictions of the {checkpoint} checkpoint on {name} were not finite"
                break
            found[name] = given
        return found

    began = time.perf_counter()
    last = trained_tensors(r.attached, r.k)
    predictions = {"last": predicted("last")}
    unmoved = [n for n, t in last.items() if t.equal(r.start[n]) and not n.endswith("key.bias")]
    same = position.best_epoch == r.epoch
    restore_best(r)
    predictions["best"] = predictions["last"] if same else predicted("best")
    if r.position.diverged is not None:  # `predicted` found it
        return None
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
    asked = {name: (scored.answers.task, scored.split.gold) for name, scored in r.job.scored.items()}
    scores, flags, columns = judge(cfg, predictions, asked)
    flags += [*r.job.answers.flags(), *(["parameters_did_not_move"] if unmoved else [])]
    return Scored(scores, flags, columns, epochs, position.history, params, cost)


def judge(
    cfg: RunConfig, predictions: Mapping[str, Mapping[str, Predictions]], asked: Mapping[str, tuple[TaskConfig, Gold]]
) -> tuple[dict[str, dict[str, Scores]], list[str], Columns]:
    """The scores of both checkpoints, and flags and columns of the selected one.

    predictions: checkpoint -> split -> what was predicted. asked: split -> its task, and what it is scored against.
    """
    scores = {
        checkpoint: {split: each.scores(*asked[split]) for split, each in by_split.items()}
        for checkpoint, by_split in predictions.items()
    }
    selecting, chosen = cfg.task.validation_splits[0], predictions[cfg.trainer.selection]
    flags = [flag for split, each in chosen.items() for flag in each.flags(asked[split][0], split == selecting)]
    values = [value for by_split in scores.values() for split in by_split.values() for value, _ in split.values()]
    flags += ["not_scored_without_java"] if None in values else []
    columns = {split: each.columns(asked[split][1]) for split, each in chosen.items()}
    return scores, [*dict.fromkeys(flags)], columns
