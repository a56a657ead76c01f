"""The parents of runs that start from another task's module (`init_from`): which are missing, which is the best, and
what of it carries over. Nothing is trained here."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from peft_methods.attached import Attached
from peft_methods.state import copy_trained, read_safetensors

from ..config.init_from import command, parent_configs
from ..config.schema import RunConfig
from .outcome import Outcome, record_of, recorded_outcome, recorded_score
from .prepare import Prepared, prepare


def prepare_all(cfgs: Sequence[RunConfig], known: dict[str, Prepared] | None = None) -> list[Prepared]:
    """These runs, each of them and of their possible parents prepared once. The recorded scores choose the parent.

    known: what is prepared already, by repr of its configuration; grows. Raises ValueError as `prepare` does.
    """
    known = {} if known is None else known
    runs = [_prepared(cfg, known) for cfg in cfgs]
    choose(runs)
    return runs


def _prepared(cfg: RunConfig, known: dict[str, Prepared]) -> Prepared:
    key = repr(cfg)
    if key not in known:
        p = prepare(cfg)
        if cfg.init_from is not None:
            p.candidates = tuple(_prepared(candidate, known) for candidate in parent_configs(cfg))
        known[key] = p
    return known[key]


def choose(runs: Sequence[Prepared]) -> None:
    """Which of its candidates each run starts from: the one with the highest validation score; ties go to the earlier
    seed, and what has no score yet counts least."""
    for p in runs:
        if len(p.candidates) == 1:
            p.start_from(p.candidates[0])
        elif p.candidates:
            scores = [recorded_score(candidate) for candidate in p.candidates]
            p.start_from(p.candidates[_first_highest(scores)])


def _first_highest(scores: Sequence[float | None]) -> int:
    known = [float("-inf") if score is None else score for score in scores]
    return known.index(max(known))


def missing(runs: Sequence[Prepared]) -> Iterator[RunConfig]:
    """The parents that must be made before these runs, one after the other: those without a record; then, among all of
    them, the best ones whose trained tensors are not here, again (records travel, trained tensors may not). All of
    them are to be made, as they come: the second part looks at what the first has left, and says what they start from.

    Raises ValueError before the first where init_from.if_missing=error, and where a parent that is done has no score.
    """
    for p in runs:
        for outcome in filter(None, map(recorded_outcome, p.candidates)):
            check_scored(outcome)
        init = p.cfg.init_from
        if init is not None and init.if_missing == "error" and (_without_record(p) or _lacks_tensors(p)):
            raise ValueError(f"init_from: no trained parent; make it with: {command(p.cfg, init)}")
    without_record = {candidate.key: candidate for p in runs for candidate in _without_record(p)}
    for parent in without_record.values():
        yield parent.cfg
    choose(runs)
    without_tensors = {p.parent.key: p.parent for p in runs if p.parent is not None and _lacks_tensors(p)}
    for parent in without_tensors.values():
        yield dataclasses.replace(parent.cfg, force=True)


def _without_record(p: Prepared) -> list[Prepared]:
    return [candidate for candidate in p.candidates if record_of(candidate) is None]


def _lacks_tensors(p: Prepared) -> bool:
    """Whether a run that is to be made has nothing to start from."""
    return p.parent is not None and not is_whole(p.parent.trained) and (p.cfg.force or record_of(p) is None)


def check_scored(parent: Outcome) -> None:
    """Nothing starts from a run without a score: one that failed, or that another process is still making."""
    if parent.score is None:
        raise ValueError(
            f"init_from: the parent {parent.experiment} {parent.task} seed {parent.seed} has no score: {parent.message}"
        )


def start_from(attached: Attached, k: int, parent: Path, head_dense: bool) -> None:
    """Copy the parent's method tensors into run k, and the head's dense layer if asked; never the output layer."""
    tensors, _ = read_safetensors(parent)
    for prefix in ["sites.", "backbone."] + (["head.dense."] if head_dense else []):
        copy_trained(attached, tensors, k, only=prefix)


def is_whole(trained: Path) -> bool:
    """Whether the trained tensors are there in full: records travel, tensors may not, and a copy may be cut short."""
    try:
        with safe_open(trained, framework="pt"):  # compares the header with the length of the file
            return True
    except (OSError, SafetensorError):
        return False
