"""Words in YAML files that YAML reads as something else: a bare yes, no, on or off is a boolean, and OmegaConf would
make the word "True" or "False" of it where a text is expected."""

import dataclasses
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .schema import CONF_DIR, DecodingConfig, InContextConfig, RunConfig, TaskConfig


def check_booleans(cfg: RunConfig, tasks: list[str]) -> None:
    """Raises ValueError that names file and key where one of the run's files has a boolean in place of a text.

    tasks: of the run, its own first, as in `task=`.
    """
    files: list[tuple[type, str]] = [(TaskConfig, f"task/{name}") for name in tasks]
    files += [(DecodingConfig, f"decoding/{cfg.decoding.name}")] if dataclasses.is_dataclass(cfg.decoding) else []
    files += [(InContextConfig, f"in_context/{cfg.in_context.name}")] if cfg.in_context else []
    whole = [f"experiment/{cfg.experiment}", f"recipe/{cfg.settings}/{cfg.experiment}/{tasks[0]}"]
    whole += [f"at/{cfg.scale.name}/{cfg.experiment}", f"at/{cfg.scale.name}/task/{tasks[0]}"]
    for kind, name in [*files, *((RunConfig, name) for name in whole)]:
        if wrong := _booleans_of(kind, CONF_DIR / f"{name}.yaml"):
            raise ValueError(
                f"conf/{name}.yaml: {wrong} is a text, and YAML reads a bare yes, no, on, off, true or false as a "
                "boolean: put the word in quotes"
            )


@cache
def _booleans_of(kind: type, path: Path) -> str:
    """The first key of a file that should be text and is a boolean; "" without one, and without the file."""
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    return next(_booleans(kind, content, ""), "")


def _booleans(hint: Any, value: Any, key: str) -> Iterator[str]:
    inner, of = typing.get_args(hint), typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        for name, part in value.items():
            yield from _booleans(hints.get(name), part, f"{key}.{name}".lstrip("."))
    elif of in (list, dict) and isinstance(value, of):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _booleans(inner[-1], part, key)
    elif of not in (None, list, dict):  # str | None
        yield from _booleans(inner[0], value, key)
    elif hint is str and isinstance(value, bool):
        yield key
