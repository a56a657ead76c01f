"""Predictions of one run on one split, and their scores."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from benchmarks.config import TaskConfig
from benchmarks.metrics import score
from benchmarks.tasks.tokenizing import TokenizedSplit, collate
from peft_methods.attached import Attached
from peft_methods.inputs import Batch


@torch.no_grad()
def predict(
    attached: Attached, k: int, split: TokenizedSplit, pad_token_id: int, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """(N, num_labels) logits of run k in float32, in the order of the split. Processes share the batches."""
    attached.eval()
    order = np.argsort(split.lengths, kind="stable")[
        ::-1
    ]  # by length: little padding; longest first: memory fails early
    starts = range(0, len(order), batch_size)
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    for start in list(starts)[accelerator.process_index :: accelerator.num_processes]:
        rows = order[start : start + batch_size]
        batches: list[Batch | None] = [None] * len(attached.runs)
        batches[k] = send_to_device(collate(split, rows, pad_token_id), accelerator.device)
        with accelerator.autocast():
            logits = attached(batches)[k]
        assert logits is not None
        mine.append((rows, logits.float().cpu().numpy()))
    parts = gather_object(mine) if accelerator.num_processes > 1 else mine
    results = np.empty((len(order), parts[0][1].shape[1]), dtype=np.float32)
    for rows, values in parts:
        results[rows] = values
    return results


def decode(task: TaskConfig, logits: np.ndarray) -> np.ndarray:
    """(N,) predicted labels, or the raw values for regression."""
    return logits[:, 0] if task.num_labels == 1 else logits.argmax(axis=1)


def scores(task: TaskConfig, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task, in the metric's own unit; nan where it is undefined (a constant prediction)."""
    return {metric: score(metric, predictions, labels) for metric in task.metrics}


def is_constant(predictions: np.ndarray) -> bool:
    """One class (or one value) throughout: the sign of a run that learnt nothing."""
    return len(predictions) > 1 and bool((predictions == predictions[0]).all())
