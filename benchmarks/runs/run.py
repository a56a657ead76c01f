"""One run, or a pack of K on one backbone, from configuration to record:

prepare.py: config -> data -> parent -> identity; claims.py: this process makes it;
train.py: backbone -> attach -> train -> evaluate -> record
"""

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import cast

import torch

from ..config.departures import departures, unused_decoding
from ..config.schema import RunConfig
from ..records import leases
from . import parents
from .checks import check_pack
from .prepare import Outcome, Prepared, check_writable, found_done, outcome_of, prepare
from .train import make

log = logging.getLogger(__name__)


def run(cfg: RunConfig, show_progress: bool = True) -> Outcome:
    """One run. Raises ValueError for bad input before training; a failure in training becomes a failed record."""
    return run_pack([cfg], show_progress)[0]


def run_pack(
    cfgs: Sequence[RunConfig], show_progress: bool = True, whole: bool = False, micro_batch_size: int | None = None
) -> list[Outcome]:
    """K runs on one backbone, trained together; those whose record exists are left out.

    whole: train all of them if one is missing. A pack of three does not give the last bits that a pack of four gave, so
    one that was killed between its records is taken up whole; records that exist stay as they are.
    micro_batch_size: to begin with, where the configured one is known to run out of memory.
    """
    threads = torch.get_num_threads()
    try:
        return _run_pack(cfgs, show_progress, whole, micro_batch_size)
    finally:
        torch.set_num_threads(threads)  # `threads` is of these runs, not of the process


def _run_pack(
    cfgs: Sequence[RunConfig], show_progress: bool, whole: bool, micro_batch_size: int | None
) -> list[Outcome]:
    start = time.perf_counter()
    check_pack(list(cfgs))
    prepared = [_prepare(cfg, show_progress) for cfg in cfgs]
    found = [found_done(p) for p in prepared]
    todo = [p for p, outcome in zip(prepared, found, strict=True) if outcome is None]
    if not todo:
        return cast(list[Outcome], found)
    try:
        held = _claim(prepared if whole else todo)
    except leases.Busy as busy:
        return [
            outcome or outcome_of(p, "busy", str(busy), None, 0.0) for p, outcome in zip(prepared, found, strict=True)
        ]
    try:
        found = [found_done(p) for p in prepared]  # again: another process may have finished one before the claim
        todo = [p for p, outcome in zip(prepared, found, strict=True) if outcome is None]
        pack = prepared if whole and todo else todo
        for p in todo:
            p.departures = departures(dataclasses.asdict(p.cfg))
            if unused := unused_decoding(p.cfg):
                log.warning("not used: %s: %s is answered with its labels", ", ".join(unused), p.cfg.task.name)
        made = dict(
            zip(
                [p.run_id for p in pack], make(pack, show_progress, held, micro_batch_size) if pack else [], strict=True
            )
        )
    finally:
        if held is not None:
            held.release()
    seconds = (time.perf_counter() - start) / max(1, len(todo))
    return [
        outcome or dataclasses.replace(made[p.run_id], seconds=seconds)
        for p, outcome in zip(prepared, found, strict=True)
    ]


def _prepare(cfg: RunConfig, show_progress: bool) -> Prepared:
    """Whatever can be refused is refused here or in `attach_pack`, before any training; a missing parent is trained."""
    if cfg.threads is not None and cfg.threads >= 1:
        torch.set_num_threads(cfg.threads)
    check_writable(cfg.results_dir)
    p = prepare(cfg, lambda parent: _parent_score(cfg, parent, show_progress, again=False))
    if p.parent is not None and not parents.is_whole(p.parent) and found_done(p) is None:
        parents.parent_of(cfg, lambda parent: _parent_score(cfg, parent, show_progress, again=True))
    return p  # records travel, trained tensors may not: the parent's were made again


def _claim(pack: Sequence[Prepared]) -> leases.Held | None:
    """This process makes these runs; of several data-parallel ones, the first says so for all."""
    if int(os.environ.get("RANK", "0")) > 0:
        return None
    return leases.claim_runs(pack[0].cfg.results_dir, [p.key for p in pack])


def _parent_score(child: RunConfig, cfg: RunConfig, show_progress: bool, again: bool) -> tuple[str, float]:
    """A parent's run id and validation score: found, or trained first, or refused with the command that makes it.

    Its record is enough; with `again`, its trained tensors must be there, too.
    """
    assert child.init_from is not None
    p = _prepare(cfg, show_progress)
    found = found_done(p)
    there = found is not None and (not again or parents.is_whole(parents.trained_path(cfg, p.run_id)))
    if not there:
        if child.init_from.if_missing == "error":
            raise ValueError(f"init_from: no trained parent; make it with: {parents.command(child, child.init_from)}")
        log.info("training the parent first: %s %s seed %d", cfg.experiment, cfg.task.name, cfg.seed)
        found = run(dataclasses.replace(cfg, force=found is not None), show_progress)
    assert found is not None
    if found.score is None:
        raise ValueError(
            f"init_from: the parent {cfg.experiment} {cfg.task.name} seed {cfg.seed} has no score: {found.message}"
        )
    return found.run_id, found.score
