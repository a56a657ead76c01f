"""From a backbone's description to a frozen model and its tokenizer, loaded once per process.

Published checkpoints come from the hub or from `backbone_dir`; at scale=micro a shipped backbone of the same
model_type stands in. Weights are read from safetensors, remote code is never run.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from benchmarks.config import BackboneConfig, ScaleConfig

MICRO_BACKBONES = Path(__file__).resolve().parent / "micro" / "backbones"


class BackboneError(ValueError):
    """A checkpoint that cannot be found, read or used."""


@dataclass(frozen=True)
class Backbone:
    """A loaded checkpoint. name: what was loaded; stands_for: the published one it stands in for (or the same).

    published: the weights are those of the paper's checkpoint. sha256: of the weight file, "random" without one.
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
    folder = stand_in(backbone, scale)
    published = folder is None
    source = str(folder) if folder else _published_source(backbone, backbone_dir)
    fields = (backbone.model_type, backbone.revision, backbone.pooler, backbone.pretrained, backbone.dtype)
    model, tokenizer, sha256 = _load(source, *fields, str(device), None if backbone.pretrained else seed)
    if not published and model.config.model_type != backbone.model_type:
        raise BackboneError(f"{source} is a {model.config.model_type}, expected {backbone.model_type}")
    name = folder.name if folder else backbone.name
    return Backbone(model, tokenizer, name, backbone.name, published and backbone.pretrained, sha256)


def weights_digest(folder: Path) -> str:
    """SHA-256 of the folder's safetensors files, in order of name."""
    return _digest(sorted(folder.glob("*.safetensors")))


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


def _published_source(backbone: BackboneConfig, backbone_dir: str | None) -> str:
    if backbone_dir is None:
        return backbone.hub_id
    root = Path(backbone_dir).expanduser()
    for folder in (root, root / backbone.hub_id):
        if (folder / "config.json").is_file():
            return str(folder)
    raise BackboneError(
        f"backbone_dir={backbone_dir} holds no checkpoint of {backbone.name}: expected config.json there or in "
        f"{backbone.hub_id}/ below it; change backbone_dir, or leave it out to load from the hub"
    )


@functools.lru_cache(maxsize=4)
def _load(
    source: str,
    model_type: str,
    revision: str,
    pooler: bool,
    pretrained: bool,
    dtype: str,
    device: str,
    seed: int | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    kwargs: dict[str, Any] = {
        "attn_implementation": "sdpa",
        "dtype": getattr(torch, dtype),
        "add_pooling_layer": pooler,
    }
    local = os.path.isdir(source)
    hub: dict[str, Any] = {} if local else {"revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, **hub)
        if config.model_type != model_type:
            raise BackboneError(f"{source} is a {config.model_type!r}, expected {model_type!r}; change backbone=...")
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        if pretrained:
            with _quiet():
                model, found = AutoModel.from_pretrained(
                    source, use_safetensors=True, output_loading_info=True, **kwargs, **hub
                )
            if found["missing_keys"]:
                raise BackboneError(
                    f"the checkpoint {source!r} lacks {len(found['missing_keys'])} tensors of the backbone, "
                    f"{sorted(found['missing_keys'])[0]} first; expected all of them (backbone.pooler says whether the "
                    "pooler is one)"
                )
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed or 0)
                model = AutoModel.from_config(config, **kwargs)
    except OSError as error:
        where = "that folder" if local else "the hub (offline? set backbone_dir=... to a local copy)"
        raise BackboneError(
            f"cannot load the backbone {source!r} from {where}: {str(error).splitlines()[0]}"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    # By content, so that the hub's copy and a local folder of the same weights are one backbone.
    folder = Path(source) if local else Path(cached_file(source, "config.json", **hub)).parent
    sha256 = weights_digest(folder) if pretrained else "random"
    return model, tokenizer, sha256


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
