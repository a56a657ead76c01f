"""Who makes the packs instead of local processes: the pool that conf/hydra/launcher/<name>.yaml names (`_target_`)."""

from collections.abc import Sequence
from typing import Any, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ..config.compose import compose_cfg
from ..config.schema import CONF_DIR
from .workers import Pool


def launcher_pool(words: Sequence[str]) -> Pool:
    """The pool with the values of its file, but for those of the words: hydra/launcher=NAME, hydra.launcher.KEY=VALUE.

    Raises ValueError for a name without a file, and where the pool's `check_available` does.
    """
    name = next((word.partition("=")[2] for word in reversed(words) if word.startswith("hydra/launcher=")), "")
    files = {path.stem: path for path in sorted((CONF_DIR / "hydra" / "launcher").glob("*.yaml"))}
    if name not in files:
        known = ", ".join(files)
        raise ValueError(f"hydra/launcher={name}: expected one of {known}; leave it out for local processes")
    pool: Any = get_class(cast(DictConfig, OmegaConf.load(files[name]))["_target_"])
    pool.check_available()  # before its file is composed, which may build on a package's
    values: Any = OmegaConf.to_container(compose_cfg(words, hydra=True).hydra.launcher, resolve=True)
    del values["_target_"]
    made: Pool = pool(**values)
    return made
