"""Run many configurations in a few local processes, with one display: what is done, what failed, how long is left.

Runs that start from another run (init_from) come after all others, so that their parents are there. Each worker keeps
its backbones and tokenized data from run to run.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

from benchmarks.compose import compose_job
from benchmarks.config import RunConfig


@dataclass(frozen=True)
class Line:
    """One finished run, as the display and the summary show it."""

    label: str
    status: str
    message: str
    score: float | None
    seconds: float


def run_all(jobs: Sequence[Sequence[str]], workers: int) -> list[Line]:
    """Every job (its Hydra overrides) once, in `workers` processes of one thread each; a failed run is a line.

    All are composed before any starts, so that a misspelt key (ValueError) stops the sweep at once.
    """
    display = Display(len(jobs))
    lines: list[Line] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(workers,)) as pool:
        try:
            cfgs = list(pool.map(compose_job, jobs))
            display.start()
            for stage in ([c for c in cfgs if c.init_from is None], [c for c in cfgs if c.init_from is not None]):
                pending: set[Future[Line]] = {pool.submit(_one, cfg) for cfg in stage}
                while pending:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in finished:
                        lines.append(future.result())
                        display.show(lines[-1])
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()  # what they write is whole or absent (record.py)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            display.close()
    return lines


def summary(lines: Sequence[Line], seconds: float) -> str:
    """Done, found, failed with cause; the last thing a sweep prints."""
    count = {status: sum(line.status == status for line in lines) for status in ("done", "found", "failed")}
    text = [
        f"{count['done']} runs done, {count['found']} found done before, {count['failed']} failed, in {_clock(seconds)}"
    ]
    for line in lines:
        if line.status == "failed":
            text.append(f"  failed: {line.label}: {line.message}")
    if count["failed"]:
        text.append("Run the same command again: runs that are done are left out.")
    return "\n".join(text)


class Display:
    """A bar with the time left in a terminal; elsewhere one line per finished run."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.total, self.done, self.began = total, 0, time.monotonic()
        self.console = Console(stderr=False)
        self.progress = None
        if self.console.is_terminal:
            columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}")]
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task("runs", total=total, left="composing")
            self.progress.start()

    def start(self) -> None:
        """From here on the time left is measured."""
        self.began = time.monotonic()

    def show(self, line: Line) -> None:
        self.done += 1
        left = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        value = "" if line.score is None else f" {line.score:.3f}"
        note = f"  {line.message}" if line.status == "failed" or line.message else ""
        text = f"{line.status:>6}  {line.label}{value}  {line.seconds:.1f} s{note}"
        if self.progress is None:
            print(f"[{self.done}/{self.total}, {_clock(left)} left] {text}", flush=True)
        else:
            self.progress.update(self.task, advance=1, left=f"{_clock(left)} left")
            self.progress.console.print(text, highlight=False)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


def _start(workers: int) -> None:
    """One thread a worker: two one-thread processes train small backbones faster than one of two threads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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


def _one(cfg: RunConfig) -> Line:
    from benchmarks.run import run

    size = {k: v for k, v in cfg.method.items() if k in ("bottleneck_dim", "rank")}
    label = f"{cfg.experiment} {cfg.task.name} seed {cfg.seed}" + "".join(f" {k}={v}" for k, v in size.items())
    try:
        outcome = run(cfg, show_progress=False)
    except Exception as error:
        if not isinstance(error, ValueError | OSError):
            import traceback

            traceback.print_exc(file=sys.stderr)
        return Line(label, "failed", " ".join(str(error).split()) or type(error).__name__, None, 0.0)
    return Line(label, outcome.status, outcome.message, outcome.score, outcome.seconds)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
