"""One run, or a pack of K on one backbone, from configuration to record, on one screen.

prepare.py, parents.py: config -> tasks -> identity; lease.py: this process makes it;
attach.py -> train.py -> score.py -> record.py: what is made
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence

import torch

from ..backbones.loading import load_backbone
from ..config.schema import RunConfig, is_control
from ..records.leases import ClaimLost
from ..training import devices
from . import parents
from .attach import Pack, attach_pack
from .checks import check_pack
from .control import make_control
from .lease import Lease, leased
from .outcome import Outcome, outcome_of, recorded_outcome
from .parents import prepare_all
from .prepare import Prepared, check_writable, note_departures
from .record import Cause, record, record_failure
from .score import score
from .train import train_pack

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class How:
    """How runs are made, whatever comes out.

    micro_batch_size: to begin with, where the configured one is known to run out of memory. whole: train all runs of
    the pack if one is missing. A pack of three does not give the last bits that a pack of four gave, so one that was
    killed between its records is taken up whole; records that exist stay as they are.
    """

    show_progress: bool = True
    micro_batch_size: int | None = None
    whole: bool = False


def run(cfg: RunConfig, how: How = How()) -> Outcome:
    """One run. Raises ValueError for bad input before training; a failure in training becomes a failed record."""
    return run_pack([cfg], how)[0]


def run_pack(cfgs: Sequence[RunConfig], how: How = How()) -> list[Outcome]:
    """K runs on one backbone, trained together; those whose record exists are left out.

    Whatever can be refused is refused, by a ValueError, before any training.
    """
    start = time.perf_counter()
    if not cfgs:
        return []
    check_pack(cfgs)
    with _threads(cfgs):
        check_writable(cfgs[0].results_dir)
        runs = prepare_all(cfgs)  # checks -> tasks -> identity; trains nothing
        for parent in parents.missing(runs):  # a loop, not a callback
            log.info("training the parent first: %s %s seed %d", parent.experiment, parent.task.name, parent.seed)
            parents.check_scored(run(parent, How(how.show_progress)))
        with leased(_to_make(runs, _recorded(runs), how)) as lease:
            outcomes = _recorded(runs)  # again: another process may have finished one before the lease
            pack = _to_make(runs, outcomes, how)
            if lease.busy:
                made = [outcome_of(p, "busy", lease.busy) for p in pack]
            else:
                note_departures(pack)
                made = make(pack, how, lease)
    seconds = (time.perf_counter() - start) / max(1, len(runs) - len(outcomes))
    for p, outcome in zip(pack, made, strict=True):
        outcomes.setdefault(p.run_id, outcome if lease.busy else dataclasses.replace(outcome, seconds=seconds))
    return [outcomes[p.run_id] for p in runs]


def make(runs: Sequence[Prepared], how: How, lease: Lease) -> list[Outcome]:
    """Attach, train, score, record. Out of memory: again with half the micro-batch. Any other exception of a pack: its
    runs one by one, so that only those that fail alone become failed records."""
    if not runs or is_control(runs[0].cfg):
        return [make_control(p) for p in runs]
    cfg = runs[0].cfg
    accelerator = devices.make_accelerator(cfg.device, cfg.trainer.precision, len(runs))
    machine = devices.Machine(accelerator, how.micro_batch_size, how.show_progress)
    backbone = load_backbone(cfg.backbone, cfg.scale, cfg.backbone_dir, accelerator.device, cfg.seed)
    pack = attach_pack(runs, backbone, how.micro_batch_size, lease)
    try:
        return _trained_and_recorded(pack, machine)
    except (OSError, ClaimLost):
        raise  # a full disk or a lost folder: there is nowhere to write a record to
    except Exception as error:  # recorded with its cause, so that a sweep goes on and the table shows the hole
        for tracker in pack.trackers:
            tracker.finish({}, failed=True)
        failure = error
    finally:
        pack.attached.detach()
    del pack  # what it holds is needed for the next attempt
    if devices.is_out_of_memory(failure):
        if (half := _half(runs, how.micro_batch_size)) is not None:
            log.warning("%s: out of memory, again with micro-batches of %d", runs[0].run_id, half)
            devices.free_memory()
            return make(runs, dataclasses.replace(how, micro_batch_size=half), lease)
        cause = Cause("out_of_memory", f"even with one example at a time: {failure}")
        return [record_failure(p, cause, lease=lease) for p in runs]
    log.error("%s failed", runs[0].run_id, exc_info=failure)
    if len(runs) > 1:
        return [outcome for p in runs for outcome in make([p], dataclasses.replace(how, micro_batch_size=None), lease)]
    return [record_failure(runs[0], Cause("error", f"{type(failure).__name__}: {failure}"), lease=lease)]


def _trained_and_recorded(pack: Pack, machine: devices.Machine) -> list[Outcome]:
    outcomes = []
    for p, trained in zip(pack.runs, train_pack(pack, machine), strict=True):
        # Of a pack that was killed between its records and is trained again whole, those that are there stay.
        outcomes.append(recorded_outcome(p) or record(pack, trained, score(trained, machine), machine))
    pack.checkpoint.unlink(missing_ok=True)
    machine.accelerator.wait_for_everyone()  # the records and tensors are there for every process
    return outcomes


def _half(runs: Sequence[Prepared], micro_batch_size: int | None) -> int | None:
    """Half of the examples that a forward pass took; None where that was one."""
    trainers = [p.cfg.trainer for p in runs]
    now = micro_batch_size or max(trainer.micro_batch_size or trainer.batch_size for trainer in trainers)
    return now // 2 or None


def _recorded(runs: Sequence[Prepared]) -> dict[str, Outcome]:
    """Run id -> outcome of the runs that are done already."""
    return {p.run_id: outcome for p in runs if (outcome := recorded_outcome(p)) is not None}


def _to_make(runs: Sequence[Prepared], outcomes: dict[str, Outcome], how: How) -> list[Prepared]:
    """The runs that are trained together: those without a record, or all of them if one has none and `how` says so."""
    without = [p for p in runs if p.run_id not in outcomes]
    return list(runs) if how.whole and without else without


@contextlib.contextmanager
def _threads(cfgs: Sequence[RunConfig]) -> Iterator[None]:
    """`threads` is of these runs, not of the process."""
    before = torch.get_num_threads()
    try:
        if cfgs[0].threads is not None and cfgs[0].threads >= 1:
            torch.set_num_threads(cfgs[0].threads)
        yield
    finally:
        torch.set_num_threads(before)
