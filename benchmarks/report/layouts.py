"""What our pages show, as data: conf/table/<page>.yaml, one entry a table, read into the page's dataclass.

In a file an entry stands under its name; so does, within it, a row or column under its label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ..config.schema import CONF_DIR

FOLDER = CONF_DIR / "table"
Layout = TypeVar("Layout")


@cache
def read_layouts(page: str, kind: type[Layout]) -> tuple[Layout, ...]:
    """The entries of conf/table/<page>.yaml, in the order of the file.

    Raises ValueError that names file and key for an unknown or missing one, or a value of another type.
    """
    file = FOLDER / f"{page}.yaml"
    content = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return tuple(_entries(kind, content, f"conf/table/{file.name}"))


def _entries(kind: type[Layout], content: Any, where: str) -> list[Layout]:
    """Dataclasses from a mapping whose keys are their first field; a value alone is the second."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected entries by name, got {content!r}")
    first, second, *_ = (field.name for field in fields(kind))  # type: ignore[arg-type]
    return [
        _built(kind, {first: name} | (value if isinstance(value, dict) else {second: value}), f"{where}, {name}")
        for name, value in content.items()
    ]


def _built(kind: type[Layout], content: Mapping[str, Any], where: str) -> Layout:
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := [key for key in content if key not in known]:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; expected some of {', '.join(known)}")
    needed = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    if missing := [name for name in needed if name not in content]:
        raise ValueError(f"{where}: no key {missing[0]!r}; expected {', '.join(needed)}")
    types = get_type_hints(kind)
    return kind(**{key: _value(types[key], value, f"{where}, {key}") for key, value in content.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """A YAML value as the field's type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is tuple and is_dataclass(inner[0]):
        return tuple(_entries(inner[0], value, where))  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], one, where) for one in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _value(inner[1], one, f"{where}, {key}") for key, one in value.items()}
    allowed = (kind,) if origin is None else inner if NoneType in inner else ()
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value
