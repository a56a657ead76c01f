"""A pack's checkpoint: one safetensors file with every tensor and, in its header, every number. No pickle.

One file, replaced atomically, so that tensors and position never disagree. It holds each run's trained tensors, its
optimizer's moments, its best tensors and its position; data order and dropout masks follow from the position.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from peft_methods.state import copy_trained, read_safetensors, trained_tensors, write_safetensors

from .loop import Position, Run

FORMAT = "peft-bench checkpoint 1"


def save_checkpoint(runs: Sequence[Run], run_ids: Sequence[str], path: Path) -> None:
    """Write the pack's state to `path`, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    schedules = {}
    for run, run_id in zip(runs, run_ids, strict=True):
        run.read_losses()
        tensors |= {f"{run_id}/trained/{n}": t for n, t in trained_tensors(run.attached, run.k).items()}
        tensors |= {f"{run_id}/best/{n}": t for n, t in run.best.items()}
        for name, parameter in run.parameters.items():
            for key, value in run.optimizer.state.get(parameter, {}).items():
                tensors[f"{run_id}/optimizer/{key}/{name}"] = value.detach().to("cpu", copy=True).contiguous()
        state = run.schedule.state_dict()
        schedules[run_id] = {key: state[key] for key in ("last_epoch", "_step_count", "_last_lr")}
    header = {
        "format": FORMAT,
        "runs": list(run_ids),
        "positions": {i: dataclasses.asdict(r.position) for i, r in zip(run_ids, runs, strict=True)},
        "schedules": schedules,
    }
    write_safetensors(tensors, path, header)


def load_checkpoint(runs: Sequence[Run], run_ids: Sequence[str], path: Path) -> bool:
    """Move the runs to the stored position; False where there is no checkpoint of exactly this pack.

    A truncated or foreign file is named and renamed to *.unreadable, and the pack starts anew.
    """
    if not path.exists():
        return False
    try:
        tensors, header = read_safetensors(path)
        if header.get("format") != FORMAT or header["runs"] != list(run_ids):
            raise ValueError(f"holds {header.get('format')!r} of runs {header.get('runs')}")
        positions, schedules = header["positions"], header["schedules"]
    except (ValueError, KeyError) as error:
        aside = path.with_name(path.name + ".unreadable")
        path.rename(aside)
        why = str(error).removeprefix(f"{path} ").removesuffix(": make it again")
        print(f"a checkpoint {why}: set aside as {aside}, the run starts anew")
        return False
    for run, run_id in zip(runs, run_ids, strict=True):
        own = {n.removeprefix(f"{run_id}/"): t for n, t in tensors.items() if n.startswith(f"{run_id}/")}
        copy_trained(run.attached, _part(own, "trained/"), run.k)
        run.best = _part(own, "best/")
        run.position = Position(**positions[run_id])
        run.schedule.load_state_dict(run.schedule.state_dict() | schedules[run_id])
        for group, rate in zip(run.optimizer.param_groups, schedules[run_id]["_last_lr"], strict=True):
            group["lr"] = rate
        for name, value in _part(own, "optimizer/").items():
            key, _, of = name.partition("/")
            parameter = run.parameters[of]
            run.optimizer.state[parameter][key] = value.to("cpu" if key == "step" else parameter.device)
    return True


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t.clone() for name, t in tensors.items() if name.startswith(prefix)}
