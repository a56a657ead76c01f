"""The training loop, for one run or a pack of K: one forward and backward pass of the frozen backbone serves them all.

Each run has its own data order, learning rate, schedule, clipping, evaluation times and best checkpoint. Everything
random follows from counters (run seed, epoch, step), so a run's position is a few integers, a killed pack resumes bit
for bit, and a run in a pack trains as it would alone. A run that diverges stops; the others do not notice.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from peft_methods.attached import Attached
from peft_methods.inputs import Batch
from peft_methods.state import copy_trained, trained_tensors

from ..answers.job import Job
from ..answers.one_run import OneRun
from ..config.metrics import metric
from ..config.schema import RunConfig
from .optimizers import make_optimizer, make_schedule

LOSS_CHECK_STEPS = 20  # how often losses are read back from the device and checked


@dataclass
class Position:
    """Where a run stands: all of it goes into a checkpoint."""

    step: int = 0
    window_losses: list[float] = field(default_factory=list)
    tokens: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    best_score: float | None = None
    best_epoch: float = 0.0
    diverged: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One run of the pack: its optimizer, its schedule and its position."""

    def __init__(self, k: int, job: Job, attached: Attached):
        trainer, n = job.cfg.trainer, len(job.training)
        self.k, self.job, self.attached = k, job, attached
        self.steps_per_epoch = math.ceil(n / trainer.batch_size)
        planned = trainer.epochs * self.steps_per_epoch
        self.total_steps = planned if trainer.max_steps is None else min(planned, trainer.max_steps)
        self.modules = attached.run(k)
        self.parameters = self.modules.trained()
        self.start = trained_tensors(attached, k)
        self.optimizer = make_optimizer(self.modules.parameter_groups(), trainer)
        self.schedule = make_schedule(self.optimizer, trainer, self.total_steps)
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    @property
    def epoch(self) -> float:
        """Epochs trained so far."""
        return self.position.step / self.steps_per_epoch

    @property
    def active(self) -> bool:
        return self.position.step < self.total_steps and self.position.diverged is None

    @property
    def evaluates_now(self) -> bool:
        every = self.job.cfg.trainer.evaluate_every_steps or self.steps_per_epoch
        return self.position.step % every == 0 or self.position.step == self.total_steps

    def next_rows(self) -> np.ndarray:
        """Rows of the next optimizer step, in the order that (seed, epoch) gives; the last batch may be smaller."""
        epoch, batch = divmod(self.position.step, self.steps_per_epoch)
        size = self.job.cfg.trainer.batch_size
        if self._order[0] != epoch:
            self._order = (epoch, data_order(self.job.training.lengths, self.job.cfg, epoch))
        return self._order[1][batch * size : (batch + 1) * size]

    def update(self, loss: Tensor) -> None:
        """Clip, step, and advance; `loss` is the step's mean loss, still on the device."""
        parameters = list(self.parameters.values())
        if self.job.cfg.trainer.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.job.cfg.trainer.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.modules.after_step(self.position.step + 1, self.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self._losses.append(loss)
        if len(self._losses) >= LOSS_CHECK_STEPS or self.evaluates_now:
            self.read_losses()

    def read_losses(self) -> None:
        """Fetch the losses still on the device into the position, and see whether they are numbers."""
        if not self._losses:
            return
        values = torch.stack(self._losses).tolist()
        self._losses.clear()
        for i, value in enumerate(values):
            if not math.isfinite(value):
                step = self.position.step - len(values) + i + 1
                self.position.diverged = f"the training loss was {value} at step {step} of {self.total_steps}"
                return
        self.position.window_losses += values

    def evaluate(self, accelerator: Accelerator) -> dict[str, Any] | None:
        """Score the validation splits, note the point in the history, keep the tensors if they are the best so far.

        The point, or None where the run diverged.
        """
        start, position, cfg = time.perf_counter(), self.position, self.job.cfg
        point: dict[str, Any] = {
            "epoch": self.epoch,
            "step": position.step,
            "train_loss": float(np.mean(position.window_losses)) if position.window_losses else None,
            "learning_rate": self.schedule.get_last_lr()[0],
            "scores": {},
        }
        for name in cfg.task.validation_splits:
            scored = self.job.scored[name]
            scores = scored.answers.validate(OneRun(self.attached, self.k, accelerator), scored.split)
            if scores is None:
                position.diverged = f"the predictions on {name} were not finite at step {position.step}"
                return None
            point["scores"][name] = scores
        position.window_losses = []
        position.history.append(point)
        value = point["scores"][cfg.task.validation_splits[0]][cfg.task.selection_metric]
        if metric(cfg.task.selection_metric).better(value, position.best_score) or not self.best:
            position.best_score = value if math.isfinite(value) else None
            position.best_epoch = self.epoch
            self.best = trained_tensors(self.attached, self.k)
        position.eval_seconds += time.perf_counter() - start
        return point


def train(
    attached: Attached,
    jobs: Sequence[Job],
    accelerator: Accelerator,
    on_step: Callable[[list[Run]], None] = lambda runs: None,
    resume: Callable[[list[Run]], object] = lambda runs: None,
    on_evaluation: Callable[[Run, dict[str, Any]], object] = lambda run, point: None,
) -> list[Run]:
    """Train every job to its end. Afterwards the attached tensors are those of each run's last step.

    resume: may move the runs to a stored position first. on_step sees every step (progress, checkpoints), on_evaluation
    every point of a run's history.
    """
    runs = [Run(k, job, attached) for k, job in enumerate(jobs)]
    resume(runs)
    model = accelerator.prepare(attached)
    if any(job.cfg.trainer.gradient_checkpointing for job in jobs):
        attached.backbone.activation_checkpointing_enable({"use_reentrant": False})
    while active := [run for run in runs if run.active]:
        start = time.perf_counter()
        if not attached.training:
            attached.train()
        _step(model, attached, active, accelerator)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        for run in active:
            run.position.train_seconds += time.perf_counter() - start
        for run in active:
            evaluates = run.evaluates_now and run.position.diverged is None
            if evaluates and (point := run.evaluate(accelerator)) is not None:
                on_evaluation(run, point)
        on_step(runs)
    return runs


def _step(model: nn.Module, attached: Attached, active: list[Run], accelerator: Accelerator) -> None:
    """One optimizer step of every active run; their gradients share nothing but the pass through the backbone."""
    world, rank = accelerator.num_processes, accelerator.process_index
    rows = {run.k: run.next_rows() for run in active}
    chunks = {run.k: list(_micro_batches(rows[run.k], run.job.cfg.trainer.micro_batch_size, world)) for run in active}
    weights = {run.k: run.job.answers.weight(run.job.training, rows[run.k]) for run in active}
    losses = {run.k: torch.zeros((), device=accelerator.device, dtype=torch.float64) for run in active}
    tokens = dict.fromkeys(rows, 0)
    extras: dict[int, Tensor] = {}
    for i in range(max(len(c) for c in chunks.values())):
        batches: list[Batch | None] = [None] * len(attached.runs)
        labels: dict[int, Tensor] = {}
        counted: dict[int, bool] = {}
        for run in active:
            if i >= len(chunks[run.k]):
                continue
            # Every process joins in every pass: one that a small piece leaves without rows repeats one, for nothing.
            own = chunks[run.k][i][rank::world]
            counted[run.k] = len(own) > 0
            batch = run.job.answers.training_batch(run.job.training, own if len(own) else chunks[run.k][i][:1])
            tokens[run.k] += int(batch["attention_mask"].sum()) * counted[run.k]
            batch = send_to_device(batch, accelerator.device)
            labels[run.k] = batch.pop("labels")
            batches[run.k] = batch
            stream = attached.streams[run.k]
            stream.step, stream.micro_batch = run.position.step, i * world + rank
        with accelerator.autocast():
            logits = model(batches)
        total: Tensor | None = None
        for run in active:
            if run.k in labels:
                loss = run.job.answers.loss(logits[run.k], labels[run.k]) * counted[run.k]
                losses[run.k] += loss.detach()
                # Data-parallel processes average their gradients: times world makes the average a sum.
                share = loss * (world / weights[run.k])
                total = share if total is None else total + share
                if i == 0 and (extra := run.modules.extra_loss()) is not None:  # of the step, not of its pieces
                    extras[run.k] = extra.detach()
                    total = total + extra
        accelerator.backward(total)
    for run in active:
        if world > 1:
            sums = torch.stack([losses[run.k], losses[run.k].new_tensor(tokens[run.k])])
            losses[run.k], read = accelerator.reduce(sums, "sum")
            tokens[run.k] = int(read)
        run.position.tokens += tokens[run.k]
        run.update(losses[run.k] / weights[run.k] + extras.get(run.k, 0.0))


def data_order(lengths: np.ndarray, cfg: RunConfig, epoch: int) -> np.ndarray:
    """(N,) the order of an epoch. With `group_by_length`, rows are sorted by length within 50 batches of the shuffled
    order, and whole batches are shuffled: less padding, another order, hence part of the identity."""
    generator = np.random.Generator(np.random.PCG64([cfg.seed, epoch]))
    order = generator.permutation(len(lengths))
    if not cfg.trainer.group_by_length:
        return order
    size = cfg.trainer.batch_size
    window = 50 * size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        block = order[start : start + window]
        block = block[np.argsort(lengths[block], kind="stable")]
        batches += [block[i : i + size] for i in range(0, len(block), size)]
    full = [b for b in batches if len(b) == size]
    shuffled = [full[i] for i in generator.permutation(len(full))]
    return np.concatenate(shuffled + [b for b in batches if len(b) < size])


def restore_best(run: Run) -> None:
    """Put the best checkpoint's tensors back into the attached run."""
    copy_trained(run.attached, run.best, run.k)


def _micro_batches(rows: np.ndarray, size: int | None, world: int) -> Iterator[np.ndarray]:
    """Pieces of at most `size` examples per process; None is the whole batch at once."""
    step = len(rows) if size is None else size * world
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
