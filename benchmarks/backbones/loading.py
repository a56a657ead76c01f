"""From a backbone's description to a frozen model and its tokenizer, loaded once per process.

Where it lies: files.py. Weights are read from safetensors, remote code is never run.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from ..config.kinds import kind_of
from ..config.schema import BackboneConfig, ScaleConfig
from .location import BackboneError, folder_of, stand_in, weights_digest


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


def load_backbone(
    backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None, device: torch.device, seed: int
) -> Backbone:
    """The frozen model in eval mode on `device`, with its tokenizer. `seed` draws the weights of pretrained=false."""
    stands_in = stand_in(backbone, scale)
    folder = folder_of(backbone, scale, backbone_dir)
    fields = (backbone.model_type, backbone.pooler, backbone.dtype)
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


@functools.lru_cache(maxsize=4)
def _load(
    folder: str, model_type: str, pooler: bool, dtype: str, device: str, seed: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """seed: of random weights in place of the checkpoint's."""
    kwargs: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != model_type:
            raise BackboneError(f"{folder} is a {config.model_type!r}, expected {model_type!r}; change backbone=...")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if seed is None:
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
                torch.manual_seed(seed)
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
    model = kind_of(config.model_type).model
    return AutoModel if model is None else getattr(transformers, model)


def _pooler(config: PreTrainedConfig, pooler: bool) -> dict[str, bool]:
    return {"add_pooling_layer": pooler} if kind_of(config.model_type).pooler else {}


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
