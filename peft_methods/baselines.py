"""Baselines: full fine-tuning, the last layers alone, and the head alone.

Full and FullTop are the declared exceptions to the rule that the backbone is never touched: parameters of it
train in place, a copy is kept, and detaching restores it bit for bit. They therefore never share a pack.
"""

from dataclasses import dataclass

from torch import nn

from peft_methods.sites import Site, Sites


@dataclass(frozen=True)
class Full:
    """Every parameter of the backbone trains, and the head. Added: none."""

    result_version = 1

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {}

    def trained_in_place(self, sites: Sites) -> list[str]:
        """Names of the backbone parameters that train."""
        return [name for name, _ in sites.backbone.named_parameters()]


@dataclass(frozen=True)
class FullTop:
    """The parameters of the last `layers` Transformer layers train, the LayerNorm after the last one where the
    architecture has it (GPT-2's ln_f: option 22 of their code, 25.19M), and the head (FT-top2 of Li & Liang 2021).

    Added: none.
    """

    result_version = 2  # 1: without that LayerNorm
    layers: int

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {}

    def trained_in_place(self, sites: Sites) -> list[str]:
        """Names of the backbone parameters that train."""
        if not 1 <= self.layers <= sites.num_layers:
            raise ValueError(
                f"layers={self.layers}: expected 1 to {sites.num_layers}, the backbone has {sites.num_layers}; "
                "change method.layers"
            )
        paths = tuple(f"{path}." for path in sites.top_paths(self.layers))
        return [name for name, _ in sites.backbone.named_parameters() if name.startswith(paths)]


@dataclass(frozen=True)
class HeadOnly:
    """Nothing but the head trains: the control that says what the frozen features give away."""

    result_version = 1

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {}
