"""Finished runs brought back: record -> configuration -> backbone with the selected tensors, ready to answer."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft_methods.state import load_trained

from ..backbones.loading import load_backbone
from ..config.recorded import run_config
from ..config.schema import RunConfig, TrackingConfig
from ..records.schema import Record
from ..training import devices
from .attach import Pack, attach_pack
from .parents import prepare_all


def recorded_config(record: Record, places: Mapping[str, Any]) -> RunConfig:
    """The record's configuration, to be read in other places: data_dir, backbone_dir, results_dir."""
    return dataclasses.replace(run_config(record["config"]), tracking=TrackingConfig(), **places)


@contextlib.contextmanager
def reopened(
    records: Sequence[Record], places: Mapping[str, Any], otherwise: str
) -> Iterator[tuple[Pack, devices.Machine]]:
    """The runs of these records as one pack, inside the block, as they were selected.

    otherwise: what to do where the trained tensors are not here; ends the sentence. Raises ValueError there, and where
    this code, backbone and data give other runs.
    """
    runs = prepare_all([recorded_config(record, places) for record in records])
    for p, record in zip(runs, records, strict=True):
        if p.run_id != record["run_id"]:
            raise ValueError(
                f"run {record['run_id']} is {p.run_id} with this code, backbone and data: give the --data-dir and "
                "--backbone-dir that it was made with, or make it again"
            )
        if not p.trained.exists():
            raise ValueError(f"{p.trained} is not here: the trained tensors stay where the run was made{otherwise}")
        p.parent = None  # what it started from is not needed any more
    cfg = runs[0].cfg
    machine = devices.Machine(devices.make_accelerator(cfg.device, cfg.trainer.precision, len(runs)))
    device = machine.accelerator.device
    pack = attach_pack(runs, load_backbone(cfg.backbone, cfg.scale, cfg.backbone_dir, device, cfg.seed))
    try:
        for k, p in enumerate(runs):
            load_trained(pack.attached, p.trained, k)
        pack.attached.eval()
        yield pack, machine
    finally:
        pack.attached.detach()
