"""What a field of a configuration decides, said once, in its own line.

    z_loss: float = field(0.0, since=0.0)
    eval_batch_size: int = field(64, NUMERICS)

The identity of a run, its record, what a parent takes over and what departs from an experiment follow from it.
"""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import MISSING

SCIENCE = "science"  # a result follows from it: in the identity
NUMERICS = "numerics"  # of speed, memory or rounding: in the numerics class of the record
VERSION = "version"  # of results: in the identity's `versions`, which the record has
NOTE = "note"  # names, origins, ways: recorded, and what follows from it stands in the identity by itself
PLACE = "place"  # of one machine or call: not even recorded
ROLES = (SCIENCE, NUMERICS, VERSION, NOTE, PLACE)
_ALWAYS = object()


def field(default: Any = MISSING, role: str = SCIENCE, since: Any = _ALWAYS) -> Any:
    """A field of a configuration; lists and dictionaries are copied for each instance.

    since: of a field younger than the first records, the value that their runs had: at it the identity leaves the field
    out, so that they stay the runs they were.
    """
    metadata = {"role": role} | ({} if since is _ALWAYS else {"since": since})
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def names(kind: type, *roles: str) -> frozenset[str]:
    """The fields of a configuration class that have one of these roles."""
    return frozenset(f.name for f in dataclasses.fields(kind) if f.metadata["role"] in roles)


@cache
def _since(kind: type) -> dict[str, Any]:
    return {f.name: f.metadata["since"] for f in dataclasses.fields(kind) if "since" in f.metadata}


def scientific_part(kind: type, part: Mapping[str, Any]) -> dict[str, Any]:
    """What of a part of a configuration, as plain data, a result follows from: without young fields at their old value.

    A field that `kind` does not know is kept: a record of another version stays another run.
    """
    left_out, since = names(kind, NUMERICS, VERSION, NOTE, PLACE), _since(kind)
    return {k: v for k, v in part.items() if k not in left_out and not (k in since and v == since[k])}
