"""From a claimed pack to its records: backbone -> attach -> train -> evaluate -> record; again where memory ran out."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.counting import count_parameters
from peft_methods.heads import ClassificationHead
from peft_methods.state import file_sha256, save_trained, trained_tensors

from ..answers.decoding import Outputs, decode
from ..answers.job import Job
from ..answers.texts import INPUTS
from ..answers.tokens import tokenize
from ..answers.writing_job import writing_job
from ..backbones.loading import Backbone, describe, load_backbone
from ..config.compose import build_method
from ..config.schema import (
    RunConfig,
    is_control,
    text_of,
    writes_text,
)
from ..records import leases
from ..records.store import RecordError, write_record
from ..training import devices
from ..training.checkpoint import load_checkpoint
from ..training.evaluation import predict, target_loss
from ..training.loop import Run, restore_best, train
from ..training.progress import Checkpointing, StepProgress
from ..training.tracking import Tracker
from . import parents
from .assemble import PARAMS, RunOutput, assemble, assemble_failure, prediction_columns
from .checks import check_length
from .prepare import Outcome, Prepared, found_done, outcome_of, prepare, recorded_score, selected_score

log = logging.getLogger(__name__)


def make(
    pack: list[Prepared], show_progress: bool, held: leases.Held | None, micro_batch_size: int | None = None
) -> list[Outcome]:
    """Train and record. Out of memory: again with half the micro-batch. Any other exception of a pack: its runs one by
    one, so that only those that fail alone become failed records."""
    if is_control(pack[0].cfg):
        return [_control(p) for p in pack]
    first = pack[0].cfg
    accelerator = devices.make_accelerator(first.device, first.trainer.precision, len(pack))
    backbone = load_backbone(first.backbone, first.scale, first.backbone_dir, accelerator.device, first.seed)
    attached, jobs = attach_pack(pack, backbone, micro_batch_size)
    trackers = [_tracker(p) for p in pack]
    for job, tracker in zip(jobs, trackers, strict=True):
        job.on_evaluation = lambda point, tracker=tracker: tracker.log(_flat(point), point["step"])  # type: ignore[misc]
    try:
        return _train_and_record(
            pack, backbone, attached, jobs, trackers, accelerator, show_progress, held, micro_batch_size
        )
    except OSError:
        raise  # a full disk or a lost folder: there is nowhere to write a record to
    except leases.ClaimLost:
        raise
    except Exception as error:  # recorded with its cause, so that a sweep goes on and the table shows the hole
        for tracker in trackers:
            tracker.finish({}, failed=True)
        failure = error
    finally:
        attached.detach()
    del attached, jobs  # what they hold is needed for the next attempt
    if devices.is_out_of_memory(failure):
        smaller = _half(pack, micro_batch_size)
        if smaller is not None:
            log.warning("%s: out of memory, again with micro-batches of %d", pack[0].run_id, smaller)
            devices.free_memory()
            return make(pack, show_progress, held, smaller)
        message = f"even with one example at a time: {failure}"
        return [_failed(p, "out_of_memory", message, [], held) for p in pack]
    log.error("%s failed", pack[0].run_id, exc_info=failure)
    if len(pack) > 1:
        return [outcome for p in pack for outcome in make([p], show_progress, held)]
    return [_failed(p, "error", f"{type(failure).__name__}: {failure}", [], held) for p in pack]


def _half(pack: Sequence[Prepared], micro_batch_size: int | None) -> int | None:
    """Half of the examples that a forward pass took; None where that was one."""
    trainers = [p.cfg.trainer for p in pack]
    now = micro_batch_size or max(trainer.micro_batch_size or trainer.batch_size for trainer in trainers)
    return now // 2 or None


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


def attach_pack(todo: list[Prepared], backbone: Backbone, micro_batch_size: int | None) -> tuple[Attached, list[Job]]:
    """Attach every run's method and head, copy parents' tensors, tokenize."""
    config = backbone.model.config
    writes = writes_text(config.model_type)
    heads = [None if writes else partial(ClassificationHead, config, p.cfg.task.num_labels) for p in todo]
    methods = [build_method(with_labels(p.cfg)) for p in todo]
    attached = attach(backbone.model, methods, heads, [p.cfg.seed for p in todo], backbone.tokenizer)
    try:
        with_types = getattr(config, "type_vocab_size", 0) > 1
        pad = backbone.tokenizer.pad_token_id
        jobs = []
        for k, p in enumerate(todo):
            check_length(p.cfg, attached.positions(k))
            _check_trained(p.cfg, bool(attached.run(k).trained()))
            if p.parent is not None and p.cfg.init_from is not None:
                parents.start_from(attached, k, p.parent, p.cfg.init_from.head_dense)
            cfg = _with_micro_batch(p.cfg, micro_batch_size)
            attached.streams[k].backbone = p.cfg.trainer.backbone_dropout is None
            if writes:
                jobs.append(writing_job(p, k, cfg, backbone, attached))
                continue
            if p.cfg.task.num_labels == 1 and p.cfg.trainer.regression_bias == "label_mean":
                mean = float(np.mean(p.data.labels[p.cfg.task.train_split]))
                nn.init.constant_(cast(ClassificationHead, attached.run(k).head).out_proj.bias, mean)
            jobs.append(Job(cfg, tokenize(p.data, backbone.tokenizer, p.cfg.trainer.max_length, with_types), pad))
    except BaseException:
        attached.detach()
        raise
    return attached, jobs


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


def _train_and_record(
    todo: list[Prepared], backbone: Backbone, attached: Attached, jobs: list[Job], trackers: list[Tracker],
    accelerator: Accelerator, show_progress: bool, held: leases.Held | None, micro_batch_size: int | None,
) -> list[Outcome]:  # fmt: skip
    ids = [p.run_id for p in todo]
    cfg = todo[0].cfg
    state = Path(cfg.results_dir) / "checkpoints" / cfg.experiment / f"{'+'.join(ids[:4])}.{len(ids)}.safetensors"
    checkpointing = Checkpointing(state, ids, cfg.checkpoint_seconds)
    progress = StepProgress(
        f"{cfg.experiment} {cfg.task.name} seed {cfg.seed}" + f" +{len(ids) - 1}" * (len(ids) > 1), show_progress
    )
    starts = [trained_tensors(attached, k) for k in range(len(todo))]
    devices.reset_peak_memory(accelerator.device)

    def on_step(runs: list[Run]) -> None:
        progress(runs)
        if accelerator.is_main_process:
            checkpointing(runs)

    runs = train(attached, jobs, accelerator, on_step, lambda runs: _resume(runs, ids, state))
    progress.close()
    checkpointing.trained(runs)
    numerics = devices.numerics(accelerator, cfg.backbone.dtype, cfg.trainer.precision, ids, micro_batch_size)
    memory = devices.peak_memory(accelerator.device)
    outcomes = []
    for p, r, start, tracker in zip(todo, runs, starts, trackers, strict=True):
        if (found := found_done(p)) is not None:  # a pack that was killed between its records
            outcomes.append(found)
            continue
        if r.position.diverged is not None:
            tracker.finish({"diverged": r.position.diverged}, failed=True)
            outcomes.append(_failed(p, "diverged", r.position.diverged, r.position.history, held))
            continue
        output = _output(r, start, accelerator, memory, show_progress)
        if held is not None:
            held.check()
        path = parents.trained_path(p.cfg, p.run_id)
        if accelerator.is_main_process:
            save_trained(attached, path, r.k)  # before the record: done means all there
            output.trained_sha256 = file_sha256(path)
        outcomes.append(_record(p, describe(backbone), numerics, output, accelerator.is_main_process))
        tracker.finish({"validation": outcomes[-1].score})
    checkpointing.remove()
    return outcomes


def _output(r: Run, start: dict[str, Tensor], accelerator: Accelerator, memory: int, show_progress: bool) -> RunOutput:
    """Score the last and the best checkpoint on every split; afterwards the selected one is attached."""
    cfg, position, losses = r.job.cfg, r.position, dict[str, dict[str, float]]()
    splits = [s for s in r.job.data if s != cfg.task.train_split and not s.endswith(INPUTS)]

    def decoded(checkpoint: str) -> dict[str, np.ndarray | Outputs]:
        if r.job.texts is None:
            found = {s: predict(r.attached, r.k, r.job, s, accelerator) for s in splits}
            return {s: predictions for s, predictions in found.items() if predictions is not None}
        losses[checkpoint] = {s: target_loss(r.attached, r.k, r.job, r.job.data[s], accelerator) for s in splits}
        bars = {s: f"{cfg.experiment} seed {cfg.seed}: {s}, {checkpoint}" if show_progress else None for s in splits}
        return {s: decode(r.attached, r.k, r.job, r.job.data[s + INPUTS], accelerator, bars[s]) for s in splits}

    began = time.perf_counter()
    last = trained_tensors(r.attached, r.k)
    predictions = {"last": decoded("last")}
    unmoved = [n for n, t in last.items() if t.equal(start[n]) and not n.endswith("key.bias")]
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
        "peak_memory_bytes": memory,
    }
    epochs: dict[str, float | None] = {"last": r.epoch, "best": position.best_epoch}
    counts = count_parameters(r.attached, r.k)
    params = {name: getattr(counts, name) for name in PARAMS}
    told = r.job.writer.in_context if r.job.writer is not None else None
    flags = told.flags() if told is not None else []
    return RunOutput(predictions, epochs, losses, position.history, params, unmoved, cost, flags)


def _control(p: Prepared) -> Outcome:
    """A control without a backbone: fitted on the training texts, scored like every run."""
    task, data = p.cfg.task, p.data
    start = time.perf_counter()
    regression = task.num_labels == 1
    fitted = build_method(p.cfg.method).fit(data.texts[task.train_split], data.labels[task.train_split], regression)
    seconds = time.perf_counter() - start
    predictions = {s: fitted.predict(rows) for s, rows in data.texts.items() if s != task.train_split}
    output = RunOutput(
        {"last": predictions, "best": predictions}, {"last": None, "best": None}, cost={"train_seconds": seconds}
    )
    numerics = {
        "device": "cpu",
        "device_name": "",
        "dtype": "float64",
        "threads": 1,
        "pack": 1,
        "members": [p.run_id],
        "micro_batch_size": None,
        "processes": 1,
        "versions": {},
    }
    none = {"name": "none", "stands_for": p.cfg.backbone.name, "published": False, "sha256": None}
    return _record(p, none, numerics, output, write=True)


def _record(p: Prepared, backbone: dict[str, Any], numerics: dict[str, Any], output: RunOutput, write: bool) -> Outcome:
    record = assemble(p.cfg, p.identity, p.run_id, p.departures, p.data, backbone, numerics, output)
    if write:
        write_record(p.cfg.results_dir, record, prediction_columns(p.cfg, output, p.data))
    return outcome_of(p, "done", ", ".join(record["flags"]), selected_score(record), 0.0)


def record_failure(cfg: RunConfig, kind: str, message: str) -> None:
    """The failed record of a run that could not write its own; nothing where it has a record by now."""
    p = prepare(cfg, recorded_score)
    if found_done(p) is None:
        _failed(p, kind, message, [])


def _failed(p: Prepared, kind: str, message: str, history: Sequence[Any], held: leases.Held | None = None) -> Outcome:
    if held is not None:
        held.check()
    try:
        failure = assemble_failure(p.cfg, p.identity, p.run_id, p.departures, kind, message, history)
        write_record(p.cfg.results_dir, failure)
    except RecordError as error:  # a forced repetition failed: the record of the run that finished stays
        message = f"{message} ({error})"
    return dataclasses.replace(outcome_of(p, "failed", f"{kind}: {message}", None, 0.0), kind=kind)


def _resume(runs: list[Run], ids: list[str], state: Path) -> None:
    if load_checkpoint(runs, ids, state):
        log.info("resumed at step %d of %d", runs[0].position.step, runs[0].total_steps)


def _tracker(p: Prepared) -> Tracker:
    name = f"{p.cfg.experiment} {p.cfg.task.name} seed {p.cfg.seed}"
    return Tracker(p.cfg.tracking, p.run_id, p.cfg.experiment, name, p.identity["config"], p.cfg.results_dir)


def _flat(point: dict[str, Any]) -> dict[str, float]:
    values = {key: point[key] for key in ("train_loss", "learning_rate", "epoch")}
    return values | {f"{split}/{m}": v for split, by_metric in point["scores"].items() for m, v in by_metric.items()}
