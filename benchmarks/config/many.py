"""Thousands of configurations in seconds: Hydra composes once per choice of files, the values are set on its result.

A composition costs a fifth of a second. The runs of a sweep differ mostly in single values (seed, learning rate, rank);
those are converted and checked by the same schema, once per value. Everything else (a choice of a file, a list, a key
of the launcher) is composed anew.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .compose import compose_cfg, explain, typed
from .schema import CONF_DIR, RunConfig

Values = dict[str, Any]  # dotted key -> value
_CHOICES = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}  # keys that choose a file


def compose_all(jobs: Sequence[Sequence[str]]) -> list[RunConfig]:
    """One RunConfig per list of overrides, as `compose_run` gives it. Raises ValueError that names a bad one."""
    parser = OverridesParser.create()
    parse = functools.cache(parser.parse_override)  # the words of a sweep repeat themselves
    bases: dict[tuple[Any, ...], _Base] = {}
    made = []
    for job in jobs:
        try:
            values, rest = _split([parse(word) for word in job])
            key = (*rest, *values)
            if key not in bases:
                bases[key] = _Base(compose_cfg(job))
            made.append(bases[key].with_values(values))
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(f"{' '.join(job)}: {explain(error)}") from error
    return made


def _split(overrides: Sequence[Override]) -> tuple[Values, list[str]]:
    """The plain values, by key, and the overrides that choose what is composed, in order."""
    values: Values = {}
    rest: list[str] = []
    for override in overrides:
        key, value = override.key_or_group, override.value()
        plain = isinstance(value, str | int | float | bool | QuotedString) or value is None
        if (
            override.type != OverrideType.CHANGE
            or override.package is not None
            or key in _CHOICES
            or key.startswith("hydra")
            or key.count(".") > 1
            or not plain
        ):
            rest.append(override.input_line or "")
            values.pop(key, None)  # `a=1 a=[2]`: the later one counts
        else:
            values[key] = value.text if isinstance(value, QuotedString) else value
    return values, rest


class _Base:
    """One composition, and what its schema makes of the values that were set on it."""

    def __init__(self, cfg: DictConfig):
        self.cfg, self.run = cfg, typed(cfg)
        # With a ${reference} in it, another value may follow from the one that is set.
        self.references = "${" in OmegaConf.to_yaml(cfg)
        self.converted: dict[tuple[str, str, Any], Any] = {}

    def with_values(self, values: Values) -> RunConfig:
        if self.references:
            for key, value in values.items():
                OmegaConf.update(self.cfg, key, value)
            return typed(self.cfg)
        run = dataclasses.replace(self.run)
        changed: dict[str, Values] = {}
        for key, value in values.items():
            name = (key, type(value).__name__, value)  # 1, 1.0 and true are equal keys otherwise
            if name not in self.converted:
                OmegaConf.update(self.cfg, key, value)
                self.converted[name] = OmegaConf.select(self.cfg, key)
            group, _, field = key.partition(".")
            if field:
                changed.setdefault(group, {})[field] = self.converted[name]
            else:
                setattr(run, key, self.converted[name])
        for group, fields in changed.items():
            part = getattr(run, group)
            setattr(run, group, part | fields if isinstance(part, dict) else dataclasses.replace(part, **fields))
        return run
