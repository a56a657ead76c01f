"""One run of a pack by itself, and what it answers to a split, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from .tokens import Tokens

# Token ids that each run of a pack writes after its batch; None for a run without one.
Write = Callable[[Attached, list[Batch | None]], list[Tensor | None]]


def all_finite(logits: Tensor) -> Tensor:
    """(...) whether all of (..., V) are finite."""
    lowest, highest = logits.aminmax(dim=-1)  # of a NaN both are NaN
    return lowest.isfinite() & highest.isfinite()


@dataclass(frozen=True)
class OneRun:
    """Run k of what is attached; the others are skipped."""

    attached: Attached
    k: int
    accelerator: Accelerator

    def __call__(self, batch: Batch) -> Tensor:
        """The logits for a batch (Attached.forward)."""
        logits = self.attached(self._alone(batch))[self.k]
        assert logits is not None
        return logits

    def generate(self, batch: Batch, write: Write) -> tuple[Tensor, np.ndarray]:
        """(B, U) token ids that `write` makes the run write after a batch, and (B,) whether all logits behind them were
        finite: an id alone does not show that it was chosen among NaNs."""
        rows = len(batch["input_ids"])
        finite = torch.ones(rows, dtype=torch.bool, device=self.accelerator.device)

        def look(module: nn.Module, args: Any, output: Any) -> None:
            of_hypotheses = all_finite(output.logits[:, -1])  # beam search has several of every row
            finite.logical_and_(of_hypotheses.view(rows, -1).all(1))

        watching = self.attached.backbone.register_forward_hook(look)
        try:
            written = write(self.attached, self._alone(batch))[self.k]
        finally:
            watching.remove()
        assert written is not None
        return written, finite.cpu().numpy()

    def _alone(self, batch: Batch) -> list[Batch | None]:
        batches: list[Batch | None] = [None] * len(self.attached.runs)
        batches[self.k] = send_to_device(batch, self.accelerator.device)
        return batches

    @torch.no_grad()
    def by_batches(
        self, tokens: Tokens, size: int, answer: Callable[[np.ndarray], Any], title: str | None = None
    ) -> list[Any]:
        """What `answer` gives for each of the N rows of a split, from the rows (B,) of each batch. Processes share the
        batches. title: of a progress bar."""
        self.attached.eval()
        # By length: little padding; longest first: memory fails early.
        order = np.argsort(tokens.lengths, kind="stable")[::-1]
        starts = list(range(0, len(order), size))[self.accelerator.process_index :: self.accelerator.num_processes]
        shown = self.accelerator.is_main_process and title is not None
        mine: list[tuple[list[int], list[Any]]] = []
        for start in tqdm(starts, desc=title, unit="batch", disable=not shown, leave=False):
            rows = order[start : start + size]
            with self.accelerator.autocast():
                mine.append((rows.tolist(), list(answer(rows))))
        parts = gather_object(mine) if self.accelerator.num_processes > 1 else mine
        answers: dict[int, Any] = {}
        for part, values in parts:
            answers |= zip(part, values, strict=True)
        return [answers[row] for row in range(len(order))]
