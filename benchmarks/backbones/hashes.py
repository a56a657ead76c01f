"""What weights hash to: the bytes of their files, or the tensors in them. No torch."""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

_BLOCK = 1 << 22


def cache_folder() -> Path:
    """What is kept between runs and can be made again: $PEFT_BENCH_CACHE, or peft-bench/ in the user's cache."""
    if given := os.environ.get("PEFT_BENCH_CACHE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "peft-bench"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read once per process as long as nobody touches it.

    That of a *.bin, of which nothing else is read once it is converted, is kept in `cache_folder()` for the next one.
    """
    return _sha256(path.resolve(), _state(path.stat()), keep=path.suffix == ".bin")


def _state(stat: os.stat_result) -> tuple[int, ...]:
    """What a change of the content changes, even where size and mtime are set back."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, state: tuple[int, ...], keep: bool) -> str:
    note = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    if keep:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # no note of this state: read the file
            kept = json.loads(note.read_bytes())
            if kept["state"] == [*state]:
                return str(kept["sha256"])
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if keep and _state(os.fstat(stream.fileno())) == state:
            with contextlib.suppress(OSError):  # where the cache cannot be written, the next process reads it again
                note.parent.mkdir(parents=True, exist_ok=True)
                scratch = note.with_suffix(f".{os.getpid()}")
                scratch.write_text(json.dumps({"file": str(path), "state": state, "sha256": digest}))
                os.replace(scratch, note)
    return digest


def tensors_digest(files: Sequence[Path]) -> str:
    """SHA-256 of the tensors in these safetensors files, however they are spread over them.

    Of each, in order of name: the line [name, dtype, shape] as JSON, dtype as safetensors calls it, then its bytes
    (row-major, little-endian). Raises ValueError for a file that is damaged, or a name that is there twice.
    """
    places: dict[str, tuple[Path, int, int, str]] = {}
    for path in files:
        start, header = _header(path)
        for name, entry in header.items():
            if name in places:
                raise ValueError(f"{path} has the tensor {name}, as {places[name][0].name} has")
            begin, end = entry["data_offsets"]
            line = json.dumps([name, entry["dtype"], entry["shape"]])
            places[name] = (path, start + begin, end - begin, line)
    digest = hashlib.sha256()
    for name in sorted(places):
        path, begin, length, line = places[name]
        digest.update(f"{line}\n".encode())
        with open(path, "rb") as stream:
            stream.seek(begin)
            while length:
                if not (block := stream.read(min(length, _BLOCK))):
                    raise ValueError(f"{path} ends within the tensor {name}")
                digest.update(block)
                length -= len(block)
    return digest.hexdigest()


def _header(path: Path) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Where the bytes of a safetensors file begin, and dtype, shape and place of each tensor."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file, or has lost its end")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header
