"""One pretraining run: tokenizer, model, steps, the folder that is written."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup
from transformers.activations import NewGELUActivation

from peft_methods.state import file_sha256

from ..micro.notes import notes
from .builders import BUILDERS
from .denoising import DenoisingStream
from .folder import PretrainReport, load_pretrained, load_tokenizer, made_before, write_folder
from .masking import PairStream
from .objectives import Stream, make_stream, training_loss
from .real_text import collections
from .settings import PretrainConfig, check_settings, described, documents, kept_path
from .span_corruption import SpanStream
from .state import load_state, save_state, state_path

STATE_SECONDS = 300.0  # between two writings of the state from which a run goes on


def pretrain(cfg: PretrainConfig, force: bool = False) -> PretrainReport:
    """Train tokenizer and model and write `cfg.output`, whole or not at all; the report of what is there already.

    force: make it again, and replace what was made otherwise. Raises ValueError for the latter without it.
    """
    check_settings(cfg)
    if not force and (found := made_before(cfg)) is not None:
        print(f"found: {cfg.output} was made with these settings; --force makes it again", flush=True)
        return found
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads)
    try:
        return _pretrain(cfg)
    finally:
        torch.set_num_threads(threads)


def _pretrain(cfg: PretrainConfig) -> PretrainReport:
    torch.manual_seed(cfg.seed)
    corpus = documents(cfg, "train")[: cfg.documents]
    if cfg.notes:
        corpus += [note.split("\n") for note in notes("train")[: cfg.documents]]
    tokenizer, model = _start(cfg, corpus)
    stream = make_stream(
        cfg.objective,
        cfg.model_type,
        tokenizer,
        corpus,
        cfg.batch_size,
        tokenizer.model_max_length,
        cfg.seed,
        cfg.mask_probability,
    )
    _fuse_gelu(model)
    groups = _decay_groups(model, cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.98), fused=True)
    path, identity = state_path(cfg.output), described(cfg) | _read(cfg)
    done = load_state(path, identity, model, optimizer)
    for step in range(done.step):  # what was seen already
        _ease_in(cfg, stream, step)
        stream.batch()
    for group in optimizer.param_groups:
        group["initial_lr"] = cfg.learning_rate
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(cfg.warmup * cfg.steps), cfg.steps, done.step - 1 if done.step else -1
    )
    model.train()
    title = f"pretrain {cfg.output.name}"
    bar = tqdm(total=cfg.steps, initial=done.step, desc=title, unit="step", mininterval=1.0)
    now = saved = time.perf_counter()
    while done.step < cfg.steps:
        _ease_in(cfg, stream, done.step)
        batch = stream.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
            loss = training_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        done.losses.append(loss.item())
        done.tokens += sum(int(mask.sum()) for name, mask in batch.items() if name.endswith("attention_mask"))
        done.step += 1
        done.seconds, now = done.seconds + time.perf_counter() - now, time.perf_counter()
        bar.update()
        if done.step % 100 == 0:
            bar.set_postfix(loss=f"{np.mean(done.losses[-100:]):.3f}")
        if done.step in cfg.keep and done.step < cfg.steps:
            write_folder(cfg, kept_path(cfg, done.step), model, tokenizer, done)
            model.train()
        if now - saved > STATE_SECONDS and done.step < cfg.steps:
            save_state(path, identity, model, optimizer, done)
            saved = time.perf_counter()
        now = time.perf_counter()
    bar.close()
    if not math.isfinite(done.losses[-1]):
        path.unlink(missing_ok=True)
        raise RuntimeError(f"pretraining diverged (loss {done.losses[-1]}); lower learning_rate={cfg.learning_rate}")
    report = write_folder(cfg, cfg.output, model, tokenizer, done)
    path.unlink(missing_ok=True)
    return report


def _read(cfg: PretrainConfig) -> dict[str, Any]:
    """What a run reads, beyond its name: its state belongs to no other weights and texts."""
    texts = collections(cfg.text) if cfg.text else []
    return {
        "start_sha256": file_sha256(cfg.start / "model.safetensors") if cfg.start else None,
        "text_sha256": {folder.name: file_sha256(folder / "train.parquet") for folder in texts},
    }


def _start(cfg: PretrainConfig, documents: Sequence[Sequence[str]]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A new tokenizer and untrained model, or those that the run goes on from."""
    if cfg.start is None:
        return BUILDERS[cfg.model_type](cfg.sizes, (line for lines in documents for line in lines))
    tokenizer, model = load_tokenizer(cfg.start), load_pretrained(cfg.start)
    found, wanted = (model.config.model_type, model.config.hidden_size), (cfg.model_type, cfg.sizes.hidden_size)
    if found != wanted:
        raise ValueError(
            f"start={cfg.start} holds a {found[0]} of width {found[1]}, expected {wanted[0]} of {wanted[1]}"
        )
    return tokenizer, model


def _fuse_gelu(model: PreTrainedModel) -> None:
    """GPT-2's and T5's tanh GELU as one operation instead of eight, while they are trained: the same up to rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _ease_in(cfg: PretrainConfig, stream: Stream, step: int) -> None:
    """Masked language modelling begins with single sentences, span corruption and denoising with short inputs."""
    early = step < cfg.steps * cfg.single
    if isinstance(stream, DenoisingStream):
        stream.short = early
    if isinstance(stream, SpanStream):
        # Among three documents and three sentinels, the decoder does not find in 1,200 steps that the encoder knows
        # anything; with one of each it does in 500.
        stream.short = early
    if not isinstance(stream, PairStream):
        return
    stream.single = early
    # Only at the end: from the start, foreign pairs keep BERT from learning to look from one sentence to the other.
    if stream.next_sentence and step >= cfg.steps * (1 - cfg.next_sentence):
        stream.foreign = 0.5


def _decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Biases and LayerNorms take no weight decay, as in BERT's released optimizer."""
    kept = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kept, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
