"""What one run trains: its modules by site, its head, and (full fine-tuning) backbone parameters in place."""

from typing import Any

from torch import Tensor, nn

from peft_methods.protocols import Method, ParameterGroup, defines
from peft_methods.sites import Site


class RunModules(nn.Module):
    """The modules and parameters of one run, under the names that checkpoints have."""

    def __init__(
        self, method: Method, modules: dict[Site, nn.Module], head: nn.Module | None, in_place: dict[str, nn.Parameter]
    ):
        super().__init__()
        self.method = method
        # ModuleDict forbids dots in keys; `by_site` and `trained` give the dotted names back.
        self.sites = nn.ModuleDict({site.name.replace(".", "/"): module for site, module in modules.items()})
        self.head = head
        self.in_place = in_place

    @property
    def by_site(self) -> dict[str, nn.Module]:
        """Name of a site -> the module there."""
        return {key.replace("/", "."): module for key, module in self.sites.items()}

    def at(self, name: str) -> Any:
        """The module at a site, or None."""
        return self.by_site.get(name)

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter: `sites.<site>.<name>`, `head.<name>`, `backbone.<name>`."""
        named = {name.replace("/", "."): p for name, p in self.named_parameters()}
        return named | {f"backbone.{name}": p for name, p in self.in_place.items()}

    def stored(self) -> dict[str, Tensor]:
        """Name -> tensor of what one task's checkpoint holds: `trained`, with every MLP replaced by what it gives."""
        if not any(defines(module, "collapsed") for module in self.sites.values()):
            return dict(self.trained())
        tensors: dict[str, Tensor] = {}
        first_site: dict[nn.Module, str] = {}
        for name, module in self.by_site.items():
            first_site.setdefault(module, name)
        for module, name in first_site.items():  # a module shared by several sites is stored once, at the first
            stored = module.collapsed() if defines(module, "collapsed") else dict(module.named_parameters())
            tensors |= {f"sites.{name}.{key}": tensor for key, tensor in stored.items()}
        return tensors | {name: p for name, p in self.trained().items() if not name.startswith("sites.")}

    def collapse(self) -> None:
        """Forget the MLPs of reparameterized modules: what they give is trained from now on."""
        for module in self.sites.values():
            if defines(module, "collapse"):
                module.collapse()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything trained, split by learning rate: first what has the run's own, then what the method sets apart.

        Raises ValueError where the method names a parameter twice, or one that does not train.
        """
        trained, method = self.trained(), self.method
        apart = method.parameter_groups(trained) if defines(method, "parameter_groups") else ()
        names = [name for group in apart for name in group.parameters]
        if wrong := [name for name in names if name not in trained or names.count(name) > 1]:
            raise ValueError(
                f"{type(method).__name__}.parameter_groups gives {wrong[0]!r} {names.count(wrong[0])} times: expected "
                "parameters that train, each once"
            )
        return [ParameterGroup({n: p for n, p in trained.items() if n not in names}), *apart]

    def extra_loss(self) -> Tensor | None:
        """() what the method adds to the mean loss of an optimizer step; None where it adds nothing."""
        return self.method.extra_loss(self.by_site) if defines(self.method, "extra_loss") else None

    def after_step(self, step: int, total_steps: int) -> None:
        """Tell the method that optimizer step `step` of 1 to `total_steps` is made; the gradients are still there."""
        if defines(self.method, "after_step"):
            self.method.after_step(self.by_site, step, total_steps)
