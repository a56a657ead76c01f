"""Which runs train together on one backbone: the same runs in the same order always give the same packs.

A pack's size enters the last bits of its results, so packs follow from the list of runs, the device and its memory
alone, not from how far the runs have come. Runs share a pack if they share the backbone and the task with its batches;
what trains the backbone in place, or has a module where packs do not work (docs/methods.md), runs alone.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers.initialization import no_init_weights

from peft_methods.attach import attach, why_alone
from peft_methods.counting import count_parameters
from peft_methods.heads import ClassificationHead

from ..backbones.loading import empty_backbone
from ..backbones.location import folder_of
from ..config.compose import build_method
from ..config.kinds import writes_text
from ..config.schema import RunConfig, generation_of, is_control

CPU_PACK, GPU_PACK = 4, 16  # the most runs of a pack where memory allows; docs/runs.md: what they gain
_MEMORY_SHARE = 0.6  # of what a process may use, for what a pack is estimated to need
_BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}
_COPIES = 6  # of a trained parameter: itself, its gradient, two moments, the best and the last checkpoint
# Bytes of activations kept per token, layer and unit of width, for a backward pass: 34 with 16-bit numbers
# (Korthikanti et al. 2022, section 4.1, attention scores apart), twice that in float32.
_ACTIVATIONS = 68
# Likewise per score of an attention that is written out, because it drops weights or has no attention function: 9 to 12
# were measured in float32, 7 to 8 with 16-bit numbers.
_SCORES, _SHORT_SCORES = 12, 8
_LABEL_TOKENS = 16  # of a label in words, at most


@dataclass(frozen=True)
class Pack:
    """Runs that are trained together, by their number in the list of runs. why: what makes a run go alone."""

    runs: tuple[int, ...]
    why: str = ""


@dataclass(frozen=True)
class Footprint:
    """What a run's method needs on its backbone. Numbers of parameters; why: what makes it go alone.

    attention_dropout: the rate at which it drops attention weights. attentions: of its heads, all layers together, how
    many have queries and keys from which tokens, ("target", "input") in a cross-attention; written_out: these keep
    their scores for the backward pass even where nothing is dropped.
    """

    trained: int
    stored: int
    backbone: int
    layers: int
    width: int
    attention_dropout: float
    attentions: Counter[tuple[str, str]]
    written_out: bool
    why: str


def pack_runs(cfgs: Sequence[RunConfig], size: int | None = None, workers: int = 1) -> list[Pack]:
    """Packs of at most `size` runs (None: by device and memory), in the order of their first runs.

    workers: processes that share this machine's memory. Raises ValueError for a size below 1 and for a method that
    does not fit its backbone.
    """
    if size is not None and size < 1:
        raise ValueError(f"pack={size}: expected at least 1")
    groups: dict[str, list[int]] = {}
    packs: list[Pack] = []
    for i, cfg in enumerate(cfgs):
        why = "a control trains no backbone" if is_control(cfg) else footprint(cfg).why
        if why:
            packs.append(Pack((i,), why))
        else:
            groups.setdefault(_format(cfg), []).append(i)
    for runs in groups.values():
        most = size or max(1, min(_fitting(cfgs[i], workers) for i in runs))
        packs += [Pack(tuple(runs[start : start + most])) for start in range(0, len(runs), most)]
    return sorted(packs, key=lambda pack: pack.runs[0])


def _format(cfg: RunConfig) -> str:
    """Equal for runs that can share a pack and are worth it: as many steps of as many tokens."""
    trainer = cfg.trainer
    shared = [cfg.backbone, cfg.backbone_dir, cfg.scale, cfg.device, cfg.threads, cfg.results_dir, cfg.data_dir]
    steps = [trainer.epochs, trainer.max_steps, trainer.batch_size, trainer.micro_batch_size, trainer.max_length]
    rest = [trainer.precision, trainer.gradient_checkpointing, trainer.group_by_length, cfg.task.name]
    return repr([*shared, *steps, *rest, cfg.init_from is None, None if cfg.backbone.pretrained else cfg.seed])


def footprint(cfg: RunConfig) -> Footprint:
    """Sizes of a run's method, from shapes alone."""
    labels = 0 if writes_text(cfg.backbone.model_type) else cfg.task.num_labels
    folder = folder_of(cfg.backbone, cfg.scale, cfg.backbone_dir)
    return _footprint(folder, cfg.backbone.pooler, json.dumps(cfg.method, sort_keys=True), labels)


@functools.lru_cache(maxsize=4096)
def _footprint(folder: Path, pooler: bool, method: str, labels: int) -> Footprint:
    model, tokenizer = empty_backbone(folder, pooler)
    head = functools.partial(ClassificationHead, model.config, labels) if labels else None
    with no_init_weights():  # drawing values on the meta device takes longer than everything else
        attached = attach(model, [build_method(json.loads(method))], [head], tokenizer=tokenizer)
    try:
        counts, why = count_parameters(attached), why_alone(attached) or ""
        width, layers = model.config.hidden_size, sum(attached.sites.depths.values())
        dropout = getattr(model.config, attached.sites.architecture.attention_dropout)
        heads, attentions = model.config.num_attention_heads, Counter[tuple[str, str]]()
        for site in attached.sites.all:
            if site.kind == "attention":
                attentions[site.tokens, "input" if site.role == "cross_kv" else site.tokens] += heads
        written_out = not attentions
        attentions = attentions or Counter({("input", "input"): heads * layers})
        parameters = counts.method + counts.head, counts.stored, counts.backbone
        return Footprint(*parameters, layers, width, dropout, attentions, written_out, why)
    finally:
        attached.detach()


def memory_bytes(cfg: RunConfig, runs: int = 1) -> int:
    """An estimate of what `runs` such runs need in one process, the backbone included."""
    found, trainer = footprint(cfg), cfg.trainer
    short = trainer.precision == "bf16" or cfg.backbone.dtype == "bfloat16"
    rows = trainer.micro_batch_size or trainer.batch_size
    activations = rows * trainer.max_length * found.layers * found.width * _ACTIVATIONS // (2 if short else 1)
    scores = rows * _scores(cfg, found) * (_SHORT_SCORES if short else _SCORES)
    each = found.trained * _BYTES["float32"] * _COPIES + activations + scores
    return found.backbone * _BYTES[cfg.backbone.dtype] + runs * each


def _scores(cfg: RunConfig, found: Footprint) -> int:
    """Attention scores of one example that are kept for a backward pass; recomputed layers keep one at a time."""
    trainer, generation = cfg.trainer, generation_of(cfg.task, cfg.scale)
    if not found.written_out and (found.attention_dropout == 0.0 or trainer.backbone_dropout == 0):
        return 0
    target = _LABEL_TOKENS if generation is None else generation.target_tokens or trainer.max_length
    tokens = {"input": trainer.max_length, "target": target}
    scores = sum(heads * tokens[queries] * tokens[keys] for (queries, keys), heads in found.attentions.items())
    return scores // found.layers if trainer.gradient_checkpointing else scores


def uses_gpu(cfg: RunConfig) -> bool:
    """Whether a run goes to a GPU of this machine."""
    return cfg.device != "cpu" and torch.cuda.is_available()


def _fitting(cfg: RunConfig, workers: int) -> int:
    """How many such runs fit the memory of the device, at most the number worth packing."""
    if uses_gpu(cfg):
        available, most = torch.cuda.get_device_properties(0).total_memory, GPU_PACK
    else:
        available, most = psutil.virtual_memory().total // workers, CPU_PACK
    one = memory_bytes(cfg)
    each = memory_bytes(cfg, 2) - one
    return min(most, 1 + int((_MEMORY_SHARE * available - one) // each)) if one < _MEMORY_SHARE * available else 1
