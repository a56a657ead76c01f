"""One run, or a pack of K on one backbone, from configuration to record:

config -> data -> parent -> identity -> backbone -> attach -> train -> evaluate -> record
"""

import dataclasses
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks import devices, parents
from benchmarks.assemble import PARAMS, RunOutput, assemble, assemble_failure, prediction_columns
from benchmarks.backbone import Backbone, describe, load_backbone, weights_of
from benchmarks.checkpoint import load_checkpoint
from benchmarks.checks import check_config, check_length, check_pack
from benchmarks.compose import build_method
from benchmarks.config import RunConfig, is_control, text_of, writes_text
from benchmarks.departures import departures
from benchmarks.evaluation import predict
from benchmarks.identity import identity, run_id
from benchmarks.job import Job
from benchmarks.progress import Checkpointing, StepProgress
from benchmarks.record import RecordError, read_record, record_path, set_aside, write_record
from benchmarks.tasks.data import TaskData, load_task
from benchmarks.tasks.tokenizing import tokenize
from benchmarks.tasks.writing import Writer
from benchmarks.tracking import Tracker
from benchmarks.training import Run, restore_best, train
from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.counting import count_parameters
from peft_methods.heads import ClassificationHead
from peft_methods.state import save_trained, trained_tensors

log = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """What became of a run. status: done, found (its record was there) or failed; score: selected validation score."""

    experiment: str
    task: str
    seed: int
    run_id: str
    status: str
    message: str
    score: float | None
    seconds: float


@dataclass
class Prepared:
    """A run that has passed every check: its data, its parent and its identity."""

    cfg: RunConfig
    data: TaskData
    parent: Path | None
    identity: dict[str, Any]
    run_id: str
    departures: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


def run(cfg: RunConfig, show_progress: bool = True) -> Outcome:
    """One run. Raises ValueError for bad input before training; a failure in training becomes a failed record."""
    return run_pack([cfg], show_progress)[0]


def run_pack(cfgs: Sequence[RunConfig], show_progress: bool = True) -> list[Outcome]:
    """K runs on one backbone, trained together; those whose record exists are left out."""
    threads = torch.get_num_threads()
    try:
        return _run_pack(cfgs, show_progress)
    finally:
        torch.set_num_threads(threads)  # `threads` is of these runs, not of the process


def _run_pack(cfgs: Sequence[RunConfig], show_progress: bool) -> list[Outcome]:
    start = time.perf_counter()
    check_pack(list(cfgs))
    prepared = [_prepare(cfg, show_progress) for cfg in cfgs]
    found = [None if p.cfg.force else _found(p) for p in prepared]
    todo = [p for p, outcome in zip(prepared, found, strict=True) if outcome is None]
    for p in todo:
        p.departures = departures(dataclasses.asdict(p.cfg))
    made = iter(_make(todo, show_progress) if todo else [])
    seconds = (time.perf_counter() - start) / max(1, len(todo))
    return [outcome or dataclasses.replace(next(made), seconds=seconds) for outcome in found]


def _prepare(cfg: RunConfig, show_progress: bool) -> Prepared:
    """Config, data, parent, identity: whatever can be refused is refused here or in `_attach`, before any training."""
    check_config(cfg)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    _check_writable(Path(cfg.results_dir))
    weights = None if is_control(cfg) else weights_of(cfg.backbone, cfg.scale, cfg.backbone_dir)
    if cfg.init_from is None:
        made = identity(cfg, data.sha256, [], weights)
        return Prepared(cfg, data, None, made, run_id(made))
    parent_id = parents.parent_of(cfg, lambda p: _parent_score(cfg, p, show_progress, again=False))
    made = identity(cfg, data.sha256, [parent_id], weights)
    parent = parents.trained_path(dataclasses.replace(cfg, experiment=cfg.init_from.experiment), parent_id)
    prepared = Prepared(cfg, data, parent, made, run_id(made))
    if not parents.is_whole(parent) and (
        cfg.force or _found(prepared) is None
    ):  # records travel, trained tensors may not
        parents.parent_of(cfg, lambda p: _parent_score(cfg, p, show_progress, again=True))
    return prepared


def _check_writable(folder: Path) -> None:
    """Now rather than after the training. Raises ValueError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"results_dir={folder}: cannot write there ({error.strerror}); name another folder") from error


def _make(todo: list[Prepared], show_progress: bool) -> list[Outcome]:
    """Train and record; any exception after the checks becomes one failed record per run of the pack."""
    if is_control(todo[0].cfg):
        return [_control(p) for p in todo]
    first = todo[0].cfg
    accelerator = devices.make_accelerator(first.device, first.trainer.precision, len(todo))
    backbone = load_backbone(first.backbone, first.scale, first.backbone_dir, accelerator.device, first.seed)
    attached, jobs = _attach(todo, backbone)
    trackers = [_tracker(p) for p in todo]
    for job, tracker in zip(jobs, trackers, strict=True):
        job.on_evaluation = lambda point, tracker=tracker: tracker.log(_flat(point), point["step"])  # type: ignore[misc]
    try:
        return _train_and_record(todo, backbone, attached, jobs, trackers, accelerator, show_progress)
    except Exception as error:  # recorded with its cause, so that a sweep goes on and the table shows the hole
        kind = "out_of_memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else "error"
        if isinstance(error, OSError):
            raise  # a full disk or a lost folder: there is nowhere to write a record to
        log.exception("%s failed", todo[0].run_id)
        for tracker in trackers:
            tracker.finish({}, failed=True)
        message = f"{type(error).__name__}: {error}"
        return [_failed(p, kind, message, []) for p in todo]
    finally:
        attached.detach()


def _attach(todo: list[Prepared], backbone: Backbone) -> tuple[Attached, list[Job]]:
    """Attach every run's method and head, copy parents' tensors, tokenize."""
    config = backbone.model.config
    writes = writes_text(config.model_type)
    heads = [None if writes else partial(ClassificationHead, config, p.cfg.task.num_labels) for p in todo]
    methods = [build_method(p.cfg.method) for p in todo]
    attached = attach(backbone.model, methods, heads, [p.cfg.seed for p in todo], backbone.tokenizer)
    try:
        with_types = getattr(config, "type_vocab_size", 0) > 1
        pad = backbone.tokenizer.pad_token_id
        jobs = []
        for k, p in enumerate(todo):
            check_length(p.cfg, attached.positions(k))
            if not attached.run(k).trained():
                raise ValueError(
                    f"{type(methods[k]).__name__} trains nothing but a head, and {p.cfg.backbone.name} answers in text "
                    "without one: change method="
                )
            if p.parent is not None and p.cfg.init_from is not None:
                parents.start_from(attached, k, p.parent, p.cfg.init_from.head_dense)
            if writes:
                jobs.append(_writing_job(p, backbone, attached))
                continue
            if p.cfg.task.num_labels == 1 and p.cfg.trainer.regression_bias == "label_mean":
                mean = float(np.mean(p.data.labels[p.cfg.task.train_split]))
                nn.init.constant_(cast(ClassificationHead, attached.run(k).head).out_proj.bias, mean)
            jobs.append(Job(p.cfg, tokenize(p.data, backbone.tokenizer, p.cfg.trainer.max_length, with_types), pad))
    except BaseException:
        attached.detach()
        raise
    return attached, jobs


def _writing_job(p: Prepared, backbone: Backbone, attached: Attached) -> Job:
    text = text_of(p.cfg.task, p.cfg.scale)
    writer = Writer(p.cfg.task, text, backbone.tokenizer, attached.table.architecture.decoder_only)
    return Job(p.cfg, writer.tokenize(p.data, p.cfg.trainer.max_length), writer.pad, writer)


def _train_and_record(
    todo: list[Prepared], backbone: Backbone, attached: Attached, jobs: list[Job], trackers: list[Tracker],
    accelerator: Accelerator, show_progress: bool,
) -> list[Outcome]:  # fmt: skip
    ids = [p.run_id for p in todo]
    cfg = todo[0].cfg
    state = Path(cfg.results_dir) / "checkpoints" / cfg.experiment / f"{'+'.join(ids[:4])}.{len(ids)}.safetensors"
    checkpointing = Checkpointing(state, ids, CHECKPOINT_SECONDS)
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
    numerics = devices.numerics(accelerator, cfg.backbone.dtype, cfg.trainer.precision, len(todo))
    memory = devices.peak_memory(accelerator.device)
    outcomes = []
    for p, r, start, tracker in zip(todo, runs, starts, trackers, strict=True):
        if r.position.diverged is not None:
            tracker.finish({"diverged": r.position.diverged}, failed=True)
            outcomes.append(_failed(p, "diverged", r.position.diverged, r.position.history))
            continue
        output = _output(r, start, accelerator, memory)
        if accelerator.is_main_process:
            save_trained(
                attached, parents.trained_path(p.cfg, p.run_id), r.k
            )  # before the record: done means all there
        outcomes.append(_record(p, describe(backbone), numerics, output, accelerator.is_main_process))
        tracker.finish({"validation": outcomes[-1].score})
    checkpointing.remove()
    return outcomes


def _output(r: Run, start: dict[str, Tensor], accelerator: Accelerator, memory: int) -> RunOutput:
    """Score the last and the best checkpoint on every split; afterwards the selected one is attached."""
    cfg, position = r.job.cfg, r.position
    splits = [s for s in r.job.data if s != cfg.task.train_split]

    def decoded() -> dict[str, np.ndarray]:
        found = {s: predict(r.attached, r.k, r.job, r.job.data[s], accelerator) for s in splits}
        return {s: predictions for s, predictions in found.items() if predictions is not None}

    began = time.perf_counter()
    last = trained_tensors(r.attached, r.k)
    predictions = {"last": decoded()}
    unmoved = [n for n, t in last.items() if t.equal(start[n]) and not n.endswith("key.bias")]
    same = position.best_epoch == r.epoch
    restore_best(r)
    predictions["best"] = predictions["last"] if same else decoded()
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
    return RunOutput(predictions, epochs, position.history, params, unmoved, cost)


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
        "processes": 1,
        "versions": {},
    }
    none = {"name": "none", "stands_for": p.cfg.backbone.name, "published": False, "sha256": None}
    return _record(p, none, numerics, output, write=True)


def _record(p: Prepared, backbone: dict[str, Any], numerics: dict[str, Any], output: RunOutput, write: bool) -> Outcome:
    record = assemble(p.cfg, p.identity, p.run_id, p.departures, p.data, backbone, numerics, output)
    if write:
        write_record(p.cfg.results_dir, record, prediction_columns(p.cfg, output, p.data))
    return _outcome(p, "done", ", ".join(record["flags"]), _selected_score(record), 0.0)


def _failed(p: Prepared, kind: str, message: str, history: Sequence[Any]) -> Outcome:
    try:
        failure = assemble_failure(p.cfg, p.identity, p.run_id, p.departures, kind, message, history)
        write_record(p.cfg.results_dir, failure)
    except RecordError as error:  # a forced repetition failed: the record of the run that finished stays
        message = f"{message} ({error})"
    return _outcome(p, "failed", f"{kind}: {message}", None, 0.0)


def _found(p: Prepared) -> Outcome | None:
    """The outcome of a run that is done already; an unreadable record is set aside and the run made again."""
    path = record_path(p.cfg.results_dir, p.cfg.experiment, p.run_id)
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except RecordError as error:
        log.warning("%s %s: set aside as %s, the run is made again", path, error, set_aside(path).name)
        return None
    return _outcome(p, "found", "its record exists; force=true repeats it", _selected_score(record), 0.0)


def _parent_score(child: RunConfig, cfg: RunConfig, show_progress: bool, again: bool) -> tuple[str, float]:
    """A parent's run id and validation score: found, or trained first, or refused with the command that makes it.

    Its record is enough; with `again`, its trained tensors must be there, too.
    """
    assert child.init_from is not None
    p = _prepare(cfg, show_progress)
    found = _found(p)
    there = found is not None and (not again or parents.is_whole(parents.trained_path(cfg, p.run_id)))
    if not there:
        if child.init_from.if_missing == "error":
            raise ValueError(f"init_from: no trained parent; make it with: {parents.command(child, child.init_from)}")
        log.info("training the parent first: %s %s seed %d", cfg.experiment, cfg.task.name, cfg.seed)
        found = run(dataclasses.replace(cfg, force=found is not None), show_progress)
    assert found is not None
    if found.score is None:
        raise ValueError(
            f"init_from: the parent {cfg.experiment} {cfg.task.name} seed {cfg.seed} has no score: {found.message}"
        )
    return found.run_id, found.score


def _selected_score(record: Any) -> float | None:
    chosen = record["selection"]
    for s in record["scores"]:
        if all(s[key] == chosen[key] for key in ("checkpoint", "split", "metric")):
            return s["score"]
    return None


def _outcome(p: Prepared, status: str, message: str, score: float | None, seconds: float) -> Outcome:
    return Outcome(p.cfg.experiment, p.cfg.task.name, p.cfg.seed, p.run_id, status, message, score, seconds)


def _resume(runs: list[Run], ids: list[str], state: Path) -> None:
    if load_checkpoint(runs, ids, state):
        log.info("resumed at step %d of %d", runs[0].position.step, runs[0].total_steps)


def _tracker(p: Prepared) -> Tracker:
    name = f"{p.cfg.experiment} {p.cfg.task.name} seed {p.cfg.seed}"
    return Tracker(p.cfg.tracking, p.run_id, p.cfg.experiment, name, p.identity["config"], p.cfg.results_dir)


def _flat(point: dict[str, Any]) -> dict[str, float]:
    values = {key: point[key] for key in ("train_loss", "learning_rate", "epoch")}
    return values | {f"{split}/{m}": v for split, by_metric in point["scores"].items() for m, v in by_metric.items()}
