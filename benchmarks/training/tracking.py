"""Weights & Biases, behind one small class: off by default, offline possible, and never the reason that a run fails."""

import logging
from collections.abc import Callable
from typing import Any

from ..config.schema import TrackingConfig

log = logging.getLogger(__name__)


class Tracker:
    """One W&B run. Any failure is logged once as a warning and turns the tracker off; records do not depend on it."""

    def __init__(self, cfg: TrackingConfig, run_id: str, group: str, name: str, config: dict[str, Any], folder: str):
        self._run: Any = None
        if cfg.mode not in ("disabled", "offline", "online"):
            raise ValueError(f"tracking.mode={cfg.mode!r}: expected disabled, offline or online")
        if cfg.mode != "disabled":
            self._attempt(lambda: self._start(cfg, run_id, group, name, config, folder))

    def log(self, values: dict[str, float], step: int) -> None:
        """Scalars at an optimizer step."""
        if self._run is not None:
            self._attempt(lambda: self._run.log(values, step=step))

    def finish(self, summary: dict[str, Any], failed: bool = False) -> None:
        """Final scores; closes the run."""
        if self._run is not None:
            self._attempt(lambda: self._run.summary.update(summary))
        if self._run is not None:
            self._attempt(lambda: self._run.finish(exit_code=int(failed)))
            self._run = None

    def _start(
        self, cfg: TrackingConfig, run_id: str, group: str, name: str, config: dict[str, Any], folder: str
    ) -> None:
        import wandb  # two seconds of import that a run without tracking does not pay

        self._run = wandb.init(
            project=cfg.project, entity=cfg.entity, mode=cfg.mode, id=run_id, group=group, name=name, config=config,  # type: ignore[arg-type]
            dir=folder, reinit="create_new", settings=wandb.Settings(silent=True, init_timeout=60),
        )  # fmt: skip

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever W&B raises, the run goes on
            log.warning("W&B tracking is off for this run: %s: %s", type(error).__name__, error)
            self._run = None
