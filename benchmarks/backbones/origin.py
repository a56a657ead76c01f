"""Whether a checkpoint is the published one: by its commit on the hub, or by the bytes of its files. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config.pins import TABLE, Pin, pins
from ..config.schema import BackboneConfig
from .hashes import file_sha256
from .location import weights_digest
from .weight_files import BackboneError, commit_of, weight_files


@dataclass(frozen=True)
class Origin:
    """Where a run's weights are from.

    published: they are those of the paper's checkpoint. commit: on the hub; None of a folder. pinned: the table of pins
    names that commit, or of a folder the hashes of its weights.
    """

    published: bool
    commit: str | None = None
    pinned: bool = False


def origin_of(backbone: BackboneConfig, folder: Path, backbone_dir: str | None) -> Origin:
    """What is known of a published backbone's checkpoint.

    From the hub it is published by its repository, at the commit that the hub resolved. Raises BackboneError where
    that commit is pinned and a file has not the pinned hash. From a folder it is published by its hashes alone.
    """
    commit = commit_of(folder) if backbone_dir is None else None
    if not backbone.pretrained or backbone.other_shape:
        return Origin(False, commit)
    pin = pins().get(backbone.hub_id)
    if backbone_dir is not None:
        same = _has_pinned_weights(folder, pin) or backbone.weights_sha256 == weights_digest(folder)
        return Origin(same, None, same)
    if pin is None or pin.revision is None:
        return Origin(True, commit)
    if commit != pin.revision:
        return Origin(False, commit)
    for name, (found, expected) in _hashes(folder, pin).items():
        if found != expected:
            raise BackboneError(
                f"{folder / name} has the SHA-256 {found}, {TABLE.name} says {expected} for {backbone.hub_id} at "
                f"{commit}: delete it from the hub's cache and load it again, or take these bytes for another backbone "
                "by backbone.other_shape=true"
            )
    return Origin(True, commit, True)


def _has_pinned_weights(folder: Path, pin: Pin | None) -> bool:
    """Whether all files of the weights are pinned and have their hashes."""
    if pin is None or not {path.name for path in weight_files(folder)} <= pin.files.keys():
        return False
    return all(found == expected for found, expected in _hashes(folder, pin, weights_alone=True).values())


def _hashes(folder: Path, pin: Pin, weights_alone: bool = False) -> Mapping[str, tuple[str, str]]:
    """Name -> (found, pinned) of the files that a run reads and the pin knows."""
    weights = {path.name for path in weight_files(folder)}
    other_forms = {name for name in pin.files if name.endswith((".safetensors", ".bin"))} - weights
    read = weights if weights_alone else pin.files.keys() - other_forms
    return {
        name: (file_sha256(folder / name), pin.files[name].sha256)
        for name in sorted(read & pin.files.keys())
        if (folder / name).is_file()
    }
