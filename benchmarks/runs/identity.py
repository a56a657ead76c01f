"""The identity of a run: what would have to change for its result to change.

A hash of the resolved scientific configuration, the content of the data columns used, result versions raised by hand
whenever numbers move on purpose (golden loss curves in the tests fail when they move without it), and the identities of
the parents. The versions stand here (the training loop), in each method's class (`result_version`) and in conf/task/.
Where things lie, how they are tracked and on what device they run is recorded elsewhere.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..backbones.location import shipped_digest, stand_in
from ..config.compose import method_class
from ..config.schema import RunConfig, is_control
from ..config.science import scientific

LOOP_VERSION = 1
NONE_READ: Mapping[str, str] = {}  # the digests of a shipped backbone, or of none


def scientific_config(cfg: RunConfig) -> dict[str, Any]:
    """The part of the configuration that the identity hashes."""
    part = scientific(dataclasses.asdict(cfg))
    folder = None if is_control(cfg) else stand_in(cfg.backbone, cfg.scale)
    part["stand_in"] = None if folder is None else f"{folder.name}@{shipped_digest(folder)[:16]}"
    part["head_dense"] = cfg.init_from.head_dense if cfg.init_from else None
    return part


def identity(
    cfg: RunConfig, data_sha256: str, parents: Sequence[str], digests: Mapping[str, str] = NONE_READ
) -> dict[str, Any]:
    """Everything the run id is a hash of; stored in the record.

    digests: of the backbone's weights and files where no shipped backbone stands in (see `digests_of`).
    """
    versions: dict[str, Any] = {
        "loop": LOOP_VERSION,
        "method": method_class(cfg.method["_target_"]).result_version,
        "task": cfg.task.version,
    }
    for others in ("transfer", "mixture"):
        if tasks := getattr(cfg, others):
            versions[others] = {name: task.version for name, task in tasks.items()}
    return {
        "config": scientific_config(cfg),
        "data": data_sha256,
        "versions": versions,
        "parents": list(parents),
        **digests,
    }


def run_id(identity: dict[str, Any]) -> str:
    """16 hexadecimal digits."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
