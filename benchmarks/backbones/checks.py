"""What of a backbone can be refused before its weights are there: its description, its shape, its tokenizer."""

import functools
from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from peft_methods.architectures import ARCHITECTURES

from ..config.kinds import kind_of
from ..config.schema import BackboneConfig
from .location import BackboneError


def check_architecture(backbone: BackboneConfig) -> None:
    """Raises ValueError for a key that the configuration class lacks: transformers would go on with its defaults."""
    if backbone.model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone.model_type={backbone.model_type!r}: transformers has no such model; methods attach to "
            f"{', '.join(ARCHITECTURES)}; change conf/backbone/{backbone.name}.yaml"
        )
    known = _known_keys(backbone.model_type)
    if unknown := [key for key in backbone.architecture if key not in known]:
        raise ValueError(
            f"backbone.architecture.{unknown[0]}: {backbone.model_type} has no such key; expected names of its "
            f"config.json ({', '.join(sorted(key for key in known if not key.startswith('_')))}); change "
            f"conf/backbone/{backbone.name}.yaml"
        )


@functools.cache
def _known_keys(model_type: str) -> set[str]:
    return AutoConfig.for_model(model_type).to_dict().keys() | kind_of(model_type).read_by_the_model


def check_shape(backbone: BackboneConfig, config: PreTrainedConfig, folder: Path) -> None:
    """Raises BackboneError where a checkpoint's config.json is not the shape that conf/backbone/ publishes.

    A checkpoint of another shape is another backbone, whatever it is called; backbone.other_shape=true takes it.
    """
    if backbone.other_shape or config.model_type != backbone.model_type:  # the loader says the latter
        return
    published = AutoConfig.for_model(backbone.model_type, **backbone.architecture)
    for key in backbone.architecture:
        found, expected = getattr(config, key, None), getattr(published, key, None)
        if found != expected:
            raise BackboneError(
                f"{folder} has {key}={found!r}, {backbone.name} {expected!r} (conf/backbone/{backbone.name}.yaml): "
                "name the backbone that it is, or set backbone.other_shape=true for one that only stands in for it"
            )


def check_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises BackboneError where the tokenizer cannot be that of the backbone, or lacks a token that runs need."""
    entries = tokenizer.get_vocab().values()
    # Published ones fill the embedding but for some rows; transformers makes one of special tokens alone where a
    # vocabulary is missing.
    if 2 * len(entries) < config.vocab_size:
        raise BackboneError(
            f"the tokenizer in {folder} has {len(entries)} entries, the backbone's embedding {config.vocab_size} rows: "
            "its vocabulary is missing or another one's; copy the tokenizer's files beside config.json"
        )
    if (last := max(entries)) >= config.vocab_size:
        raise BackboneError(
            f"the tokenizer in {folder} has an entry {last}, the backbone an embedding of {config.vocab_size} rows: "
            "expected the tokenizer that it was trained with; take added entries out"
        )
    kind = kind_of(config.model_type)
    name = "pad_token" if kind.model is None else "eos_token"
    if getattr(tokenizer, f"{name}_id") is None:
        raise BackboneError(
            f"the tokenizer in {folder} names no {name}, which batches of a {config.model_type} need: add it to its "
            "tokenizer_config.json"
        )
    if kind.model is not None and not kind.decoder_only and config.decoder_start_token_id is None:
        raise BackboneError(
            f"{folder}/config.json names no decoder_start_token_id, with which every output begins: add it"
        )
