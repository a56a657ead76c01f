"""How a sweep shows itself: a bar with the time left in a terminal, one line per finished run elsewhere."""

import time
from collections.abc import Sequence
from typing import Any


class Display:
    """What is done, what failed, how long is left."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.total, self.done, self.began = total, 0, time.monotonic()
        self.console = Console(stderr=False)
        self.progress = None
        self._waiting = 0
        if self.console.is_terminal:
            columns = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}")]
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task("runs", total=total, left="")
            self.progress.start()

    def show(self, line: Any) -> None:
        """One finished run (workers.Line)."""
        self.done += 1
        left = (time.monotonic() - self.began) / self.done * max(0, self.total - self.done)
        value = "" if line.score is None else f" {line.score:.3f}"
        note = f"  {line.message}" if line.status in ("failed", "skipped") or line.message else ""
        text = f"{line.status:>7}  {line.label}{value}  {line.seconds:.1f} s{note}"
        if self.progress is None:
            print(f"[{self.done}/{self.total}, {clock(left)} left] {text}", flush=True)
        else:
            self.progress.update(self.task, advance=1, left=f"{clock(left)} left")
            self.say(text)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.progress is None:
            print(text, flush=True)
        else:
            self.progress.console.print(text, highlight=False, markup=False)

    def wait_for(self, runs: int) -> None:
        """Only runs of other processes are left."""
        if runs != self._waiting:
            self.say(f"waiting for {runs} runs that other processes make")
        self._waiting = runs

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


def summary(lines: Sequence[Any], found: int, seconds: float) -> str:
    """Done, found, failed with cause and how to retry; the last thing a sweep prints."""
    count = {status: sum(line.status == status for line in lines) for status in ("done", "found", "failed", "skipped")}
    elsewhere = sum(line.status == "elsewhere" for line in lines)
    text = [
        f"{count['done']} runs done, {found + count['found']} found done before, "
        + f"{elsewhere} made by other processes, " * bool(elsewhere)
        + f"{count['failed']} failed, {count['skipped']} not begun, in {clock(seconds)}"
    ]
    text += [f"  {line.status}: {line.label}: {line.message}" for line in lines if line.status in ("failed", "skipped")]
    if count["failed"] or count["skipped"]:
        text.append(
            "The same command begins what ran out of memory or lost its worker again, and what has no record; "
            "with --retry every failed run."
        )
    return "\n".join(text)


def clock(seconds: float) -> str:
    """1:05:09, or 5:09 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
