"""Which files hold a checkpoint's weights, and the commit on the hub that they are of. No torch.

Weights are one file, or several that an index names. Of the forms that a folder holds, the first of FORMS is read.
"""

import json
import re
from pathlib import Path

from .hashes import file_sha256

FORMS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
_SHARD = re.compile(r"\w[\w.-]*\.(safetensors|bin)")  # no folder, no pattern
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BackboneError(ValueError):
    """A checkpoint that cannot be found, read or used."""


def weight_files(folder: Path) -> list[Path]:
    """The files of the first of FORMS that the folder holds, in order of name.

    Raises BackboneError: there is none; an index that is damaged or names a file that is not beside it; a file that
    Git LFS has not fetched.
    """
    forms = [name for name in FORMS if (folder / name).exists() or (folder / name).is_symlink()]
    if not forms:
        raise BackboneError(f"{folder} holds no weights: expected {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    names = sharded(folder / forms[0]) if forms[0].endswith(".json") else forms[:1]
    files = [folder / name for name in names]
    if missing := [path.name for path in files if not path.is_file()]:
        raise BackboneError(
            f"{folder} lacks {len(missing)} of the {len(files)} files of its weights, {missing[0]} first; expected all "
            f"that {forms[0]} stands for: copy or download them again"
        )
    for path in files:
        with open(path, "rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise BackboneError(f"{path} is a Git LFS pointer, expected the file itself: run `git lfs pull` there")
    return files


def sharded(index: Path) -> list[str]:
    """The names of the files that an index of weights stands for, in order. Raises BackboneError as `weight_files`."""
    try:
        names = sorted({*weight_map(index).values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BackboneError(
            f"{index} is no index of weights ({type(error).__name__}: {error}); expected "
            '{"weight_map": {tensor: file, ...}}'
        ) from error
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    for name in names:
        if not (isinstance(name, str) and _SHARD.fullmatch(name) and name.endswith(f".{suffix}")):
            raise BackboneError(f"{index} names the file {name!r}, expected names of *.{suffix} in its own folder")
    if not names:
        raise BackboneError(f"{index} names no file, expected those that hold the weights")
    return names


def weight_map(index: Path) -> dict[str, str]:
    """An index as it stands: tensor -> file."""
    names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
    return names


def published_hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of each file of the weights, as published: of a *.bin what was downloaded, not its conversion."""
    return {path.name: file_sha256(path) for path in weight_files(folder)}


def commit_of(folder: Path) -> str | None:
    """The commit on the hub of a folder in the hub's cache (.../models--*/snapshots/<commit>); None of any other."""
    repository, snapshots, commit = ("", "", *folder.absolute().parts)[-3:]
    named = repository.startswith("models--") and snapshots == "snapshots" and _COMMIT.fullmatch(commit)
    return commit if named else None
