"""What a method provides, and what a method or a module may define beside it. All of `MethodOptions` and
`ModuleOptions` is optional: what is left out counts as each comment says. `defines` is the one look-up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeGuard, overload

from torch import Tensor, nn

from peft_methods.sites import FrozenMap, Site, Sites


class Method(Protocol):
    """What a method file provides: the modules it wants, by site, and its result version."""

    @property
    def result_version(self) -> int:
        """A class attribute, part of every run's identity: raised when the method's results change, so that its runs
        are made again."""

    def modules(self, sites: Sites) -> dict[Site, nn.Module]: ...


@dataclass(frozen=True)
class ParameterGroup:
    """Trained parameters, by their names in `RunModules.trained`, and what their learning rate is multiplied by."""

    parameters: Mapping[str, nn.Parameter]
    rate: float = 1.0


class MethodOptions(Protocol):
    """Functions that a method may define. modules: the run's, by the names of their sites."""

    def trained_in_place(self, sites: Sites) -> list[str]:
        """Names of backbone parameters that train themselves (baselines.py). Without it: none."""

    def parameter_groups(self, trained: Mapping[str, nn.Parameter]) -> Sequence[ParameterGroup]:
        """The trained parameters that have a learning rate of their own. Without it: none."""

    def extra_loss(self, modules: Mapping[str, nn.Module]) -> Tensor:
        """() what is added to the mean loss of an optimizer step. Without it: nothing."""

    def after_step(self, modules: Mapping[str, nn.Module], step: int, total_steps: int) -> None:
        """Called after optimizer step `step` of 1 to `total_steps`, with that step's gradients still there. What it
        keeps from step to step has to be parameters: nothing else is in a checkpoint. Without it: nothing happens."""


class ModuleOptions(Protocol):
    """Attributes that a module may define, beside the forward of its site's kind (sites.py)."""

    # Its parameters stand for parameters of the backbone: trained, not added. Without it: they are new.
    stands_for_existing: bool
    # At the model's input or an attention, and required there: see the kinds of sites.
    length: int
    place: Literal["front", "boundary"]
    # Of a head: it reads the backbone's pooled vector, which has to be there. Without it: it does not.
    needs_pooled: bool

    # Of a projection: its `FrozenMap` is the last argument of `forward` and `delta_weight`. Without it: not given.
    takes_map: bool

    def delta_weight(self, *frozen: FrozenMap) -> Tensor:
        """(out, in): what merging adds to a projection's frozen weight. Without it: the module cannot merge."""

    def collapsed(self) -> dict[str, Tensor]:
        """What is stored instead of the module's parameters. Without it: these."""

    def collapse(self) -> None:
        """Replace the parameters by what is stored, as loading it does. Needed beside `collapsed`."""

    def plain_queries(self, rows: int, queries: int) -> Tensor | None:
        """Of an attention, (B, queries): whose queries see the plain keys and values; None where no query does.
        Without it: none."""


MethodOption = Literal["trained_in_place", "parameter_groups", "extra_loss", "after_step"]
ModuleOption = Literal[
    "stands_for_existing",
    "length",
    "place",
    "needs_pooled",
    "takes_map",
    "delta_weight",
    "collapsed",
    "collapse",
    "plain_queries",
]


@overload
def defines(owner: object, option: MethodOption) -> TypeGuard[MethodOptions]: ...
@overload
def defines(owner: object, option: ModuleOption) -> TypeGuard[ModuleOptions]: ...
def defines(owner: object, option: str) -> bool:
    """Whether a method, a module or a head defines an option."""
    return hasattr(owner, option)


def map_taken(module: object, sites: Sites, site: Site) -> tuple[FrozenMap, ...]:
    """What a module at a projection is given last: the frozen map, where it takes it. Views made anew for each call,
    so that they are right wherever the backbone has moved; no gradient flows into them."""
    if not (defines(module, "takes_map") and module.takes_map):
        return ()
    return (FrozenMap(sites.weight(site), sites.bias(site)),)
