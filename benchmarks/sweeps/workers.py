"""Make the packs of a plan, in local processes or as a Slurm array: what is done, what failed, how long is left.

Each worker keeps its backbones and tokenized data from pack to pack. A worker that dies (killed, out of memory) is
replaced, and what it was making begins again from its checkpoint; a pack that loses two workers is a failed one.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from ..config.schema import RunConfig
from ..records.leases import drop_claims
from .display import Display
from .plan import Cell, Plan, PlannedPack, make_plan

log = logging.getLogger(__name__)
POLL_SECONDS = 5.0  # how often runs that another process makes are looked at
LIVES = 2  # workers that a pack may lose


@dataclass(frozen=True)
class Line:
    """One finished run, as the display and the summary show it. status: of Outcome, or skipped."""

    label: str
    status: str
    message: str
    score: float | None
    seconds: float
    kind: str | None = None


class Pool(Protocol):
    """Who makes packs: local processes or a cluster."""

    def make(self, packs: Iterator[PlannedPack]) -> Iterable[tuple[PlannedPack, list[Line]]]: ...


def run_all(
    cfgs: Sequence[RunConfig], plan: Plan, pool: Pool, workers: int, size: int | None, retry: bool
) -> list[Line]:
    """Every run of the plan once, parents before their children; a failed run is a line."""
    found = [cell for cell in plan.cells if cell.state == "done" and not cell.cfg.force]
    display = Display(len(plan.cells) - len(found))
    if found:
        display.say(f"{len(found)} of {len(plan.cells)} runs are done already")
    lines: dict[Any, Line] = {}
    stopped: set[str] = set()  # experiments with a bug
    try:
        while True:
            for level in _levels(plan):
                _make(level, pool, display, lines, stopped)
            plan = make_plan(cfgs, size, workers, retry, stale=False, known=plan.known)
            attempted = lines.keys()
            plan.packs = [p for p in plan.packs if not all(_name(c) in attempted for c in p.cells)]
            if plan.packs:
                continue
            others = [cell for cell in plan.cells if cell.state == "running"]
            if not others:
                break
            display.wait_for(len(others))
            time.sleep(POLL_SECONDS)
    finally:
        display.close()
    before = {_name(cell) for cell in found}
    for cell in plan.cells:
        if cell.state == "done" and _name(cell) not in lines.keys() | before:
            lines[_name(cell)] = Line(cell.label, "elsewhere", "another process made it", None, 0.0)
    for cell in plan.cells:  # a child whose parent failed has never had a pack
        if cell.state in ("waiting", "failed") and _name(cell) not in lines:
            why = "its parents have no score" if cell.state == "waiting" else f"{cell.kind}, before; --retry repeats it"
            lines[_name(cell)] = Line(cell.label, "skipped", why, None, 0.0)
    return list(lines.values())


def _levels(plan: Plan) -> list[list[PlannedPack]]:
    """Runs without a parent first: a child begins when all of them have ended."""
    parents = [pack for pack in plan.packs if pack.cells[0].cfg.init_from is None]
    return [parents] if parents else [plan.packs]


def _make(
    packs: Sequence[PlannedPack], pool: Pool, display: Display, lines: dict[Any, Line], stopped: set[str]
) -> None:
    def wanted() -> Iterator[PlannedPack]:
        """The next pack, when somebody is free to make it: what has failed until then is known."""
        for pack in packs:
            if all(cell.cfg.experiment in stopped for cell in pack.cells):
                _skip(pack, display, lines)
            else:
                yield pack

    for pack, made in pool.make(wanted()):
        for cell, line in zip(pack.cells, made, strict=True):
            if line.status == "busy":
                continue  # another process makes it: looked at again when everything else is done
            lines[_name(cell)] = line
            display.show(line)
            if line.kind == "error":
                stopped.add(cell.cfg.experiment)


def _skip(pack: PlannedPack, display: Display, lines: dict[Any, Line]) -> None:
    for cell in pack.cells:
        lines[_name(cell)] = Line(cell.label, "skipped", "an earlier run of this experiment has a bug", None, 0.0)
        display.show(lines[_name(cell)])


def _name(cell: Cell) -> Any:
    """What stays the same when a run that waited for its parent gets its identity."""
    return cell.cfg.experiment, cell.label, repr(cell.cfg)


class LocalPool:
    """Worker processes on this machine: one a GPU where there are GPUs, else several of one thread each."""

    def __init__(self, workers: int, gpus: int = 0):
        self.workers, self.gpus = workers, gpus
        self._pool: ProcessPoolExecutor | None = None

    def make(self, packs: Iterator[PlannedPack]) -> Iterable[tuple[PlannedPack, list[Line]]]:
        """Each pack with its lines, in the order in which they end."""
        again: list[PlannedPack] = []
        lost: dict[int, int] = {}
        pending: dict[Future[list[Line]], PlannedPack] = {}
        while True:
            while len(pending) < self.workers and (pack := again.pop(0) if again else next(packs, None)) is not None:
                pending[self._executor().submit(make_lines, [c.cfg for c in pack.cells], pack.whole)] = pack
            if not pending:
                return
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            try:
                for future in finished:
                    made = future.result()
                    yield pending.pop(future), made
            except BrokenProcessPool:  # which of them died is not said: all in flight begin again
                log.warning("a worker process died; its runs begin again from their checkpoints")
                self._pool = None
                suspects = list(pending.values())
                pending.clear()
                for pack in suspects:
                    lost[id(pack)] = lost.get(id(pack), 0) + 1
                    if lost[id(pack)] < LIVES:
                        again.append(pack)
                    else:
                        yield pack, _lost(pack)

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            devices = context.Queue()
            for i in range(self.workers):
                devices.put(i % self.gpus if self.gpus else None)
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=context, initializer=_start, initargs=(self.workers, devices)
            )
        return self._pool

    def close(self, now: bool) -> None:
        """End the workers; `now`: in the middle of their packs, which take up again from checkpoints."""
        if self._pool is None:
            return
        if now:
            for worker in multiprocessing.active_children():
                worker.terminate()  # what they write is whole or absent (records/files.py)
        self._pool.shutdown(wait=not now, cancel_futures=True)


def make_lines(cfgs: Sequence[RunConfig], whole: bool) -> list[Line]:
    """One pack in this process; a line for each of its runs, whatever happens. Refused as a pack, run by run."""
    from ..runs.run import How, run_pack

    labels = [Cell(cfg, None, "missing").label for cfg in cfgs]
    try:
        outcomes = run_pack(cfgs, How(show_progress=False, whole=whole))
    except Exception as error:
        if isinstance(error, ValueError) and len(cfgs) > 1:  # one of them was refused: the others are made without it
            return [line for cfg in cfgs for line in make_lines([cfg], whole)]
        if not isinstance(error, ValueError | OSError):
            import traceback

            traceback.print_exc(file=sys.stderr)
        message = " ".join(str(error).split()) or type(error).__name__
        return [Line(label, "failed", message, None, 0.0) for label in labels]
    return [
        Line(label, o.status, o.message, o.score, o.seconds, o.kind) for label, o in zip(labels, outcomes, strict=True)
    ]


def _lost(pack: PlannedPack) -> list[Line]:
    from ..runs.record import Cause, record_lost

    message = f"{LIVES} worker processes died while they made this pack (killed, or out of memory)"
    for cell in pack.cells:
        record_lost(cell.cfg, Cause("worker_lost", message))
        if cell.key is not None:
            drop_claims(cell.cfg.results_dir, [cell.key])
    return [Line(cell.label, "failed", f"worker_lost: {message}", None, 0.0, "worker_lost") for cell in pack.cells]


def _start(workers: int, devices: Any) -> None:
    """One thread for each of several: two such processes train small backbones faster than one of two threads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent ends the others
    if workers > 1:
        torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed sweep leaves no workers behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
