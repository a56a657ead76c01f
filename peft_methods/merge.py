"""Merging: what a run's modules add to the frozen weights, added to them, and taken back bit for bit."""

import torch
from torch import Tensor

from peft_methods.protocols import defines, map_taken
from peft_methods.run_modules import RunModules
from peft_methods.sites import Sites


class Merged:
    """The updates that lie in a backbone's weights.

    at: names of the sites whose modules are merged; their hooks leave the output alone.
    """

    def __init__(self, sites: Sites):
        self.at: set[str] = set()
        self._sites = sites
        self._originals: dict[str, Tensor] = {}  # path -> the whole weight: W + D - D is not W in floating point

    @torch.no_grad()
    def add(self, run: RunModules) -> None:
        """Add every update that `run` has; raises ValueError where there is none, or they are added already."""
        mergeable = {name: module for name, module in run.by_site.items() if defines(module, "delta_weight")}
        if not mergeable or self.at:
            raise ValueError(
                "nothing to merge: the weights are merged already"
                if self.at
                else f"{type(run.method).__name__} has no module that merges; only low-rank updates do"
            )
        for name, module in mergeable.items():
            site = self._sites.by_name[name]
            self._originals.setdefault(site.path, self._whole(site.path).clone())
            self._sites.weight(site).add_(module.delta_weight(*map_taken(module, self._sites, site)))
            self.at.add(name)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen weights back as they were."""
        for path, original in self._originals.items():
            self._whole(path).copy_(original)
        self._originals.clear()
        self.at.clear()

    def _whole(self, path: str) -> Tensor:
        """The weight of a frozen map, in its own layout and with all that is fused into it."""
        return self._sites.base.get_parameter(f"{path}.weight")
