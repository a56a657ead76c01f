"""Trainable parameters, as the papers count them.

    method     everything the method trains, head apart      head    the task layer
    added      of these, parameters that did not exist before (BitFit and trained LayerNorms: none)
    stored     what one task's checkpoint holds: method + head, of a reparameterized prefix the keys and values alone
    merged     of `stored`, new parameters that are still beside the backbone once low-rank updates are merged; no head
    backbone   the frozen model without head                 layers  its Transformer layers alone

Papers print `added` (Houlsby), `method` (BitFit) or either (LoRA): results/reference/param_counts.csv names each row's
convention. Counts need shapes only, so a backbone on the meta device will do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peft_methods.attached import Attached
from peft_methods.protocols import defines


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of one run; all integers, heads and LayerNorm offsets as the module docstring says."""

    method: int
    head: int
    added: int
    stored: int
    merged: int
    backbone: int
    layers: int


def count_parameters(attached: Attached, k: int = 0) -> ParameterCounts:
    """The counts of run k."""
    run = attached.run(k)
    head = 0 if run.head is None else sum(p.numel() for p in run.head.parameters())
    in_place = sum(p.numel() for p in run.in_place.values())
    at_sites = sum(p.numel() for p in run.sites.parameters())
    existing = _numel(m for m in run.sites.modules() if defines(m, "stands_for_existing") and m.stands_for_existing)
    method = at_sites + in_place
    stored = sum(tensor.numel() for tensor in run.stored().values())
    mergeable = _numel(m for m in run.sites.values() if defines(m, "delta_weight"))
    return ParameterCounts(
        method=method,
        head=head,
        added=at_sites - existing,
        stored=stored,
        merged=stored - head - in_place - existing - mergeable,
        backbone=sum(p.numel() for p in attached.backbone.parameters()),
        layers=attached.sites.layer_parameters(),
    )


def _numel(modules: Iterable[Any]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
