"""What `peft-bench plan` prints and keeps: states, packs, predicted time, memory and disk."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config.schema import RunConfig, is_control
from ..records.files import write_files
from ..records.leases import locked
from ..records.places import PLANS
from ..training import devices
from .costs import CALIBRATION_STEPS, Costs, calibrate, total_seconds
from .display import clock
from .packs import memory_bytes, uses_gpu
from .plan import Plan, PlannedPack

_SHOWN = 5


def plan_text(name: str, plan: Plan, workers: int) -> str:
    """Runs by state and the packs of those that can begin."""
    counts = plan.counts()
    listed = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [
        f"sweep {name}: {len(plan.cells)} run{'s' * (len(plan.cells) != 1)}: {listed or 'none'}"
        + (f", {len(plan.stale)} stale" * bool(plan.stale))
    ]
    parents = sum(cell.parent for cell in plan.cells)
    if parents:
        lines.append(f"  {parents} of them are parents that were not asked for")
    if plan.duplicates:
        lines.append(f"  {plan.duplicates} more are the same as another run")
    failed = Counter(cell.kind for cell in plan.cells if cell.state == "failed")
    if failed:
        lines.append("  failed: " + ", ".join(f"{number} {kind}" for kind, number in sorted(failed.items(), key=str)))
    for stale in plan.stale[:_SHOWN]:
        lines.append(f"  stale: {stale.label} [{stale.run_id}] differs in {', '.join(stale.differs)}")
    if len(plan.stale) > _SHOWN:
        lines.append(f"  ... and {len(plan.stale) - _SHOWN} more")
    if plan.packs:
        sizes = Counter(len(pack.cells) for pack in plan.packs)
        packs = ", ".join(f"{number} of {size}" for size, number in sorted(sizes.items(), reverse=True))
        lines.append(f"packs: {packs}; {_workers(workers)}")
        alone = Counter(pack.why for pack in plan.packs if pack.why)
        lines += [f"  alone ({number}): {why}" for why, number in alone.most_common(_SHOWN)]
    return "\n".join(lines)


def costs_text(plan: Plan, workers: int, measure: bool) -> str:
    """Predicted time, memory and disk of the runs that can begin."""
    if not plan.open:
        return "nothing to do"
    costs, seconds, unknown = _predict(plan, workers, measure)
    trained = [pack for pack in plan.packs if not is_control(pack.cells[0].cfg)]
    memory = max((_memory(pack, costs) for pack in trained), default=0)
    disk = sum(costs.of(cell.cfg).disk for cell in plan.open)
    lines = []
    if seconds is not None:
        total = total_seconds(seconds, workers)
        lines.append(f"predicted: {clock(total)} on {_workers(workers)}, {clock(sum(seconds))} of work")
    if unknown:
        lines.append(
            f"no prediction for {unknown} runs: nothing like them has run here; --calibrate measures "
            f"{CALIBRATION_STEPS} steps of each kind"
        )
    lines.append(f"memory of a worker: {memory / 2**30:.2f} GiB; disk: {disk / 2**20:.1f} MiB")
    return "\n".join(lines)


def _memory(pack: PlannedPack, costs: Costs) -> int:
    """The larger of the estimate and what the largest of its runs took before."""
    estimated = memory_bytes(pack.cells[0].cfg, len(pack.cells))
    return max(estimated, *(costs.of(cell.cfg).memory for cell in pack.cells))


def check_budget(plan: Plan, budget: float, workers: int, measure: bool) -> None:
    """Raises ValueError where the runs will take longer than `budget` seconds, or nobody can say."""
    if not plan.open:
        return
    _, seconds, unknown = _predict(plan, workers, measure)
    if unknown or seconds is None:
        raise ValueError(
            f"budget={budget:.0f}s: there is no prediction for {unknown} runs, since nothing like them has run here; "
            "measure with --calibrate, or leave the budget out"
        )
    total = total_seconds(seconds, workers)
    if total > budget:
        raise ValueError(
            f"budget={budget:.0f}s: the {len(plan.open)} open runs are predicted to take {clock(total)} on "
            f"{_workers(workers)}; raise the budget, or plan fewer runs"
        )


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _predict(plan: Plan, workers: int, measure: bool) -> tuple[Costs, list[float] | None, int]:
    """Costs, seconds of each pack (None where none is known), and the number of runs without a prediction."""
    cfgs = [cell.cfg for cell in plan.open]
    costs = Costs(sorted({cfg.results_dir for cfg in cfgs}), _device(cfgs[0], workers))
    if measure:
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if workers > 1 else threads)
        try:
            calibrate(cfgs, costs)
        finally:
            torch.set_num_threads(threads)
    seconds, unknown = [], 0
    for pack in plan.packs:
        found = [costs.of(cell.cfg).seconds for cell in pack.cells]
        known = [each for each in found if each is not None]
        unknown += len(found) - len(known)
        seconds.append(sum(known))
    return costs, seconds if unknown < len(cfgs) else None, unknown


def _device(cfg: RunConfig, workers: int) -> str:
    """As `costs.device_name` names the device of a record."""
    if uses_gpu(cfg):
        return torch.cuda.get_device_name(0)
    return f"{devices.cpu_name()} x{cfg.threads or (1 if workers > 1 else torch.get_num_threads())}"


def write_plan(name: str, plan: Plan) -> None:
    """Keep what is planned and what is stale, by experiment, for `peft-bench status`."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    for folder in {cell.cfg.results_dir for cell in plan.cells}:
        content = {
            "name": name,
            "planned": _by_experiment([c.key for c in plan.cells if c.cfg.results_dir == folder and c.key]),
            "stale": _by_experiment([(stale.experiment, stale.run_id) for stale in plan.stale]),
        }
        path = Path(folder) / PLANS / f"{digest}.json"
        with locked(Path(folder)):
            for unfinished in path.parent.glob(f".{path.name}.*"):  # of a process that was killed
                unfinished.unlink(missing_ok=True)
            write_files({path: json.dumps(content, indent=1).encode() + b"\n"})


def _by_experiment(keys: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for experiment, run_id in keys:
        found.setdefault(experiment, []).append(run_id)
    return found
