"""From a configuration to a run that may be trained: config -> tasks -> weights, and its identity. Trains nothing."""

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backbones.location import digests_of
from ..config.departures import departures, unused_decoding
from ..config.schema import RunConfig, is_control
from ..records.places import TRAINED
from ..tasks.examples import RunData
from ..tasks.loading import load_run_data
from .checks import check_config
from .identity import identity, run_id

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Prepared:
    """A run that has passed every check. digests: of a backbone that is not shipped (see `digests_of`).

    candidates: of which it starts from one (`init_from`). identity, run_id: there once it is known from which.
    departures: from what its experiment says.
    """

    cfg: RunConfig
    data_sha256: str
    digests: dict[str, str]
    candidates: "tuple[Prepared, ...]" = ()
    parent: "Prepared | None" = None
    identity: dict[str, Any] = dataclasses.field(init=False)
    run_id: str = dataclasses.field(init=False)
    departures: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def start_from(self, parent: "Prepared | None") -> None:
        """What it starts from is part of what it is."""
        if parent is None or parent is not self.parent:
            self.parent = parent
            parents = [] if parent is None else [parent.run_id]
            self.identity = identity(self.cfg, self.data_sha256, parents, self.digests)
            self.run_id = run_id(self.identity)

    @property
    def key(self) -> tuple[str, str]:
        """Experiment and run id: what names a run in a results folder."""
        return self.cfg.experiment, self.run_id

    @property
    def trained(self) -> Path:
        """Where its selected checkpoint lies: what its children start from."""
        return Path(self.cfg.results_dir) / TRAINED / self.cfg.experiment / f"{self.run_id}.safetensors"

    @functools.cached_property
    def data(self) -> RunData:
        """All that it reads of its tasks. A plan of thousands of runs never asks."""
        return load_run_data(self.cfg)


def prepare(cfg: RunConfig) -> Prepared:
    """Check, load, identify. Raises ValueError for whatever can be refused before a backbone is built.

    Possible parents are left to parents.py: a run that starts from one has no identity yet.
    """
    check_config(cfg)
    data = load_run_data(cfg)
    digests = {} if is_control(cfg) else digests_of(cfg.backbone, cfg.scale, cfg.backbone_dir)
    p = Prepared(cfg, data.sha256, digests)
    if cfg.init_from is None:
        p.start_from(None)
    return p


def note_departures(runs: Sequence[Prepared]) -> None:
    """Before the training: what is asked for may be changed on disk while it lasts."""
    for p in runs:
        p.departures = departures(dataclasses.asdict(p.cfg))
        if unused := unused_decoding(p.cfg):
            log.warning("not used: %s: %s is answered with its labels", ", ".join(unused), p.cfg.task.name)


def check_writable(results_dir: str) -> None:
    """Now rather than after the training. Raises ValueError."""
    if not results_dir:
        return  # check_config says so
    folder = Path(results_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"results_dir={folder}: cannot write there ({error.strerror}); name another folder") from error
