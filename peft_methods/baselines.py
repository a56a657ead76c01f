"""Baselines: full fine-tuning, and the head alone.

Full is one of the declared exceptions to the rule that the backbone is never touched: its parameters train in place,
a copy is kept, and detaching restores it bit for bit. It therefore never shares a pack.
"""

from dataclasses import dataclass

from torch import nn

from peft_methods.sites import Site, Sites


@dataclass(frozen=True)
class Full:
    """Every parameter of the backbone trains, and the head. Added: none."""

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {}

    def trained_in_place(self, sites: Sites) -> list[str]:
        """Names of the backbone parameters that train."""
        return [name for name, _ in sites.backbone.named_parameters()]


@dataclass(frozen=True)
class HeadOnly:
    """Nothing but the head trains: the control that says what the frozen features give away."""

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {}
