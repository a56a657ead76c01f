"""From a backbone's description to a frozen model and its tokenizer, loaded once per process.

Where it lies: location.py. Weights are read from safetensors, pickled ones once converted; remote code is never run.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
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
from .checks import check_shape, check_tokenizer
from .location import BackboneError, folder_of, stand_in, weights_digest, weights_folder
from .origin import Origin, origin_of
from .weight_files import weight_files


@dataclass(frozen=True)
class Backbone:
    """A loaded checkpoint. name: what was loaded; stands_for: the published one it stands in for (or the same).

    origin: whether the weights are those of the paper's checkpoint, and of which commit. sha256: `weights_digest`,
    "random" without weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    stands_for: str
    origin: Origin
    sha256: str


def load_backbone(
    backbone: BackboneConfig, scale: ScaleConfig, backbone_dir: str | None, device: torch.device, seed: int
) -> Backbone:
    """The frozen model in eval mode on `device`, with its tokenizer. `seed` draws the weights of pretrained=false."""
    stands_in = stand_in(backbone, scale)
    folder = folder_of(backbone, scale, backbone_dir)
    if not stands_in:
        check_shape(backbone, _read(folder)[0], folder)
        origin = origin_of(backbone, folder, backbone_dir)
    fields = (backbone.model_type, backbone.pooler, backbone.dtype)
    model, tokenizer = _load(str(folder), *fields, str(device), None if backbone.pretrained else seed)
    sha256 = weights_digest(folder) if backbone.pretrained else "random"
    if stands_in:
        return Backbone(model, tokenizer, stands_in.name, backbone.name, Origin(False), sha256)
    return Backbone(model, tokenizer, backbone.name, backbone.name, origin, sha256)


@functools.lru_cache(maxsize=8)
def empty_backbone(folder: Path, pooler: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The shape of a checkpoint without its weights, on the meta device, and its tokenizer."""
    config, tokenizer = _read(folder)
    with torch.device("meta"), no_init_weights(), _one_sentence(folder):
        return empty_model(config, pooler, dtype=torch.float32), tokenizer  # not the file's, which may not train


def _read(folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """What stands in a checkpoint beside its weights, if the two belong together."""
    with _one_sentence(folder):
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    check_tokenizer(config, tokenizer, folder)
    return config, tokenizer


@contextlib.contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Whatever a damaged or unknown file makes the libraries raise, as a BackboneError."""
    try:
        yield
    except (BackboneError, MemoryError):
        raise
    except Exception as error:
        cause = (str(error).strip().splitlines() or ["no message"])[0]
        raise BackboneError(
            f"cannot load a backbone from {folder} ({type(error).__name__}: {cause}); expected config.json, "
            "weights and the tokenizer's files of one checkpoint"
        ) from error


@functools.lru_cache(maxsize=4)
def _load(
    folder: str, model_type: str, pooler: bool, dtype: str, device: str, seed: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """seed: of random weights in place of the checkpoint's."""
    kwargs: dict[str, Any] = {"attn_implementation": kind_of(model_type).attention, "dtype": getattr(torch, dtype)}
    config, tokenizer = _read(Path(folder))
    if config.model_type != model_type:
        raise BackboneError(f"{folder} is a {config.model_type!r}, expected {model_type!r}; change backbone=...")
    if seed is None:
        model = _with_weights(Path(folder), config, pooler, kwargs)
    else:
        with torch.random.fork_rng(), _one_sentence(Path(folder)):
            torch.manual_seed(seed)
            model = empty_model(config, pooler, **kwargs)
    _forget_generation_settings(model)
    return model.to(device).eval().requires_grad_(False), tokenizer


def _with_weights(folder: Path, config: PreTrainedConfig, pooler: bool, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a checkpoint. Raises BackboneError unless every tensor of the one has its place in the other."""
    with _quiet(), _one_sentence(folder):
        weights = weights_folder(folder)
        model, found = _class_of(config).from_pretrained(
            weights,
            config=config,  # which may lie elsewhere, as may generation settings: those are forgotten anyway
            generation_config=GenerationConfig(),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # an error below, which says which
            **_pooler(config, pooler),
            **kwargs,
        )
    for name, stored, built in sorted(found["mismatched_keys"]):
        raise BackboneError(
            f"{folder}: {name} is {tuple(stored)} in the checkpoint and {tuple(built)} by its config.json; expected "
            "the config.json that it was saved with"
        )
    missing = {*found["missing_keys"]}
    if _has_output_layer(config) and "lm_head.weight" not in _names(weights):
        missing.add("lm_head.weight")
    if missing:
        raise BackboneError(
            f"the checkpoint {str(folder)!r} lacks {len(missing)} tensors of the backbone, {min(missing)} first; "
            "expected all of them (backbone.pooler says whether the pooler is one)"
        )
    if left := [name for name in sorted(found["unexpected_keys"]) if _of_backbone(name, model, pooler)]:
        raise BackboneError(
            f"the checkpoint {str(folder)!r} has {len(left)} tensors of the backbone that its config.json leaves out, "
            f"{left[0]} first; expected the config.json that it was saved with, and an architecture that transformers "
            f"{transformers.__version__} reads"
        )
    untie_output_layer(model, model.get_input_embeddings().weight)
    return model


def _names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            names |= {*tensors.keys()}
    return names


def _of_backbone(name: str, model: PreTrainedModel, pooler: bool) -> bool:
    """Whether a tensor that no module took belongs to the backbone: not to a head that is none of it, a pooler that is
    left out, or what old versions stored beside the weights."""
    prefix = f"{model.base_model_prefix}."
    inner = name.removeprefix(prefix)
    part = inner.partition(".")[0]
    if inner.endswith(("position_ids", "masked_bias")) or (part == "pooler" and not pooler):
        return False
    return name.startswith(prefix) or part in dict(model.base_model.named_children())


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


def untie_output_layer(model: PreTrainedModel, stored: Tensor | None = None) -> None:
    """Give a T5 1.1's lm_head a weight of its own and keep it from being tied again; in place, nothing else changes.

    transformers 5 ties lm_head to the input embedding in every T5 it builds, whatever tie_word_embeddings says: it
    sets that to true and only takes "false" as "do not scale the decoder's outputs", by which T5 1.1 is known here. A
    checkpoint that holds two weights is loaded with both, but the next tie_weights() would tie them, as it does where
    they are equal. stored: the value of such a one; drawn without it.
    """
    if not _has_output_layer(model.config):
        return
    shared, head = model.get_input_embeddings().weight, cast(nn.Linear, model.lm_head)
    if head.weight is shared:
        head.weight = nn.Parameter(torch.empty_like(shared) if stored is None else stored.detach().clone())
        if stored is None:
            # From the width, as Mesh TensorFlow draws it: first logits of standard deviation 1. transformers' 1.0 gives
            # 8.
            nn.init.normal_(head.weight, std=model.config.d_model**-0.5)
    model.all_tied_weights_keys.pop("lm_head.weight", None)
    model.config.tie_word_embeddings = False


def _has_output_layer(config: PreTrainedConfig) -> bool:
    """T5 1.1, of which transformers would tie it."""
    return config.model_type == "t5" and not config.scale_decoder_outputs


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
    named = {"name": backbone.name, "stands_for": backbone.stands_for, "sha256": backbone.sha256}
    return named | dataclasses.asdict(backbone.origin)
