"""Several methods at once, as one: MAM adapters are a prefix and parallel adapters (He et al. 2021, arXiv:2110.04366,
section 4.6).

Trained, added, stored: the sums of the parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from peft_methods.protocols import MethodOption, defines
from peft_methods.sites import Site, Sites


@dataclass(frozen=True)
class Composition:
    """The modules of every part; two at one site are refused. Published values: conf/method/mam.yaml."""

    result_version = 1
    parts: Sequence[Any]

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        if not self.parts:
            raise ValueError("parts is empty: name at least one method; change method.parts")
        modules: dict[Site, nn.Module] = {}
        for part in self.parts:
            if defines(part, "trained_in_place"):
                raise ValueError(f"{type(part).__name__} trains the backbone in place and is no part of a composition")
            if option := next((name for name in get_args(MethodOption) if defines(part, name)), None):
                raise ValueError(
                    f"{type(part).__name__} defines {option}, which a composition does not hand on: use it alone"
                )
            own = part.modules(sites)
            if both := [site.name for site in own if site in modules]:
                raise ValueError(f"two parts at {both[0]}: a site takes one module of a run; change method.parts")
            modules |= own
        return modules
