"""What of a backbone can be refused before its weights are there."""

import functools

from transformers import CONFIG_MAPPING, AutoConfig

from peft_methods.architectures import ARCHITECTURES

from ..config.kinds import kind_of
from ..config.schema import BackboneConfig


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
