"""The job of a run whose backbone writes: its own task, those that it is trained or scored on besides, its words."""

import dataclasses
import itertools
import logging

from peft_methods.attached import Attached

from ..backbones.loading import Backbone
from ..config.schema import (
    GenerationConfig,
    InContextConfig,
    RunConfig,
    TaskConfig,
    TextConfig,
    generation_of,
    others_of,
    text_of,
)
from ..metrics.squad import ANSWER_METRICS
from ..runs.prepare import Prepared
from ..tasks.examples import DataError
from ..tasks.loading import examples_of
from .decoding import check_tokens
from .in_context import InContext, draw
from .job import Job
from .texts import TextWriter
from .tokens import TokenizedSplit, joined, tokenize_texts
from .words import Writer

log = logging.getLogger(__name__)


def writing_job(p: Prepared, k: int, cfg: RunConfig, backbone: Backbone, attached: Attached) -> Job:
    """What run k trains on and answers. cfg: p.cfg, perhaps in smaller micro-batches."""
    job = _own_job(p, k, cfg, backbone, attached)
    others = [
        _training_rows(p, name, task, backbone, attached.sites.architecture.decoder_only)
        for name, task in others_of(p.cfg).items()
    ]
    if others:
        job.data[p.cfg.task.train_split] = joined([job.train_split, *others])
    return job


def _own_job(p: Prepared, k: int, cfg: RunConfig, backbone: Backbone, attached: Attached) -> Job:
    """The job of the run's own task, and of those that it is scored on."""
    decoder_only = attached.sites.architecture.decoder_only
    text, generation = _as_read(p.cfg, p.cfg.task)
    if generation is not None:
        check_tokens(p.cfg.decoding, backbone.tokenizer)  # now rather than after the training
        texts = TextWriter(generation, backbone.tokenizer, decoder_only, p.cfg.task.target_prefix)
        trainer = p.cfg.trainer
        lengths = trainer.max_length, p.cfg.decoding.max_new_tokens, attached.positions(k), trainer.eval_max_length
        splits = texts.tokenize(p.data.of(""), *lengths)
        if {*ANSWER_METRICS} & {*p.cfg.task.metrics}:  # longer texts have a score even where they are cut off
            _check_room_for_answers(p, texts)
        for name, task in p.cfg.transfer.items():
            other = generation_of(task, p.cfg.scale)
            assert other is not None  # check_config
            scored = TextWriter(other, backbone.tokenizer, decoder_only, p.cfg.task.target_prefix)
            splits |= {f"{name}/{s}": split for s, split in scored.tokenize(p.data.of(name), *lengths).items()}
        return Job(cfg, splits, texts.pad, texts=texts, references=p.data.references, truth=p.data.groups)
    read = p.cfg.trainer.max_length, p.cfg.trainer.eval_max_length
    writer = Writer(p.cfg.task, text, backbone.tokenizer, decoder_only)
    if p.cfg.in_context is not None:
        writer.separator = not decoder_only  # the answer goes on where the prompt stops
        writer.in_context = InContext(p.cfg.in_context, _shots(p.cfg, p.cfg.in_context, writer))
    job = Job(cfg, writer.tokenize(p.data.of(""), *read), writer.pad, writer)
    if writer.in_context is not None and (writer.in_context.fewer or writer.in_context.cut):
        log.warning(
            "%s: %d questions have room for fewer than %d examples, %d lost words of their own",
            p.run_id,
            writer.in_context.fewer,
            len(writer.in_context.examples),
            writer.in_context.cut,
        )
    for name, task in p.cfg.transfer.items():
        task = dataclasses.replace(task, target_prefix=p.cfg.task.target_prefix)
        trained = text.labels if text else []
        job.transfers[name] = Writer(task, text_of(task, p.cfg.scale), backbone.tokenizer, decoder_only, trained)
        of_other = job.transfers[name].tokenize(p.data.of(name), *read)
        job.data |= {f"{name}/{s}": split for s, split in of_other.items()}
        job.transfers[name].max_new_tokens = max(job.transfers[name].max_new_tokens, writer.max_new_tokens)
    return job


def _check_room_for_answers(p: Prepared, texts: TextWriter) -> None:
    """Whether decoding.max_new_tokens has room for the answers that count. Raises DataError where it has for none."""
    most = p.cfg.decoding.max_new_tokens - len(texts.begin) - 1  # what begins and ends an answer
    for split, references in p.data.references.items():
        lengths = map(len, tokenize_texts([text for group in references for text in group], texts.tokenizer))
        shortest = [min(itertools.islice(lengths, len(group))) for group in references]
        too_long = sum(length > most for length in shortest)
        if too_long == len(shortest):
            raise DataError(
                f"decoding.max_new_tokens={p.cfg.decoding.max_new_tokens} has no room for any answer of {split} (the "
                f"shortest has {min(shortest)} tokens and an end): change decoding.max_new_tokens"
            )
        if too_long:
            log.warning("%s: %d of %d answers of %s have no room", p.run_id, too_long, len(shortest), split)


def _training_rows(p: Prepared, name: str, task: TaskConfig, backbone: Backbone, decoder_only: bool) -> TokenizedSplit:
    """What a run trains on of another task of its mixture."""
    task = dataclasses.replace(task, target_prefix=p.cfg.task.target_prefix)
    text, generation = _as_read(p.cfg, task)
    data, length = p.data.of(name), p.cfg.trainer.max_length
    if generation is None:
        return Writer(task, text, backbone.tokenizer, decoder_only).tokenize(data, length)[task.train_split]
    texts = TextWriter(generation, backbone.tokenizer, decoder_only, task.target_prefix)
    return texts.tokenize(data, length, p.cfg.decoding.max_new_tokens)[task.train_split]


def _as_read(cfg: RunConfig, task: TaskConfig) -> tuple[TextConfig | None, GenerationConfig | None]:
    """How the task is written at this scale; in a mixture with its name in front, as T5 tells tasks apart."""
    text, generation = text_of(task, cfg.scale), generation_of(task, cfg.scale)
    if not cfg.mixture:
        return text, generation
    return (
        text and dataclasses.replace(text, source=f"{task.name} {text.source}"),
        generation and dataclasses.replace(generation, source=f"{task.name} {generation.source}"),
    )


def _shots(cfg: RunConfig, in_context: InContextConfig, writer: Writer) -> list[tuple[str, str]]:
    """The examples of a prompt in words, as (source, target) texts."""
    if in_context.of is not None:
        text = text_of(in_context.of, cfg.scale)
        writer = Writer(in_context.of, text, writer.tokenizer, writer.decoder_only)
    task = writer.task
    data = examples_of(in_context, task, cfg)
    rows, labels = data.texts[task.train_split], data.labels[task.train_split]
    chosen = draw(len(rows), in_context.shots, cfg.seed)
    return [(writer.source(rows[i]), writer.target(labels[i]).strip()) for i in chosen]
