"""Predictions of one run on one split, and their scores."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from benchmarks.config import TaskConfig
from benchmarks.job import Job
from benchmarks.metrics import score
from benchmarks.tasks.tokenizing import TokenizedSplit
from benchmarks.tasks.writing import ILLEGAL
from peft_methods.attached import Attached
from peft_methods.inputs import Batch


@torch.no_grad()
def predict(attached: Attached, k: int, job: Job, split: TokenizedSplit, accelerator: Accelerator) -> np.ndarray | None:
    """(N,) predicted labels of run k (raw values for regression), in the order of the split; None where the model gave
    no finite numbers. Processes share the batches."""
    attached.eval()
    size = job.cfg.trainer.eval_batch_size
    # By length: little padding; longest first: memory fails early.
    order = np.argsort(split.lengths, kind="stable")[::-1]
    starts = range(0, len(order), size)
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    for start in list(starts)[accelerator.process_index :: accelerator.num_processes]:
        rows = order[start : start + size]
        batches: list[Batch | None] = [None] * len(attached.runs)
        batches[k] = send_to_device(job.question_batch(split, rows), accelerator.device)
        with accelerator.autocast():
            mine.append((rows, job.answer(attached, k, batches)))
    parts = gather_object(mine) if accelerator.num_processes > 1 else mine
    results = np.empty(len(order), dtype=np.float64)
    for rows, values in parts:
        results[rows] = values
    if not np.isfinite(results).all():
        return None
    return results.astype(np.float32) if job.cfg.task.num_labels == 1 else results.astype(np.int64)


def scores(task: TaskConfig, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the task, in the metric's own unit; nan where it is undefined (a constant prediction).

    An answer that is no label of the task is a wrong one. F1, which knows two classes only, sees the other class, as
    T5's released metric does (f1_score_with_invalid); the other metrics see a class of its own.
    """
    seen = dict.fromkeys(task.metrics, predictions)
    if "f1" in seen:
        seen["f1"] = np.where(predictions == ILLEGAL, 1 - labels, predictions)
    return {metric: score(metric, values, labels) for metric, values in seen.items()}


def has_illegal(task: TaskConfig, predictions: np.ndarray) -> bool:
    """Whether an answer is no label of the task; where it is a score, below its range."""
    return bool((predictions == ILLEGAL).any()) and task.label_range[0] > ILLEGAL


def is_constant(predictions: np.ndarray) -> bool:
    """One class (or one value) throughout: the sign of a run that learnt nothing."""
    return len(predictions) > 1 and bool((predictions == predictions[0]).all())
