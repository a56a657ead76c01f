"""The attention function of backbones with runs attached: the stock SDPA, and where it cannot do what a run needs,
its equation. A second one reads what the frozen model's attentions are given.

It is transformers' own way to put another attention under a model (`AttentionInterface`), so no cache class is
involved: a prefix stands before the keys and values of every call, cached or not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peft_methods.dropout import DropoutStream
from peft_methods.protocols import defines

ATTENTION = "peft_methods"
READING = "peft_methods_reading"


@dataclass
class AttentionPlace:
    """One attention module of a pack.

    name: its path, which names its dropout masks. owners: per run, the module that changes its keys and values, or
    None; `plain_queries` of an owner says whose queries do not see the change. each_run: sends every run's rows
    through a function of the run's number. tokens: whose tokens query and keys are. relative: T5's self-attention that
    computes the stack's position bias; None elsewhere. paddings: (B,) how far padding moves a row's first query to the
    right.
    """

    name: str
    owners: Sequence[Any]
    streams: Sequence[DropoutStream]
    each_run: Callable[[Sequence[Tensor], Callable[..., Tensor]], Tensor]
    tokens: tuple[str, str]
    relative: Any
    paddings: Callable[[], Tensor]


# Attention module -> its place. Weak on both sides, or a pack that is dropped without `detach` would keep its backbone
# in memory for ever.
PLACES: "WeakKeyDictionary[nn.Module, ReferenceType[AttentionPlace]]" = WeakKeyDictionary()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """query, key, value: (B, heads, T, d); attention_mask: None or boolean (B, 1, T, T); position_bias: T5's
    (1, heads, T, T), added to the scores. Gives (B, T, heads, d).
    """
    reference = PLACES.get(module)
    place = None if reference is None else reference()
    if place is None and dropout > 0.0:
        raise RuntimeError("the runs attached to this backbone are gone, its own dropout is off: detach them first")
    if place is None or (dropout == 0.0 and not any(owner is not None for owner in place.owners)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, 0.0, scaling, position_bias=position_bias, **kwargs
        )
    if attention_mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        attention_mask = _causal(query.shape[2], key.shape[2], query.device).expand(len(query), -1, -1, -1)

    def of_run(k: int, q: Tensor, keys: Tensor, values: Tensor, padding: Tensor, *masks: Tensor) -> Tensor:
        mask, owner = masks[0] if masks else None, place.owners[k]
        if owner is None:
            return attend(k, q, keys, values, padding, mask, "")
        changed_keys, changed_values = (changed.to(q.dtype) for changed in owner(keys, values))
        attended = attend(k, q, changed_keys, changed_values, padding, mask, "")
        plain = owner.plain_queries(len(q), q.shape[2]) if defines(owner, "plain_queries") else None
        if plain is None:
            return attended
        return torch.where(plain[:, :, None, None], attend(k, q, keys, values, padding, mask, ".plain"), attended)

    def attend(
        k: int, q: Tensor, keys: Tensor, values: Tensor, padding: Tensor, mask: Tensor | None, which: str
    ) -> Tensor:
        prefix, bias = keys.shape[2] - key.shape[2], position_bias
        mask = None if mask is None else F.pad(mask, (prefix, 0), value=True)
        if bias is not None and prefix:
            before = _prefix_bias(place, bias, q.shape[2], key.shape[2], prefix, padding)
            bias = torch.cat([before, bias.expand(len(before), -1, -1, -1)], dim=3)
        rate = place.streams[k].of_backbone(dropout)
        if rate == 0.0:
            return sdpa_attention_forward(
                module, q, keys, values, mask, 0.0, scaling, is_causal=False, position_bias=bias
            )[0]
        if q.shape[1] != keys.shape[1]:  # grouped heads
            keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (keys, values))
        scores = q @ keys.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
        tokens = {2: place.tokens[0], 3: place.tokens[1]}
        weights = place.streams[k].dropout(weights, rate, f"{place.name}.weights{which}", tokens)
        return (weights @ values).transpose(1, 2).contiguous()

    masks = [] if attention_mask is None else [attention_mask.expand(len(query), -1, -1, -1)]
    paddings = place.paddings().repeat_interleave(len(query) // len(place.paddings()), dim=0)
    return place.each_run([query, key, value, paddings, *masks], of_run), None


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """(1, 1, queries, keys): query i, the last but (queries - 1 - i), sees the keys up to its own."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]


def _prefix_bias(
    place: AttentionPlace, bias: Tensor, queries: int, text: int, prefix: int, padding: Tensor
) -> Tensor:  # fmt: skip
    """T5's relative position bias between the queries and a prefix, which lies just before the text's first token.

    (B, heads, queries, prefix); zero in cross-attentions, as T5 has it for all of their keys.
    """
    if place.relative is None:
        return bias.new_zeros(len(padding), bias.shape[1], queries, prefix)
    before = prefix + text - queries  # the prefix and what the cache holds
    of_all = place.relative.compute_bias(queries, prefix + text, bias.device, before)[..., :prefix]
    places = (torch.arange(queries, device=bias.device) - padding[:, None]).clamp(min=0)  # (B, queries)
    return of_all[0][:, places].transpose(0, 1).to(bias.dtype)


# Attention module -> the keys and values of its latest call, while `keys_and_values` reads them.
READ: "WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]]" = WeakKeyDictionary()


def _reading_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    READ[module] = key, value
    return sdpa_attention_forward(module, query, key, value, *args, **kwargs)


@contextmanager
def keys_and_values(backbone: PreTrainedModel) -> Iterator["WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]]"]:
    """Attention module -> the keys and values (B, heads, T, d) that its attention is computed from in a call of the
    backbone made inside: after rotary positions, with as many heads as the keys have. No runs may be attached."""
    before = backbone.config._attn_implementation
    backbone.set_attn_implementation(READING)
    try:
        yield READ
    finally:
        READ.clear()
        backbone.set_attn_implementation(before)


for _name, _function in ((ATTENTION, _attention), (READING, _reading_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)
