"""The identity of a run: what would have to change for its result to change.

A hash of the resolved scientific configuration, the content of the data columns used, result versions bumped by hand
whenever numbers move on purpose (golden loss curves in the tests fail when they move without a bump), and the
identities of the parents. Where things lie, how they are tracked and on what device they run is recorded elsewhere.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.backbone import shipped_digest, stand_in
from benchmarks.config import RunConfig, is_control

LOOP_VERSION = 1
METHOD_VERSIONS = {
    "peft_methods.baselines.Full": 1,
    "peft_methods.baselines.HeadOnly": 1,
    "peft_methods.bitfit.BitFit": 1,
    "peft_methods.bottleneck.Houlsby": 1,
    "peft_methods.bottleneck.Pfeiffer": 1,
    "peft_methods.lora.Lora": 1,
    "benchmarks.controls.Majority": 1,
    "benchmarks.controls.BagOfWords": 1,
}
TASK_VERSIONS = {"glue": 1}

# Fields that change speed or memory, or the last bits only: they belong to the numerics class of the record.
_NOT_SCIENTIFIC = {
    "backbone": {"architecture", "dtype", "hub_id"},
    "trainer": {"eval_batch_size", "precision", "gradient_checkpointing"},
}
# Fields younger than the first records: not hashed at the value those runs had, so that their identities stand.
_ADDED_LATER = {"trainer": {"regression_bias": "zero"}}


def scientific_config(cfg: RunConfig) -> dict[str, Any]:
    """The part of the configuration that the identity hashes."""
    full = dataclasses.asdict(cfg)
    part = {key: full[key] for key in ("backbone", "method", "task", "trainer", "experiment", "settings", "seed")}
    for group, names in _NOT_SCIENTIFIC.items():
        part[group] = {k: v for k, v in part[group].items() if k not in names}
    for group, defaults in _ADDED_LATER.items():
        part[group] = {k: v for k, v in part[group].items() if k not in defaults or v != defaults[k]}
    part["scale"] = cfg.scale.name
    folder = None if is_control(cfg) else stand_in(cfg.backbone, cfg.scale)
    part["stand_in"] = None if folder is None else f"{folder.name}@{shipped_digest(folder)[:16]}"
    part["head_dense"] = cfg.init_from.head_dense if cfg.init_from else None
    return part


def identity(cfg: RunConfig, data_sha256: str, parents: Sequence[str]) -> dict[str, Any]:
    """Everything the run id is a hash of; stored in the record."""
    method = cfg.method["_target_"]
    if method not in METHOD_VERSIONS or cfg.task.dataset not in TASK_VERSIONS:
        raise ValueError(
            f"no result version for method {method} or data set {cfg.task.dataset!r}: add one to benchmarks/identity.py"
        )
    return {
        "config": scientific_config(cfg),
        "data": data_sha256,
        "versions": {"loop": LOOP_VERSION, "method": METHOD_VERSIONS[method], "task": TASK_VERSIONS[cfg.task.dataset]},
        "parents": list(parents),
    }


def run_id(identity: dict[str, Any]) -> str:
    """16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
