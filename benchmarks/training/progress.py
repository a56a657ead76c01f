"""Progress of one run or pack in a terminal, and the checkpoints written along the way."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from .checkpoint import save_checkpoint
from .loop import Run


class StepProgress:
    """A bar over the optimizer steps with the time left; silent without a terminal or where a sweep shows its own."""

    def __init__(self, label: str, show: bool):
        self.label = label
        self.bar: tqdm | None = None
        self.show = show

    def __call__(self, runs: Sequence[Run]) -> None:
        if not self.show:
            return
        total, done = max(r.total_steps for r in runs), max(r.position.step for r in runs)
        if self.bar is None:
            # disable=None: tqdm stays silent where standard error is no terminal.
            self.bar = tqdm(
                total=total, initial=max(0, done - 1), desc=self.label, unit="step", disable=None, leave=False
            )
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Checkpointing:
    """Writes the pack's state every `seconds`; what is trained does not depend on when."""

    def __init__(self, path: Path, run_ids: Sequence[str], seconds: float, clock: Callable[[], float] = time.monotonic):
        self.path, self.run_ids, self.seconds, self.clock = path, run_ids, seconds, clock
        self.last = clock()

    def __call__(self, runs: Sequence[Run]) -> None:
        if self.clock() - self.last >= self.seconds:
            save_checkpoint(runs, self.run_ids, self.path)
            self.last = self.clock()

    def trained(self, runs: Sequence[Run]) -> None:
        """After the last step of a long run: what comes now, scoring every split, may take long, too."""
        if self.path.exists():
            save_checkpoint(runs, self.run_ids, self.path)

    def remove(self) -> None:
        """The records are written: the state has done its work."""
        self.path.unlink(missing_ok=True)
