"""Bytes that a task stores, and memory that its training takes, by method; a part of `peft-bench latency`."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from peft_methods.attach import attach
from peft_methods.state import stored_tensors

from ..config.compose import build_method, method_choice, register
from ..report.render import markdown_table
from .candidates import CANDIDATES, make_method, random_backbone, some_batch

TASKS = 9  # as Houlsby et al. count GLUE
FULL = "full"
METHODS = [FULL, *(name for name, c in CANDIDATES.items() if c.method is not None and not c.merged)]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _method(name: str, backbone: GPT2LMHeadModel) -> Any:
    return build_method(method_choice(FULL)) if name == FULL else make_method(name, backbone.config.n_embd)


def stored_bytes(name: str, backbone: GPT2LMHeadModel) -> int:
    """Bytes of the tensors that one task's checkpoint holds."""
    attached = attach(backbone, [_method(name, backbone)], [None])
    try:
        return sum(tensor.nbytes for tensor in stored_tensors(attached).values())
    finally:
        attached.detach()


def storage_table(backbone: GPT2LMHeadModel) -> tuple[str, dict[str, int]]:
    """A table of one and nine tasks, the shared backbone included, and the bytes of one task by method."""
    base = sum(p.nbytes for p in backbone.parameters())
    found = {name: stored_bytes(name, backbone) for name in METHODS}
    lines = []
    for name, own in found.items():
        totals = [own * n + (0 if name == FULL else base) for n in (1, TASKS)]
        lines.append([name, f"{own:,}", *(f"{total:,}" for total in totals), f"{totals[1] / (TASKS * base):.3f}"])
    header = ["", "a task", "backbone + 1 task", f"backbone + {TASKS}", f"of {TASKS} copies"]
    return markdown_table(header, lines), found


def training_memory(backbone: str, batch_size: int, length: int, device: str) -> dict[str, int]:
    """Peak bytes of two steps above the loaded backbone, by method; a fresh process for each. {} where there is no
    /proc to read them from."""
    if device == "cpu" and not CLEAR.exists():
        return {}
    found = {}
    for name in METHODS:
        arguments = [name, backbone, str(batch_size), str(length), device]
        words = [sys.executable, "-m", "peft_bench.studies.memory", *arguments]
        done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {name} failed: {done.stderr.strip().splitlines()[-1]}")
        found[name] = int(json.loads(done.stdout.strip().splitlines()[-1])["bytes"])
    return found


def memory_table(memory: dict[str, int]) -> str:
    """One line a method, relative to full fine-tuning."""
    if not memory:
        return "not measured: no /proc on this system"
    lines = [[name, f"{own / 2**20:,.0f}", f"{own / memory[FULL]:.2f}"] for name, own in memory.items()]
    return markdown_table(["", "MiB", "x full"], lines)


def _peak_of_training(name: str, backbone_name: str, batch_size: int, length: int, device: str) -> int:
    register()
    backbone = random_backbone(backbone_name, torch.device(device))
    batch = some_batch(backbone, batch_size, length)
    before = _start(device)
    attached = attach(backbone, [_method(name, backbone)], [None]).train()
    optimizer = torch.optim.AdamW(attached.run(0).trained().values(), lr=1e-3)
    for _ in range(2):
        (logits,) = attached([batch])
        assert logits is not None
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return _peak(device) - before


def _start(device: str) -> int:
    """Forget earlier peaks; bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    CLEAR.write_text("5")  # resets the resident peak (man proc_pid_clear_refs)
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _main(argv: Sequence[str]) -> None:
    name, backbone, batch_size, length, device = argv
    print(json.dumps({"bytes": _peak_of_training(name, backbone, int(batch_size), int(length), device)}))


if __name__ == "__main__":
    _main(sys.argv[1:])
