"""What an entry of the site table (architectures.py) says: the module paths of one `model_type`, stack by stack.

Paths of a layer are relative to it, the others to the base model (`backbone.base_model`: what lies below a
language-modelling head).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedConfig

# Whose tokens lie on a tensor's second axis: those of `input_ids`, or of `decoder_input_ids`.
Tokens = Literal["input", "target"]


@dataclass(frozen=True)
class Stack:
    """One stack of layers: the whole model, or the encoder or decoder of one.

    name: prefix of its sites, "" where there is one stack only. layers: path of the list of layers.
    projections: linear maps by role. fused: roles that are columns of one linear map: (path, which third, of how many).
    sublayers: modules whose output is the sub-layer output after its dropout, before the residual sum.
    sublayer_inputs: for each sub-layer the projection whose input is the sub-layer's.
    norms: by role. post_norm: they come after the residual sum (BERT), not before the sub-layer (GPT-2).
    attentions: modules that call the attention function. blocks: Adapter^L's site, the layer's own output, exists.
    functional_dropouts: (path, "input" or "output", configuration field) of dropouts that are no modules.
    """

    layers: str
    projections: Mapping[str, str]
    sublayers: Mapping[str, str]
    sublayer_inputs: Mapping[str, str]
    norms: Mapping[str, str]
    name: str = ""
    tokens: Tokens = "input"
    fused: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    attentions: Mapping[str, str] = field(default_factory=dict)
    post_norm: bool = True
    functional_dropouts: tuple[tuple[str, Literal["input", "output"], str], ...] = ()


@dataclass(frozen=True)
class Architecture:
    """Module paths of one `model_type`.

    inputs: the module that takes `input_ids` and embeds them, "" for the base model itself.
    positions: how it learns positions: "ids" as `position_ids` from 0, "after_padding" from pad_token_id + 1 with
    pad_token_id for padding, "hook" from a module of its own (`position_module`), "relative" not at all.
    counts_prefix: the text's positions start after a prefix of keys and values (Li & Liang's code).
    decoder_only: generates from `input_ids`. pooler: module that reads the first token.
    attention_dropout: configuration field of the rate at which attention weights are dropped.
    shared_dropouts: dropouts on tensors that all runs of a pack share, within each layer.
    no_packs: role -> why a pack of several runs cannot have a module there.
    """

    stacks: tuple[Stack, ...]
    positions: Literal["ids", "after_padding", "hook", "relative"]
    attention_dropout: str
    inputs: str = ""
    position_module: str = ""
    position_limit: Callable[[PreTrainedConfig], int] | None = None
    counts_prefix: bool = False
    decoder_only: bool = False
    outer_projections: Mapping[str, str] = field(default_factory=dict)
    outer_norms: Mapping[str, str] = field(default_factory=dict)
    outer_functional_dropouts: tuple[tuple[str, str], ...] = ()
    pooler: str = ""
    shared_dropouts: tuple[str, ...] = ()
    no_packs: Mapping[str, str] = field(default_factory=dict)
