"""From a claimed pack to its records: attach -> train -> score -> record; again where memory ran out."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from peft_methods.attached import Attached
from peft_methods.state import file_sha256, save_trained, trained_tensors

from ..answers.job import Job
from ..answers.predictions import Labels
from ..backbones.loading import Backbone, describe, load_backbone
from ..config.compose import build_method
from ..config.schema import is_control
from ..records import leases
from ..records.places import CHECKPOINTS
from ..training import devices
from ..training.checkpoint import load_checkpoint
from ..training.loop import Run, train
from ..training.progress import Checkpointing, StepProgress
from ..training.tracking import Tracker
from . import parents
from .attach import attach_pack
from .prepare import Outcome, Prepared, found_done
from .record import record_done, record_failed
from .score import RunOutput, judge, score

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
        return [record_failed(p, "out_of_memory", message, [], held) for p in pack]
    log.error("%s failed", pack[0].run_id, exc_info=failure)
    if len(pack) > 1:
        return [outcome for p in pack for outcome in make([p], show_progress, held)]
    return [record_failed(p, "error", f"{type(failure).__name__}: {failure}", [], held) for p in pack]


def _half(pack: Sequence[Prepared], micro_batch_size: int | None) -> int | None:
    """Half of the examples that a forward pass took; None where that was one."""
    trainers = [p.cfg.trainer for p in pack]
    now = micro_batch_size or max(trainer.micro_batch_size or trainer.batch_size for trainer in trainers)
    return now // 2 or None


def _train_and_record(
    todo: list[Prepared], backbone: Backbone, attached: Attached, jobs: list[Job], trackers: list[Tracker],
    accelerator: Accelerator, show_progress: bool, held: leases.Held | None, micro_batch_size: int | None,
) -> list[Outcome]:  # fmt: skip
    ids = [p.run_id for p in todo]
    cfg = todo[0].cfg
    state = Path(cfg.results_dir) / CHECKPOINTS / cfg.experiment / f"{'+'.join(ids[:4])}.{len(ids)}.safetensors"
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
            outcomes.append(record_failed(p, "diverged", r.position.diverged, r.position.history, held))
            continue
        output = score(r, start, accelerator, memory, show_progress)
        if held is not None:
            held.check()
        path = parents.trained_path(p.cfg, p.run_id)
        if accelerator.is_main_process:
            save_trained(attached, path, r.k)  # before the record: done means all there
            output.trained_sha256 = file_sha256(path)
        outcomes.append(record_done(p, describe(backbone), numerics, output, accelerator.is_main_process))
        tracker.finish({"validation": outcomes[-1].score})
    checkpointing.remove()
    return outcomes


def _control(p: Prepared) -> Outcome:
    """A control without a backbone: fitted on the training texts, scored like every run."""
    task, data = p.cfg.task, p.data.own
    start = time.perf_counter()
    regression = task.num_labels == 1
    fitted = build_method(p.cfg.method).fit(data.texts[task.train_split], data.labels[task.train_split], regression)
    seconds = time.perf_counter() - start
    asked, predictions = {}, {}
    for name, examples in {"": data, **p.data.transfer}.items():
        for split, rows in examples.texts.items():
            if name or split != task.train_split:
                called = f"{name}/{split}" if name else split
                asked[called] = (p.cfg.transfer[name] if name else task, examples.gold(split))
                predictions[called] = Labels(fitted.predict(rows))
    scores, flags, columns = judge(p.cfg, {"last": predictions, "best": predictions}, asked)
    output = RunOutput(scores, flags, columns, {"last": None, "best": None}, cost={"train_seconds": seconds})
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
    return record_done(p, none, numerics, output, write=True)


def _resume(runs: list[Run], ids: list[str], state: Path) -> None:
    if load_checkpoint(runs, ids, state):
        log.info("resumed at step %d of %d", runs[0].position.step, runs[0].total_steps)


def _tracker(p: Prepared) -> Tracker:
    name = f"{p.cfg.experiment} {p.cfg.task.name} seed {p.cfg.seed}"
    return Tracker(p.cfg.tracking, p.run_id, p.cfg.experiment, name, p.identity["config"], p.cfg.results_dir)


def _flat(point: dict[str, Any]) -> dict[str, float]:
    values = {key: point[key] for key in ("train_loss", "learning_rate", "epoch")}
    return values | {f"{split}/{m}": v for split, by_metric in point["scores"].items() for m, v in by_metric.items()}
