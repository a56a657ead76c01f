"""The device a run uses, and what two runs must share to be bit-identical (the numerics class)."""

import dataclasses
import gc
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from ..config.schema import RunConfig

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")
DTYPES = ("float32", "bfloat16", "float64")  # of the frozen weights
_VERSIONED = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


def make_accelerator(device: str, precision: str, pack: int) -> Accelerator:
    """accelerate's Accelerator for `device` (auto, cpu, cuda) and `precision` (fp32, bf16).

    Raises ValueError where the device is not there or a name is unknown, before anything is loaded.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: expected one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=auto or device=cpu")
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    # One process runs many runs: accelerate's singleton may hold the precision of the run before.
    AcceleratorState._reset_state(reset_partial_state=False)
    if torch.cuda.is_available() and device != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=pack > 1)],
    )


@dataclasses.dataclass
class Machine:
    """What a pack runs on. micro_batch_size: halved after running out of memory, or None. show_progress: in a terminal.
    peak_memory: bytes, once it has trained."""

    accelerator: Accelerator
    micro_batch_size: int | None = None
    show_progress: bool = True
    peak_memory: int = 0

    def numerics(self, cfg: RunConfig, members: Sequence[str]) -> dict[str, Any]:
        """Device, dtype, threads, pack and library versions, as the record keeps them. members: run ids of the pack."""
        device, weights = self.accelerator.device, cfg.backbone.dtype
        autocast = "bfloat16 autocast" + ("" if weights == "float32" else f" over {weights}")
        return {
            "device": device.type,
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "dtype": weights if cfg.trainer.precision == "fp32" else autocast,
            "threads": torch.get_num_threads(),
            "pack": len(members),
            "members": list(members),
            "micro_batch_size": self.micro_batch_size,
            "processes": self.accelerator.num_processes,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONED},
        }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_memory() -> None:
    """Give back what the last attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring peak memory anew (on Linux also for the CPU)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # not permitted: the peak is then that of the process so far


def peak_memory(device: torch.device) -> int:
    """Peak bytes since `reset_peak_memory`: allocated on the GPU, or the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_name() -> str:
    """The processor's model."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
