"""Save and load what was trained, and nothing else: one safetensors file per run, kilobytes to a few megabytes.

Tensor names: `sites.<site>.<parameter>`, `head.<parameter>`, and for full fine-tuning `backbone.<parameter>`.
The header holds the method and the backbone's type and width, so that loading onto another one is refused by name.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peft_methods.attached import Attached


def trained_tensors(attached: Attached, k: int = 0) -> dict[str, Tensor]:
    """A copy of run k's trained tensors on the CPU."""
    return _copies(attached.run(k).trained())


def stored_tensors(attached: Attached, k: int = 0) -> dict[str, Tensor]:
    """A copy of what a checkpoint of run k holds: of a reparameterized prefix the keys and values, not their MLP."""
    return _copies(attached.run(k).stored())


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in tensors.items()}


def save_trained(attached: Attached, path: Path | str, k: int = 0) -> None:
    """Write what run k has trained, as it is stored, atomically (temporary file, fsync, rename)."""
    header = {"format": "peft_methods 1", "description": _description(attached, k)}
    write_safetensors(stored_tensors(attached, k), Path(path), header)


def load_trained(attached: Attached, path: Path | str, k: int = 0) -> None:
    """Load run k's tensors from a file written by `save_trained`; nothing is loaded unless everything fits."""
    tensors, header = read_safetensors(Path(path))
    description = header.get("description")
    expected = _description(attached, k)
    if description != expected:
        raise ValueError(f"{path} holds {description}, the attached run is {expected}: attach the same method first")
    copy_trained(attached, tensors, k)


def copy_trained(attached: Attached, tensors: Mapping[str, Tensor], k: int = 0, only: str = "") -> None:
    """Copy named tensors into run k. `only` restricts both sides to names with that prefix.

    Where they are the stored form of a reparameterized run, its MLPs are forgotten: they could not have been kept.
    Raises ValueError, before anything is copied, where names or shapes do not fit.
    """
    run = attached.run(k)
    shapes = {name: t.shape for name, t in tensors.items()}
    if run.trained().keys() != run.stored().keys() and {n: t.shape for n, t in run.stored().items()} == shapes:
        run.collapse()
    own = {name: p for name, p in run.trained().items() if name.startswith(only)}
    given = {name: t for name, t in tensors.items() if name.startswith(only)}
    wrong = sorted(own.keys() ^ given.keys())
    wrong += [n for n in own.keys() & given.keys() if own[n].shape != given[n].shape]
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors do not fit the attached run, first {wrong[0]!r}: "
            f"given {_shape(given, wrong[0])}, expected {_shape(own, wrong[0])}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])


def write_safetensors(tensors: dict[str, Tensor], path: Path, header: Mapping[str, Any]) -> None:
    """Write a safetensors file so that it is there whole or not at all; raises OSError.

    The header is one entry of JSON: the library writes several in random order, and equal content is to be equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, {"header": json.dumps(header, sort_keys=True)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:  # how the library reports a full disk or a lost folder
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file. Raises ValueError where it is truncated or no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("header", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): make it again") from error


def _description(attached: Attached, k: int) -> dict[str, Any]:
    config = attached.backbone.config
    method = _plain(attached.run(k).method)
    return {
        **(method if isinstance(method, dict) else {"method": type(attached.run(k).method).__name__}),
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
    }


def _plain(value: Any) -> Any:
    """A method as JSON has it; the parts of a composition likewise. A tuple, or Hydra's own list, is a list there.

    A field with a default is younger than the first files: at the default, which they had, it is left out.
    """
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        young = {f.name: f.default for f in dataclasses.fields(value)}
        return {"method": type(value).__name__, **{n: _plain(v) for n, v in fields.items() if v != young[n]}}
    return [_plain(v) for v in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "nothing"
