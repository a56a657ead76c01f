"""The model's input of a pack: its runs' batches stacked, lengthened where a run puts rows of its own into it.

Mask, positions and lengths are computed here, outside the embedding: a prompt of P rows makes P places in the ids (of
the padding token), the mask and the positions, and at the model's input the run's own rows take those places.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.sites import Sites

Batch = Mapping[str, Tensor]
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")


@dataclass
class Stacked:
    """What a call of the backbone needs, and how to tell the runs apart in it.

    inputs: keyword arguments of the backbone. rows: each run's rows. padding: see DropoutStream. inserted: per run
    (B_k, T) true where its own rows belong, T the pack's width, or None. kept: per run (B_k, T_k), where the tokens it
    gave lie now, or None where they lie first.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    rows: list[slice] = field(default_factory=list)
    padding: list[dict[str, int]] = field(default_factory=list)
    inserted: list[Tensor | None] = field(default_factory=list)
    kept: list[Tensor | None] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Rows of the whole pack."""
        return self.rows[-1].stop if self.rows else 0


def stack(
    sites: Sites, batches: Sequence[Batch | None], owners: Sequence[nn.Module | None], prefixes: Sequence[int],
    to_the_right: bool = False,
) -> Stacked:  # fmt: skip
    """Stack the runs' batches, padded to the widest on the right.

    owners: per run its module at the model's input, or None. prefixes: how many positions each run's keys and values
    take before the text. to_the_right: move every row's tokens to the right end, from where a decoder generates on.

    Raises ValueError where no batch is given, the batches differ in their keys, or a row is longer than the positions
    that the backbone has.
    """
    present = [(k, batch) for k, batch in enumerate(batches) if batch is not None]
    if not present:
        raise ValueError("every batch is None: nothing to run")
    keys = [key for key in present[0][1] if key in INPUTS]
    own: dict[int, dict[str, Tensor]] = {}
    result = Stacked(inserted=[None] * len(batches), kept=[None] * len(batches))
    for k, batch in present:
        # Without a mask a run would attend to the padding that its neighbors need.
        if "attention_mask" not in batch or {*keys} != {*INPUTS} & {*batch}:
            raise ValueError(
                f"the batch of run {k} has {sorted(batch)}: expected input_ids and attention_mask, and "
                f"token_type_ids and decoder_input_ids in every run's batch or in none"
            )
        if not batch["input_ids"].numel():
            raise ValueError(
                f"the batch of run {k} has input_ids of shape {tuple(batch['input_ids'].shape)}: no tokens"
            )
        own[k], result.inserted[k], result.kept[k] = _lengthened(sites, batch, owners[k], k)
        _check_length(sites, own[k]["input_ids"].shape[1] + prefixes[k] * sites.architecture.counts_prefix)
        if "decoder_input_ids" in own[k]:
            _check_length(sites, own[k]["decoder_input_ids"].shape[1])
    widths = {key: max(each[key].shape[1] for each in own.values()) for key in keys}
    start = 0
    for k in range(len(batches)):
        rows = len(own[k]["input_ids"]) if k in own else 0
        result.rows.append(slice(start, start + rows))
        start += rows
        result.padding.append(_padding(own[k], widths) if k in own else {})
        if (inserted := result.inserted[k]) is not None:
            result.inserted[k] = F.pad(inserted, (0, widths["input_ids"] - inserted.shape[1]))
    fill = dict.fromkeys(("input_ids", "decoder_input_ids"), sites.backbone.config.pad_token_id or 0)
    result.inputs = {key: torch.cat([_widen(own[k][key], widths[key], fill.get(key, 0)) for k in own]) for key in keys}
    if to_the_right:
        _move_to_the_right(result)
    _add_positions(sites, result)
    return result


def _lengthened(
    sites: Sites, batch: Batch, owner: nn.Module | None, k: int
) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
    """A run's batch with places for its own rows; where they are (B, T), and where its tokens are now (B, T_k)."""
    tensors = {key: batch[key] for key in INPUTS if key in batch}
    if owner is None:
        return tensors, None, None
    ids, length = batch["input_ids"], int(owner.length)  # type: ignore[arg-type]
    boundary = batch["attention_mask"].long().argmax(1)  # the first token, behind padding on the left
    if owner.place == "boundary":
        if "boundary" not in batch:
            raise ValueError(
                f"the batch of run {k} has {sorted(batch)}: {type(owner).__name__} needs boundary, (B,) the "
                "position of the last token of the source, which predicts the target's first behind the infix"
            )
        first, boundary = boundary, batch["boundary"]
        last = batch["attention_mask"].shape[1] - 1 - batch["attention_mask"].long().flip(1).argmax(1)
        if bool(((boundary < first) | (boundary > last)).any()):
            raise ValueError(
                f"the batch of run {k} has boundary={boundary.tolist()}: expected a token of its row, first to last "
                f"{list(zip(first.tolist(), last.tolist(), strict=True))}; no text would lie behind the infix"
            )
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    kept = places + length * (places >= boundary[:, None])
    inserted = torch.ones(len(ids), ids.shape[1] + length, dtype=torch.bool, device=ids.device)
    inserted.scatter_(1, kept, False)
    fill = {"input_ids": sites.backbone.config.pad_token_id or 0, "attention_mask": 1}
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if key in tensors:
            longer = tensors[key].new_full(inserted.shape, fill.get(key, 0))
            tensors[key] = longer.scatter(1, kept, tensors[key])
    return tensors, inserted, kept


def _check_length(sites: Sites, length: int) -> None:
    limit = sites.architecture.position_limit
    if limit is not None and length > (most := limit(sites.backbone.config)):
        raise ValueError(
            f"{length} positions, prompt or prefix included: {sites.model_type} has {most}; shorten the text "
            "(trainer.max_length) or the prompt (method.length)"
        )


def _padding(own: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, int]:
    tokens = {"input": "input_ids", "target": "decoder_input_ids"}
    return {whose: widths[key] - own[key].shape[1] for whose, key in tokens.items() if key in own}


def _move_to_the_right(stacked: Stacked) -> None:
    order = stacked.inputs["attention_mask"].argsort(dim=1, stable=True)
    stacked.inputs = {key: value.gather(1, order) for key, value in stacked.inputs.items()}
    for k, inserted in enumerate(stacked.inserted):
        if inserted is not None:
            stacked.inserted[k] = inserted.gather(1, order[stacked.rows[k]])


def _add_positions(sites: Sites, stacked: Stacked) -> None:
    """Positions follow from the mask alone, so that padding on the left shifts nothing."""
    kind, mask = sites.architecture.positions, stacked.inputs["attention_mask"].long()
    if kind in ("ids", "hook"):
        stacked.inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    elif kind == "after_padding":
        stacked.inputs["position_ids"] = mask.cumsum(1) * mask + sites.backbone.config.pad_token_id


def _widen(x: Tensor, width: int, value: int) -> Tensor:
    return x if x.shape[1] == width else F.pad(x, (0, width - x.shape[1]), value=value)
