"""What the two interchange formats share: folders, the task layer's names, and what an import gives.

    peft      Hugging Face's library: LoRA, (IA)^3, prompt and prefix tuning           peft.py
    adapters  AdapterHub's library: Houlsby, Pfeiffer, parallel, Adapter^L             adapters.py

Tensors are safetensors, never pickles. A folder is there whole or not at all. An import is checked against the backbone
before anything is attached. What a format cannot say, or we cannot, is refused in one sentence; docs/interchange.md
lists it.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.heads import ClassificationHead
from peft_methods.protocols import Method
from peft_methods.run_modules import RunModules
from peft_methods.sites import Sites
from peft_methods.state import copy_trained, read_safetensors

# model_type -> our head's linear maps, by their names in transformers' `...ForSequenceClassification`.
HEADS = {
    "bert": {"classifier": "out_proj"},
    "roberta": {"classifier.dense": "dense", "classifier.out_proj": "out_proj"},
    "deberta-v2": {"pooler.dense": "dense", "classifier": "out_proj"},
}


@dataclass(frozen=True)
class Imported:
    """A method, its head or None, and its tensors under the names of `RunModules.trained`.

    `attach` puts it on a backbone alone; for a pack give `method` and `head` to `peft_methods.attach.attach` and the
    tensors to `peft_methods.state.copy_trained`.
    """

    method: Method
    head: Callable[[], nn.Module] | None
    tensors: Mapping[str, Tensor]

    def attach(self, backbone: PreTrainedModel) -> Attached:
        """The backbone with this one run on it; nothing is attached after an error."""
        attached = attach(backbone, [self.method], [self.head])
        try:
            copy_trained(attached, self.tensors)
        except ValueError:
            attached.detach()
            raise
        return attached


def head_tensors(sites: Sites, run: RunModules) -> dict[str, Tensor]:
    """Our head's tensors, by the names of `HEADS`; empty without a head. Raises ValueError for another head."""
    if run.head is None:
        return {}
    if not isinstance(run.head, ClassificationHead) or sites.model_type not in HEADS:
        raise ValueError(
            f"a {type(run.head).__name__} on {sites.model_type} has no layout elsewhere: expected a ClassificationHead "
            f"on one of {', '.join(HEADS)}; attach without a head to export the method alone"
        )
    own = dict(run.head.named_parameters())
    return {
        f"{theirs}.{kind}": own[f"{ours}.{kind}"]
        for theirs, ours in HEADS[sites.model_type].items()
        for kind in ("weight", "bias")
    }


def take_head(names: Mapping[str, str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the head's tensors from `tensors`. names: their linear map -> ours. Returns them as `head.<parameter>`."""
    keys = [
        (f"{theirs}.{kind}", f"head.{ours}.{kind}") for theirs, ours in names.items() for kind in ("weight", "bias")
    ]
    return {ours: tensors.pop(theirs) for theirs, ours in keys if theirs in tensors}


def fitted(sites: Sites, method: Method, tensors: Mapping[str, Tensor]) -> Imported:
    """What was read, once names and shapes are known to fit the backbone. Raises ValueError where they do not."""
    head: Callable[[], nn.Module] | None = None
    if any(name.startswith("head.") for name in tensors):
        if "head.out_proj.weight" not in tensors:
            raise ValueError("the head has no output layer: expected the tensors of a sequence classification head")
        head = partial(ClassificationHead, sites.backbone.config, len(tensors["head.out_proj.weight"]))
    with torch.device("meta"):
        modules = method.modules(sites)
        expected = RunModules(method, modules, head() if head else None, {}).trained()
    for name in (*expected, *tensors):
        given, wanted = (tuple(t[name].shape) if name in t else None for t in (tensors, expected))
        if given != wanted:
            raise ValueError(
                f"{name} is {given or 'missing'}, expected {wanted or 'nothing'} for {type(method).__name__} on this "
                f"{sites.model_type}: import onto the backbone that it was trained on, with all its layers"
            )
    return Imported(method, head, dict(tensors))


def check_fields(config: Mapping[str, Any], understood: Collection[str]) -> None:
    """Refuse a configuration with a field that is set and that we know nothing of: it may change what is computed."""
    for field, value in config.items():
        if field not in understood and value not in (None, False, 0, "", [], {}):
            raise ValueError(f"{field}={value!r} has no counterpart here: expected it unset")


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Put the folder's name before an error's sentence."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    except (AttributeError, IndexError, TypeError, re.error) as error:  # whatever stands where something else should
        raise ValueError(f"{folder}: a setting or tensor is of a wrong kind ({error}): save it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where it is missing or no object."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing: expected a folder saved by the library or by our export")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error}): save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, expected an object: save it again")
    return content


def read_tensors(path: Path, how: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file. how: what makes the library write one, said where there is none."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing, and pickled weights are not read: save with {how}")
    return read_safetensors(path)[0]


def write_folder(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a new folder of JSON files and safetensors files (by their ending), whole or not at all.

    Raises ValueError where the folder exists, OSError where it cannot be written.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: give a new folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        for name, content in files.items():
            if name.endswith(".safetensors"):
                tensors = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in content.items()}
                save_file(tensors, temporary / name, {"format": "pt"})
            else:
                (temporary / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            with open(temporary / name, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, folder)
    except SafetensorError as error:  # how the library reports a full disk or a lost folder
        raise OSError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
