"""Predictions of one run on one split, and their scores; the loss on texts that should have been written."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from ..answers.decoding import decode
from ..answers.job import Job
from ..answers.sequences import IGNORED
from ..answers.tokens import TokenizedSplit
from ..answers.words import ILLEGAL, Writer
from ..config.schema import LOSS, TaskConfig
from ..metrics.e2e import TEXT_METRICS, score_texts
from ..metrics.labels import EXACT_MATCH, MEAN, exact_match, score
from ..metrics.rouge import ROUGE, rouge
from ..metrics.squad import ANSWER_METRICS, score_answers
from ..tasks.texts import INPUTS


def validate(attached: Attached, k: int, job: Job, name: str, accelerator: Accelerator) -> dict[str, float] | None:
    """Run k's scores on a validation split during training: all metrics, or the loss alone where it is what selects
    (the metrics of texts need a search, which is then left to the end). None where the model gave no finite numbers."""
    if job.texts is not None:
        loss = target_loss(attached, k, job, job.data[name], accelerator)
        if not math.isfinite(loss):
            return None
        if job.cfg.task.selection_metric == LOSS:
            return {LOSS: loss}
        outputs = decode(attached, k, job, job.data[name + INPUTS], accelerator).texts
        found = text_scores(job.cfg.task, outputs, job.references[name], job.truth.get(name))
        return {LOSS: loss, **{metric: value for metric, value in found.items() if value is not None}}
    predictions = predict(attached, k, job, name, accelerator)
    return (
        None if predictions is None else scores(job.cfg.task, predictions, job.data[name].labels, job.data[name].groups)
    )


@torch.no_grad()
def predict(attached: Attached, k: int, job: Job, name: str, accelerator: Accelerator) -> np.ndarray | None:
    """(N,) predicted labels of run k (raw values for regression), in the order of the split; None where the model gave
    no finite numbers. Processes share the batches."""
    split = job.data[name]

    def answer(rows: np.ndarray, batches: list[Batch | None]) -> np.ndarray:
        if job.writer is not None and job.writer.in_context is not None:
            return most_probable(attached, k, job.writer, split, rows, batches)
        batches[k] = send_to_device(job.question_batch(split, rows), accelerator.device)
        return job.answer(attached, k, batches, name)

    results = _by_batches(attached, job, split, accelerator, answer)
    if not np.isfinite(results).all():
        return None
    return results.astype(np.float32) if job.cfg.task.num_labels == 1 else results.astype(np.int64)


def most_probable(
    attached: Attached, k: int, writer: Writer, split: TokenizedSplit, rows: np.ndarray, batches: list[Batch | None]
) -> np.ndarray:
    """(B,) the label of each row whose words run k finds the most probable (in_context.likelihood)."""
    per_token = writer.in_context is not None and writer.in_context.cfg.likelihood == "per_token"
    device = next(attached.backbone.parameters()).device
    found = []
    for label in range(len(writer.text.labels)):
        batch = send_to_device(writer.labelled_as(split, rows, label), device)
        labels = batch.pop("labels")
        batches[k] = batch
        logits = attached(batches)[k]
        assert logits is not None
        each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        summed = each.view(labels.shape).double().sum(1)
        found.append((summed / (labels != IGNORED).sum(1) if per_token else summed).cpu().numpy())
    losses = np.stack(found, 1)
    return np.where(np.isfinite(losses).all(1), losses.argmin(1), np.nan)


@torch.no_grad()
def target_loss(attached: Attached, k: int, job: Job, split: TokenizedSplit, accelerator: Accelerator) -> float:
    """Mean cross-entropy of the target tokens, without label smoothing."""

    def losses(rows: np.ndarray, batches: list[Batch | None]) -> np.ndarray:
        batch = send_to_device(job.labelled_batch(split, rows), accelerator.device)
        labels = batch.pop("labels")
        batches[k] = batch
        logits = attached(batches)[k]
        assert logits is not None
        each = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view(labels.shape).double().sum(1).cpu().numpy()

    summed = _by_batches(attached, job, split, accelerator, losses)
    return float(summed.sum() / len(split.targets[0])) if split.targets is not None else math.nan


def _by_batches(
    attached: Attached, job: Job, split: TokenizedSplit, accelerator: Accelerator,
    values_of: Callable[[np.ndarray, list[Batch | None]], np.ndarray],
) -> np.ndarray:  # fmt: skip
    """(N,) a number for every row of the split; processes share the batches."""
    attached.eval()
    size = job.cfg.trainer.eval_batch_size
    # By length: little padding; longest first: memory fails early.
    order = np.argsort(split.lengths, kind="stable")[::-1]
    starts = range(0, len(order), size)
    mine: list[tuple[np.ndarray, np.ndarray]] = []
    for start in list(starts)[accelerator.process_index :: accelerator.num_processes]:
        rows = order[start : start + size]
        with accelerator.autocast():
            mine.append((rows, values_of(rows, [None] * len(attached.runs))))
    parts = gather_object(mine) if accelerator.num_processes > 1 else mine
    results = np.empty(len(order), dtype=np.float64)
    for rows, values in parts:
        results[rows] = values
    return results


def text_scores(
    task: TaskConfig, outputs: Sequence[str], references: Sequence[Sequence[str]], truth: np.ndarray | None = None
) -> dict[str, float | None]:
    """Every metric of a task whose answers are texts; None where it needs Java and there is none."""
    kinds = (TEXT_METRICS, ROUGE, ANSWER_METRICS)
    of_e2e, of_summaries, of_answers = ([name for name in task.metrics if name in known] for known in kinds)
    found = score_texts(outputs, references, of_e2e) if of_e2e else {}
    found |= rouge(outputs, references, of_summaries) if of_summaries else {}
    found |= score_answers(outputs, references, of_answers, truth) if of_answers else {}
    values = [value for value in found.values() if value is not None]
    return found | ({MEAN: float(np.mean(values))} if MEAN in task.metrics else {})


def scores(
    task: TaskConfig, predictions: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Every metric of the task, in the metric's own unit; nan where it is undefined (a constant prediction).

    An answer that is no label of the task is a wrong one. F1, which knows two classes only, sees the other class, as
    T5's released metric does (f1_score_with_invalid); the other metrics see a class of its own.
    """
    found: dict[str, float] = {}
    for metric in task.metrics:
        if metric == MEAN:
            continue
        if metric == EXACT_MATCH:
            assert groups is not None
            found[metric] = exact_match(predictions == labels, groups)
            continue
        two = np.where(predictions == ILLEGAL, 1 - labels, predictions) if metric == "f1" else predictions
        found[metric] = score(metric, two, labels)
    return found | ({MEAN: float(np.mean([*found.values()]))} if MEAN in task.metrics else {})


def has_illegal(task: TaskConfig, predictions: np.ndarray) -> bool:
    """Whether an answer is no label of the task; where it is a score, below its range."""
    return bool((predictions == ILLEGAL).any()) and task.label_range[0] > ILLEGAL


def is_constant(predictions: np.ndarray) -> bool:
    """One class (or one value) throughout: the sign of a run that learnt nothing."""
    return len(predictions) > 1 and bool((predictions == predictions[0]).all())
