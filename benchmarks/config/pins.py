"""The table of pins: which commit of a repository on the Hugging Face hub is the published one, and its files' hashes.

Only scale=paper and scale=small read it; a shipped backbone stands in at scale=micro, whatever is pinned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import yaml

from .schema import CONF_DIR, BackboneConfig, TaskConfig

TABLE = CONF_DIR / "pins.yaml"
UNPINNED = "main"  # backbone.revision where nobody has named another


@dataclass(frozen=True)
class PinnedFile:
    """A file at the pinned commit. sources: how many independent ones name the hash."""

    sha256: str
    bytes: int | None
    sources: int


@dataclass(frozen=True)
class Pin:
    """What is known of a repository. revision: its commit, None where nobody names it. sources: of the commit."""

    repository: str
    kind: Literal["models", "datasets"]
    revision: str | None
    sources: int = 0
    files: Mapping[str, PinnedFile] = field(default_factory=dict)


@cache
def pins() -> dict[str, Pin]:
    """All pins by repository, in the order of the table."""
    content: dict[Literal["models", "datasets"], Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    found = {}
    for kind, repositories in content.items():
        for name, pin in repositories.items():
            files = {file: PinnedFile(**facts) for file, facts in pin.get("files", {}).items()}
            found[name] = Pin(name, kind, pin["revision"], pin.get("sources", 0), files)
    return found


def revision_of(backbone: BackboneConfig) -> str:
    """The revision that is read of a published backbone: its own where it names one, else the pin's, else main."""
    if backbone.revision != UNPINNED:
        return backbone.revision
    pin = pins().get(backbone.hub_id)
    return (pin.revision if pin else None) or UNPINNED


def data_revision_of(task: TaskConfig) -> str | None:
    """Likewise of a task's data; None: what the hub gives without one."""
    pin = pins().get(task.hub_id)
    return task.hub_revision or (pin.revision if pin else None)
