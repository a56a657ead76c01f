"""Pickled weights as safetensors, converted once on a machine.

    <cache>/converted/<hash>/    model-00001.safetensors, ..., model.safetensors.index.json, conversion.json

hash: SHA-256 of pytorch_model.bin; of several files, of their names and hashes. A *.bin is a pickle, which can name any
code to run: torch reads it with weights_only, which refuses all but tensors. Every name that it has is kept, with bytes
of its own where several share them. The folder appears under its name when it is whole, and its tensors are compared
with their digest in each process that loads it.
"""

import functools
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .hashes import cache_folder, file_sha256, tensors_digest
from .weight_files import FORMS, BackboneError, weight_map

_INDEX, _NOTE = "model.safetensors.index.json", "conversion.json"
_VERSION = 1  # of what is written; a conversion of another one is made again
_SHARD_BYTES = 2 << 30  # of a file that is written: what is held in memory beside the mapped *.bin
_ZIP = b"PK\x03\x04"  # how files of torch 1.6 and later begin, which can be mapped


@dataclass(frozen=True)
class Conversion:
    """A folder of safetensors files with their index, and the digest of the tensors in them (`tensors_digest`)."""

    folder: Path
    tensors: str


def converted(files: tuple[Path, ...]) -> Conversion:
    """The conversion of a checkpoint's *.bin files, made where it is not there yet or has been damaged.

    Raises BackboneError: a file holds anything but tensors or is truncated; the cache cannot be written.
    """
    hashes = [file_sha256(path) for path in files]
    whole = "".join(f"{path.name} {sha256}\n" for path, sha256 in zip(files, hashes, strict=True))
    return _converted(files, hashes[0] if len(files) == 1 else hashlib.sha256(whole.encode()).hexdigest())


@functools.lru_cache(maxsize=8)  # gigabytes, read once per process
def _converted(files: tuple[Path, ...], key: str) -> Conversion:
    root = cache_folder() / "converted"
    if conversion := _intact(root / key):
        return conversion
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            if conversion := _intact(root / key):  # another process was faster
                return conversion
            return _convert(files, root / key)
    except (OSError, SafetensorError) as error:
        gigabytes = sum(path.stat().st_size for path in files) / 1e9
        raise BackboneError(
            f"cannot convert {files[0]} to safetensors in {root} ({' '.join(str(error).split())}); expected a folder "
            f"that can be written, with {gigabytes:.1f} GB free: set PEFT_BENCH_CACHE to another one"
        ) from error


def _intact(folder: Path) -> Conversion | None:
    """What was converted, if it is as it was written; None if it is to be made (again)."""
    try:
        note = json.loads((folder / _NOTE).read_bytes())
        same = note["version"] == _VERSION and note["index"] == file_sha256(folder / _INDEX)
        if same and tensors_digest(sorted(folder.glob("*.safetensors"))) == note["tensors"]:
            return Conversion(folder, note["tensors"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def _convert(files: tuple[Path, ...], folder: Path) -> Conversion:
    """Write the folder, beside it first. The caller holds its lock."""
    scratch = folder.with_suffix(".partial")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    scratch.mkdir()
    try:
        written = _write(files, scratch)
        named = set[str]() if files[0].name in FORMS else {*weight_map(files[0].parent / FORMS[-1])}
        if lost := named - written.keys():
            raise BackboneError(
                f"{files[0].parent} lacks {len(lost)} tensors that {FORMS[-1]} names, {min(lost)} first; expected "
                "index and files of one checkpoint: download them again"
            )
        (scratch / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": written}))
        tensors = tensors_digest(sorted(scratch.glob("*.safetensors")))
        note = {"version": _VERSION, "tensors": tensors, "index": file_sha256(scratch / _INDEX)}
        note["files"] = {path.name: file_sha256(path) for path in files}  # for a reader
        (scratch / _NOTE).write_text(json.dumps(note, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Conversion(folder, tensors)


def _write(files: tuple[Path, ...], folder: Path) -> dict[str, str]:
    """Write the tensors of all files, one after the other: name -> the file that it went to."""
    written: dict[str, str] = {}
    number = 0
    for path in files:
        tensors = _unpickled(path)
        if twice := written.keys() & tensors.keys():
            raise BackboneError(f"{path} has the tensor {min(twice)}, as another file of its checkpoint has")
        for names in _groups(tensors):
            number += 1
            file = f"model-{number:05}.safetensors"
            # A copy each: safetensors takes no two tensors that share their bytes, and none that is a view.
            apart = {name: tensors[name].detach().clone(memory_format=torch.contiguous_format) for name in names}
            save_file(apart, folder / file, {"format": "pt"})
            del apart  # before the next ones are copied
            written |= dict.fromkeys(names, file)
    return written


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names in their order, in groups of at most _SHARD_BYTES, or of one."""
    group, size = list[str](), 0
    for name in sorted(tensors):
        if group and size + tensors[name].nbytes > _SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensors[name].nbytes
    if group:
        yield group


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a *.bin, mapped where its format allows. Runs nothing of what the pickle names."""
    try:
        with open(path, "rb") as stream:
            mapped = stream.read(len(_ZIP)) == _ZIP
        stored: Any = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # whatever damaged bytes make of the unpickler
        if isinstance(error, pickle.UnpicklingError) and (asked := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise BackboneError(
                f"{path} is refused: it names {asked[1]}, and a pickle may run what it names; expected tensors alone, "
                "as in the checkpoint that was published"
            ) from error
        # Without torch's own words, which advise to load it unsafely.
        raise BackboneError(
            f"cannot read {path} ({type(error).__name__}); expected the tensors of a checkpoint as torch.save writes "
            "them, and the whole file: download it again"
        ) from error
    if not isinstance(stored, dict) or not stored or not all(_plain(name, value) for name, value in stored.items()):
        raise BackboneError(f"{path} is refused: expected names with dense tensors and nothing else, as a state_dict")
    return stored


def _plain(name: object, value: object) -> bool:
    """Whether an entry is a name with a tensor whose elements are all there, in a type that safetensors has."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not (value.is_quantized or value.is_meta or value.is_complex())
