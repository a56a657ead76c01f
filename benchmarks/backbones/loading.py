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
from typing import Any, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from ..config.schema import BackboneConfig, ScaleConfig

MICRO_BACKBONES = Path(__file__).resolve().parents[1] / "micro" / "backbones"
_FILES = ["model*.safetensors*", "*.json", "*.txt", "*.model"]  # of a checkpoint on the hub: weights, shapes, tokenizer

# Backbones that write text are loaded with their output layer; the others get a task's head on their features.
LANGUAGE_MODELS: dict[str, type[PreTrainedModel]] = {
    "gpt2": GPT2LMHeadModel,
    "t5": T5ForConditionalGeneration,
    "bart": BartForConditionalGeneration,
}
POOLERS = ("bert", "roberta")  # model types whose pooler may be built or left out


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
    name = scale.backbones.get(backbone.name) or scale.backbones.get(backbone.model_type)
    if name is None:
        raise BackboneError(
            f"scale={scale.name} has no backbone for model_type={backbone.model_type!r} "
            f"(known: {', '.join(scale.backbones)}); change conf/scale/{scale.name}.yaml or use scale=paper"
        )
    return MICRO_BACKBONES / name


def load_backbone(
    backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None, device: torch.device, seed: int
) -> Backbone:
    """The frozen model in eval mode on `device`, with its tokenizer. `seed` draws the weights of pretrained=false."""
    stands_in = stand_in(backbone, scale)
    folder = folder_of(backbone, scale, backbone_dir)
    fields = (backbone.model_type, backbone.pooler, backbone.pretrained, backbone.dtype)
    model, tokenizer = _load(str(folder), *fields, str(device), None if backbone.pretrained else seed)
    sha256 = weights_digest(folder) if backbone.pretrained else "random"
    if stands_in:
        return Backbone(model, tokenizer, stands_in.name, backbone.name, False, sha256)
    published = backbone_dir is None or sha256 == backbone.weights_sha256
    return Backbone(model, tokenizer, backbone.name, backbone.name, published and backbone.pretrained, sha256)


@functools.lru_cache(maxsize=8)
def empty_backbone(folder: Path, pooler: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shape of a checkpoint without its weights, on the meta device, and its tokenizer."""
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot read the backbone in {folder}: {str(error).splitlines()[0]}") from error
    with torch.device("meta"), no_init_weights():
        return empty_model(config, pooler), tokenizer


def folder_of(backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None) -> Path:
    """Where the checkpoint lies that a run is made on."""
    return stand_in(backbone, scale) or _published_folder(
        backbone.name, backbone.hub_id, backbone.revision, backbone_dir
    )


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
    files = sorted(path for path in folder.iterdir() if path.name != "pretraining.json")
    return _digest_of(tuple((path, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=32)
def _digest_of(files: tuple[tuple[Path, int], ...]) -> str:
    """Once per process; a file that was touched is read again."""
    return _digest([path for path, _ in files])


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
    kwargs: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != model_type:
            raise BackboneError(f"{folder} is a {config.model_type!r}, expected {model_type!r}; change backbone=...")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if pretrained:
            with _quiet():
                model, found = _class_of(config).from_pretrained(
                    folder, use_safetensors=True, output_loading_info=True, **_pooler(config, pooler), **kwargs
                )
            untie_output_layer(model)
            if found["missing_keys"]:
                raise BackboneError(
                    f"the checkpoint {folder!r} lacks {len(found['missing_keys'])} tensors of the backbone, "
                    f"{sorted(found['missing_keys'])[0]} first; expected all of them (backbone.pooler says whether the "
                    "pooler is one)"
                )
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed or 0)
                model = empty_model(config, pooler, **kwargs)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"cannot load a backbone from {folder}: {str(error).splitlines()[0]}") from error
    _forget_generation_settings(model)
    return model.to(device).eval().requires_grad_(False), tokenizer


def _forget_generation_settings(model: PreTrainedModel) -> None:
    """Leave nothing of a checkpoint's generation settings but its token ids: `decoding` says how to search, all of it.

    facebook/bart-large brings beams, n-gram blocking and a forced end along, which `generate` would follow.
    """
    if getattr(model, "generation_config", None) is not None:
        ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(model.config, name, None) for name in ids})


def empty_model(config: PreTrainedConfig, pooler: bool, **kwargs: Any) -> PreTrainedModel:
    """A model of this shape as a checkpoint of it is loaded, its weights as transformers draws them."""
    of = _class_of(config)
    make = of.from_config if of is AutoModel else of._from_config
    model = make(config, **_pooler(config, pooler), **kwargs)
    model.tie_weights()  # where no_init_weights() has left that out, too
    untie_output_layer(model)
    return model


def untie_output_layer(model: PreTrainedModel) -> None:
    """Give a T5 1.1's lm_head a weight of its own and keep it from being tied again; in place, nothing else changes.

    transformers 5 ties lm_head to the input embedding in every T5 it builds, whatever tie_word_embeddings says: it
    sets that to true and only takes "false" as "do not scale the decoder's outputs", by which T5 1.1 is known here. A
    checkpoint that holds two weights is loaded with both, but the next tie_weights() would tie them.
    """
    if model.config.model_type != "t5" or model.config.scale_decoder_outputs:
        return
    shared, head = model.get_input_embeddings().weight, cast(nn.Linear, model.lm_head)
    if head.weight is shared:
        head.weight = nn.Parameter(torch.empty_like(shared))
        # From the width, as Mesh TensorFlow draws it: first logits of standard deviation 1. transformers' 1.0 gives 8.
        nn.init.normal_(head.weight, std=model.config.d_model**-0.5)
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    model.config.tie_word_embeddings = False


def _class_of(config: PreTrainedConfig) -> Any:
    return LANGUAGE_MODELS.get(config.model_type, AutoModel)


def _pooler(config: PreTrainedConfig, pooler: bool) -> dict[str, bool]:
    return {"add_pooling_layer": pooler} if config.model_type in POOLERS else {}


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
