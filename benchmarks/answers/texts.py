"""A task whose answers are texts, for one backbone: sources and targets as ids, the loss of the targets, and texts that
are searched for and compared with references."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peft_methods.attached import Attached
from peft_methods.inputs import Batch

from ..config.schema import LOSS, GenerationConfig, RunConfig, TaskConfig, generation_of
from ..metrics.scores import text_scores
from ..metrics.squad import ANSWER_METRICS
from ..tasks.examples import DataError, Gold, TaskData
from .decoding import check_tokens, read, write
from .one_run import OneRun
from .predictions import Texts
from .sequences import Sequences, flat, target_losses
from .tokens import Split, Tokens, tokenize_texts


class TextAnswers(Sequences):
    """positions: those that the method leaves to the text (None: any)."""

    def __init__(
        self, cfg: RunConfig, task: TaskConfig, tokenizer: PreTrainedTokenizerBase, decoder_start: int | None,
        positions: int | None = None,
    ):  # fmt: skip
        generation = generation_as_read(cfg, task)
        super().__init__(cfg.trainer, tokenizer, decoder_start, generation.separator)
        self.task, self.generation, self.decoding, self.positions = task, generation, cfg.decoding, positions
        self.batch_size = cfg.decoding.batch_size
        self.no_answer = ""

    @property
    def max_new_tokens(self) -> int:
        """The most that an answer may have."""
        return self.decoding.max_new_tokens

    def tokenize(self, data: TaskData) -> dict[str, Split]:
        """Every split's pairs, and its different sources, which lose tokens at their end where they leave no room for
        the output.

        Raises DataError where max_length leaves no room for a source, the positions none before the output, or
        decoding.max_new_tokens none for any answer that counts.
        """
        splits = {name: self._pairs(data, name) for name in data.texts}
        room = self._room_for_sources() if data.inputs else 0
        questions = {name: self._sources(lines, room) for name, lines in data.inputs.items()}
        if {*ANSWER_METRICS} & {*self.task.metrics}:  # longer texts have a score even where they are cut off
            for name, references in data.references.items():
                self._check_room_for_answers(name, references)
        return {name: Split(pairs, questions.get(name, pairs), data.gold(name)) for name, pairs in splits.items()}

    def _pairs(self, data: TaskData, split: str) -> Tokens:
        sources, targets = zip(*data.texts[split], strict=True)
        return self.pairs(
            [self.generation.source.format(text=text) for text in sources],
            [self._target(text) for text in targets],
            data.labels[split],
            self.trainer.max_length,
            self.generation.target_tokens,
        )

    def _room_for_sources(self) -> int:
        """How many tokens a source may have, without those around it."""
        check_tokens(self.decoding, self.tokenizer)  # now rather than after the training
        most = min(self.tokenizer.model_max_length, self.positions or self.tokenizer.model_max_length)
        length, around = self.read_length(self.positions), len(self.ended([]))
        room = (most - self.max_new_tokens if self.decoder_only else length) - max(around, 1)
        if room < 1:
            raise DataError(
                f"decoding.max_new_tokens={self.max_new_tokens} leaves no room for a source among {most} positions (a "
                "prompt or prefix has had its own); lower it"
            )
        return min(room, length - around)

    def _sources(self, lines: list[str], room: int) -> Tokens:
        ids = tokenize_texts([self.generation.source.format(text=text) for text in lines], self.tokenizer)
        return Tokens(*flat([self.ended(row[:room]) for row in ids]), labels=np.arange(len(lines)))

    def _check_room_for_answers(self, split: str, references: list[list[str]]) -> None:
        """Whether decoding.max_new_tokens has room for the answers that count: DataError where it has for none."""
        most = self.max_new_tokens - len(self.begin) - 1  # what begins and ends an answer
        lengths = map(len, tokenize_texts([text for group in references for text in group], self.tokenizer))
        shortest = [min(itertools.islice(lengths, len(group))) for group in references]
        too_long = sum(length > most for length in shortest)
        if too_long == len(shortest):
            raise DataError(
                f"decoding.max_new_tokens={self.max_new_tokens} has no room for any answer of {split} (the "
                f"shortest has {min(shortest)} tokens and an end): change decoding.max_new_tokens"
            )
        if too_long:
            self.notes.append(f"{too_long} of {len(shortest)} answers of {split} have no room")

    def _target(self, text: str) -> str:
        target = self.generation.target.format(text=text)
        return f"{self.task.target_prefix} {target}" if self.task.target_prefix else target

    def predict(self, one: OneRun, split: Split, title: str | None = None) -> Texts | None:
        """The loss of the targets, and what the run writes for every source; None where the logits of either were not
        finite."""
        loss = self.target_loss(one, split.examples)
        if not math.isfinite(loss) or (outputs := self.decode(one, split.questions, title)) is None:
            return None
        texts, ended = zip(*outputs, strict=True)
        return Texts([*texts], [*ended], loss)

    def validate(self, one: OneRun, split: Split) -> dict[str, float] | None:
        """All metrics, or the loss alone where it is what selects: the metrics of texts need a search, which is then
        left to the end. None where the logits were not finite."""
        loss = self.target_loss(one, split.examples)
        if not math.isfinite(loss):
            return None
        if self.task.selection_metric == LOSS:
            return {LOSS: loss}
        if (outputs := self.decode(one, split.questions)) is None:
            return None
        scores = self.metrics([text for text, _ in outputs], split.gold)
        return {LOSS: loss, **{metric: value for metric, value in scores.items() if value is not None}}

    def metrics(self, answers: Iterable[str], gold: Gold) -> dict[str, float | None]:
        """Every metric of the task; None where it needs Java and there is none."""
        return text_scores(self.task, [*answers], gold.references, gold.truth)

    def target_loss(self, one: OneRun, tokens: Tokens) -> float:
        """Mean cross-entropy of the target tokens, without label smoothing."""

        def losses(rows: np.ndarray) -> np.ndarray:
            batch = self.training_batch(tokens, rows)
            labels = batch.pop("labels").to(one.accelerator.device)
            return target_losses(one(batch), labels).cpu().numpy()

        assert tokens.targets is not None
        summed = np.array(one.by_batches(tokens, self.trainer.eval_batch_size, losses), dtype=np.float64)
        return float(summed.sum() / len(tokens.targets[0]))

    def decode(self, one: OneRun, questions: Tokens, title: str | None = None) -> list[tuple[str, bool]] | None:
        """What a run writes for every source, and whether it came to an end; None where its logits were not finite.
        title: of a progress bar."""

        def answer(rows: np.ndarray) -> list[tuple[str, bool] | None]:
            written, finite = one.generate(self.question_batch(questions, rows), self.write)
            return [self._read(ids) if sound else None for ids, sound in zip(written.tolist(), finite, strict=True)]

        outputs = one.by_batches(questions, self.batch_size, answer, title)
        return None if None in outputs else outputs

    def write(self, attached: Attached, batches: list[Batch | None]) -> list[Tensor | None]:
        """(B, U) token ids that each run writes after its batch, by beam search."""
        return write(attached, batches, self.decoding, self.tokenizer)

    def read(self, written: Tensor) -> list[str]:
        """The texts of outputs (B, U)."""
        return [self._read(ids)[0] for ids in written.tolist()]

    def _read(self, ids: list[int]) -> tuple[str, bool]:
        """The text of an output without the prefix of every target, and whether it came to an end."""
        text, ended = read(ids, self.decoding, self.tokenizer)
        return text.removeprefix(self.task.target_prefix).strip() if self.task.target_prefix else text, ended


def generation_as_read(cfg: RunConfig, task: TaskConfig) -> GenerationConfig:
    """How the task is set at this scale; in a mixture with its name in front, as T5 tells tasks apart."""
    generation = generation_of(task, cfg.scale)
    assert generation is not None
    return dataclasses.replace(generation, source=f"{task.name} {generation.source}") if cfg.mixture else generation
