"""From a backbone's description to a frozen model and its tokenizer, loaded once per process.

Published checkpoints come from the hub (its cache, if they are there) or from `backbone_dir`; at scale=micro a shipped
backbone of the same model_type stands in. Weights are read from safetensors, remote code is never run.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.config import BackboneConfig, ScaleConfig

MICRO_BACKBONES = Path(__file__).resolve().parent / "micro" / "backbones"
_FILES = ["model*.safetensors*", "*.json", "*.txt", "*.model"]  # of a checkpoint on the hub: weights, shapes, tokenizer


class BackboneError(ValueError):
    """A checkpoint that cannot be found, read or used."""


@dataclass(frozen=True)
class Backbone:
    """A loaded checkpoint. name: what was loaded; stands_for: the published one it stands in for (or the same).

    published: the weights are those of the paper's checkpoint: they came from its place on the hub, or are the bytes
    that conf/backbone/ pins. sha256: of the weight file, "random" without one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    stands_for: str
    published: bool
    sha256: str


def stand_in(backbone: BackboneConfig, scale: ScaleConfig) -> Path | None:
    """The folder of the shipped backbone that stands in at this scale; None where the published one is used."""
    if not scale.backbones:
        return None
    if backbone.model_type not in scale.backbones:
        raise BackboneError(
            f"scale={scale.name} has no backbone for model_type={backbone.model_type!r} "
            f"(known: {', '.join(scale.backbones)}); change conf/scale/{scale.name}.yaml or use scale=paper"
        )
    return MICRO_BACKBONES / scale.backbones[backbone.model_type]


def load_backbone(
    backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None, device: torch.device, seed: int
) -> Backbone:
    """The frozen model in eval mode on `device`, with its tokenizer. `seed` draws the weights of pretrained=false."""
    stands_in = stand_in(backbone, scale)
    folder = stands_in or _published_folder(backbone.name, backbone.hub_id, backbone.revision, backbone_dir)
    fields = (backbone.model_type, backbone.pooler, backbone.pretrained, backbone.dtype)
    model, tokenizer = _load(str(folder), *fields, str(device), None if backbone.pretrained else seed)
    sha256 = weights_digest(folder) if backbone.pretrained else "random"
    if stands_in:
        return Backbone(model, tokenizer, stands_in.name, backbone.name, False, sha256)
    published = backbone_dir is None or sha256 == backbone.weights_sha256
    return Backbone(model, tokenizer, backbone.name, backbone.name, published and backbone.pretrained, sha256)


def weights_of(backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None) -> str | None:
    """SHA-256 of the published weights a run starts from, for its identity; fetches them where they are not there yet.

    None where a shipped backbone stands in (it has an identity of its own), "random" for pretrained=false.
    """
    if stand_in(backbone, scale):
        return None
    if not backbone.pretrained:
        return "random"
    return weights_digest(_published_folder(backbone.name, backbone.hub_id, backbone.revision, backbone_dir))


@functools.lru_cache(maxsize=8)  # gigabytes, read once per process
def weights_digest(folder: Path) -> str:
    """SHA-256 of the folder's safetensors files, in order of name."""
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise BackboneError(f"{folder} holds no *.safetensors; other weight formats are not read (convert them once)")
    return _digest(files)


def shipped_digest(folder: Path) -> str:
    """SHA-256 of all that a run reads of a shipped backbone: weights, configuration and tokenizer."""
    return _digest(sorted(path for path in folder.iterdir() if path.name != "pretraining.json"))


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest() if files else ""


@functools.lru_cache(maxsize=8)
def _published_folder(name: str, hub_id: str, revision: str, backbone_dir: str | None) -> Path:
    """Where a checkpoint lies on this machine; downloaded, if it is neither in backbone_dir nor in the hub's cache."""
    if backbone_dir is None:
        try:
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_FILES))
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors, those about names ValueErrors
            raise BackboneError(
                f"cannot load the backbone {hub_id!r} from the hub (offline? set backbone_dir=... to a local copy): "
                f"{str(error).splitlines()[0]}"
            ) from error
    root = Path(backbone_dir).expanduser()
    for folder in (root, root / hub_id):
        if (folder / "config.json").is_file():
            return folder
    raise BackboneError(
        f"backbone_dir={backbone_dir} holds no checkpoint of {name}: expected config.json there or in "
        f"{hub_id}/ below it; change backbone_dir, or leave it out to load from the hub"
    )


@functools.lru_cache(maxsize=4)
def _load(
    folder: str, model_type: str, pooler: bool, pretrained: bool, dtype: str, device: str, seed: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kwargs: dict[str, Any] = {
        "attn_implementation": "sdpa",
        "dtype": getattr(torch, dtype),
        "add_pooling_layer": pooler,
    }
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != model_type:
            raise BackboneError(f"{folder} is a {config.model_type!r}, expected {model_type!r}; change backbone=...")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if pretrained:
            with _quiet():
                model, found = AutoModel.from_pretrained(
                    folder, use_safetensors=True, output_loading_info=True, **kwargs
                )
            if found["missing_keys"]:
                raise BackboneError(
                    f"the checkpoint {folder!r} lacks {len(found['missing_keys'])} tensors of the backbone, "
                    f"{sorted(found['missing_keys'])[0]} first; expected all of them (backbone.pooler says whether the "
                    "pooler is one)"
                )
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed or 0)
                model = AutoModel.from_config(config, **kwargs)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"cannot load a backbone from {folder}: {str(error).splitlines()[0]}") from error
    return model.to(device).eval().requires_grad_(False), tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report on pretraining heads that are left unused; what is missing is an error anyway."""
    verbosity = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def describe(backbone: Backbone) -> dict[str, Any]:
    """What the record says about the backbone."""
    return {
        f.name: getattr(backbone, f.name) for f in dataclasses.fields(backbone) if f.name not in ("model", "tokenizer")
    }
