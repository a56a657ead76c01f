"""What a method costs beside its backbone: time, bytes stored, memory in training: `peft-bench latency`.

Every repeat times every method once, in an order that moves on by one, on the same frozen random weights; a method's
figure is the median of its ratios to the backbone of the same repeat, with an interval that assumes no distribution.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from transformers import GPT2LMHeadModel

from peft_methods.attach import attach
from peft_methods.attached import Attached

from ..config.compose import register
from ..report.reference import DIRECTORY
from ..report.render import HOLE, markdown_table
from .candidates import BACKBONES, CANDIDATES, make_method, random_backbone, some_batch
from .memory import memory_table, storage_table, training_memory

FEWEST = 6  # repeats: with fewer, no two of them bound a median with 95%


@dataclass(frozen=True)
class Timing:
    """milliseconds: median of a pass. ratio: median of the ratios to the backbone, between low and high with 95%."""

    milliseconds: float
    ratio: float
    low: float
    high: float


@contextmanager
def prepared(name: str, backbone: GPT2LMHeadModel) -> Iterator[Callable[[dict[str, Tensor]], Tensor]]:
    """A candidate as it serves: a prefix without its MLP, LoRA merged where its name says so."""
    if CANDIDATES[name].method is None:
        yield lambda batch: backbone(**batch).logits
        return
    attached = attach(backbone, [make_method(name, backbone.config.n_embd)], [None])
    try:
        attached.run(0).collapse()
        if CANDIDATES[name].merged:
            attached.merge()
        yield lambda batch: _logits(attached, batch)
    finally:
        attached.detach()


def _logits(attached: Attached, batch: dict[str, Tensor]) -> Tensor:
    (logits,) = attached([batch])
    assert logits is not None
    return logits


@torch.no_grad()
def measure(backbone: GPT2LMHeadModel, batch_size: int, length: int, repeats: int) -> dict[str, Timing]:
    """Every candidate's time of a forward pass over (batch_size, length) tokens."""
    if batch_size < 1 or length < 1:
        raise ValueError(f"--batch {batch_size} --length {length}: expected at least 1 each")
    if repeats < FEWEST:
        raise ValueError(f"--repeats {repeats}: expected at least {FEWEST}, fewer give no 95% interval of a median")
    if length + 100 > (positions := backbone.config.n_positions):
        raise ValueError(f"--length {length}: with a prompt of 100 rows, {positions} positions hold {positions - 100}")
    batch = some_batch(backbone, batch_size, length)
    names = list(CANDIDATES)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            with prepared(name, backbone) as forward:
                forward(batch)  # warm-up: allocations and kernel choice are not the method's
                seconds[name].append(_timed(forward, batch))
    base = np.array(seconds["backbone"])
    return {name: _timing(np.array(values), base) for name, values in seconds.items()}


def _timed(forward: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor]) -> float:
    cuda = batch["input_ids"].is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    forward(batch)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _timing(seconds: np.ndarray, base: np.ndarray) -> Timing:
    ratios = seconds / base
    low, high = median_interval(ratios)
    return Timing(1000 * float(np.median(seconds)), float(np.median(ratios)), low, high)


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The order statistics between which the median lies with at least this probability, whatever the distribution."""
    n = len(values)
    below = int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))  # so many may lie below the median
    ordered = np.sort(values)
    return float(ordered[max(0, below - 1)]), float(ordered[min(n - 1, n - below)])


def printed(backbone: str, batch_size: int, length: int, directory: Path = DIRECTORY) -> dict[str, str]:
    """Method -> what LoRA's Table 1 prints for exactly this shape; {} for any other."""
    table = pd.read_csv(directory / "lora_latency.csv")
    same = (table["backbone"] == backbone) & (table["batch_size"] == batch_size) & (table["length"] == length)
    cells = {}
    for line in table[same].to_dict("records"):
        slower = "" if pd.isna(line["slower_percent"]) else f" (+{line['slower_percent']:g}%)"
        cells[line["method"]] = f"{line['milliseconds']:g} ms{slower}"
    return cells


def latency_table(timings: dict[str, Timing], cells: dict[str, str]) -> str:
    """One line a method; the paper's figure, from another device, only where there is one for this shape."""
    header = ["", "ms", "x backbone", "95% interval", *(["paper, its GPU"] if cells else [])]
    lines = [
        [name, f"{t.milliseconds:.2f}", f"{t.ratio:.3f}", f"{t.low:.3f} to {t.high:.3f}"]
        + ([cells.get(name, HOLE)] if cells else [])
        for name, t in timings.items()
    ]
    return markdown_table(header, lines)


def main(argv: Sequence[str]) -> int:
    """`peft-bench latency`."""
    parser = argparse.ArgumentParser(
        prog="peft-bench latency",
        description="Time of a forward pass, bytes stored for one and nine tasks, and memory in training of every kind "
        "of method, beside the backbone alone. GPT-2 shapes, random weights.",
        epilog="LoRA's Table 1: --backbone gpt2_medium --batch 32 --length 512 (or 16 256, or 1 128); its figures are "
        "printed beside ours for those shapes only, and are of a Quadro RTX 8000.",
    )
    parser.add_argument("--backbone", default="small", help=f"{', '.join(BACKBONES)} (default %(default)s: 4 x 256)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a batch (default %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="passes of every method (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out training memory: a process for every method"
    )
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    options = parser.parse_args(argv)
    if options.device not in ("cpu", "cuda") or (options.device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device {options.device}: expected cpu, or cuda where there is one")
    register()
    device = torch.device(options.device)
    backbone = random_backbone(options.backbone, device)
    timings = measure(backbone, options.batch, options.length, options.repeats)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"Forward pass, {options.backbone}, batch {options.batch}, length {options.length}, {where}; {options.repeats}"
    )
    print("passes each, interleaved; x backbone: median of the ratios within a repeat\n")
    print(latency_table(timings, printed(options.backbone, options.batch, options.length)))
    stored, found = storage_table(backbone)
    print(f"\nBytes of what is stored (float32): the backbone is kept once, full fine-tuning copies it\n\n{stored}")
    result: dict[str, Any] = {"options": {**vars(options), "output": None}, "device": where, "storage": found}
    result["latency"] = {name: vars(timing) for name, timing in timings.items()}
    if not options.no_memory:
        memory = training_memory(options.backbone, options.batch, options.length, options.device)
        result["training_memory"] = memory
        print(f"\nPeak memory of two training steps (AdamW) above the loaded backbone\n\n{memory_table(memory)}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0
