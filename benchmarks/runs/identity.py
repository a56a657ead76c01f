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

from ..backbones.files import shipped_digest, stand_in
from ..config.schema import RunConfig, is_control
from ..config.science import scientific

LOOP_VERSION = 1
METHOD_VERSIONS = {
    "peft_methods.baselines.Full": 1,
    "peft_methods.baselines.FullTop": 1,
    "peft_methods.baselines.HeadOnly": 1,
    "peft_methods.bitfit.BitFit": 1,
    "peft_methods.bottleneck.AdapterL": 1,
    "peft_methods.bottleneck.Houlsby": 1,
    "peft_methods.bottleneck.Parallel": 1,
    "peft_methods.bottleneck.Pfeiffer": 1,
    "peft_methods.bottleneck.SharedPfeiffer": 1,
    "peft_methods.composition.Composition": 1,
    "peft_methods.ia3.IA3": 1,
    "peft_methods.layer_norm.LayerNorm": 1,
    "peft_methods.lora.Lora": 1,
    "peft_methods.prefix.Infix": 1,
    "peft_methods.prefix.Prefix": 1,
    "peft_methods.prompt.Prompt": 1,
    "peft_bench.controls.Majority": 1,
    "peft_bench.controls.BagOfWords": 1,
}
TASK_VERSIONS = {
    "glue": 1,
    "super_glue": 1,
    "e2e_nlg": 1,
    "e2e_nlg_tokenized": 1,
    "web_nlg_2017": 1,
    "dart": 1,
    "xsum": 1,
    "squad": 1,
    "squad_sea": 1,
    "mrqa": 1,
}


def scientific_config(cfg: RunConfig) -> dict[str, Any]:
    """The part of the configuration that the identity hashes."""
    part = scientific(dataclasses.asdict(cfg))
    folder = None if is_control(cfg) else stand_in(cfg.backbone, cfg.scale)
    part["stand_in"] = None if folder is None else f"{folder.name}@{shipped_digest(folder)[:16]}"
    part["head_dense"] = cfg.init_from.head_dense if cfg.init_from else None
    return part


def identity(cfg: RunConfig, data_sha256: str, parents: Sequence[str], weights: str | None = None) -> dict[str, Any]:
    """Everything the run id is a hash of; stored in the record.

    weights: sha256 of the backbone's weights where no shipped backbone stands in (see `weights_of`).
    """
    method = cfg.method["_target_"]
    tasks = {name: task.dataset for name, task in cfg.transfer.items()} | {"": cfg.task.dataset}
    datasets = {*tasks.values(), *(task.dataset for task in cfg.mixture.values())}
    if method not in METHOD_VERSIONS or not datasets <= {*TASK_VERSIONS}:
        known = ", ".join(sorted(datasets))
        raise ValueError(
            f"no result version for method {method} or one of the data sets {known}: add one to "
            "benchmarks/runs/identity.py"
        )
    versions: dict[str, Any] = {
        "loop": LOOP_VERSION,
        "method": METHOD_VERSIONS[method],
        "task": TASK_VERSIONS[tasks.pop("")],
    }
    if tasks:
        versions["transfer"] = {name: TASK_VERSIONS[dataset] for name, dataset in tasks.items()}
    if cfg.mixture:
        versions["mixture"] = {name: TASK_VERSIONS[task.dataset] for name, task in cfg.mixture.items()}
    made = {
        "config": scientific_config(cfg),
        "data": data_sha256,
        "versions": versions,
        "parents": list(parents),
    }
    return made if weights is None else made | {"weights": weights}


def run_id(identity: dict[str, Any]) -> str:
    """16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
