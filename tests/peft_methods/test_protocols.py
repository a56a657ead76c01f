"""What methods and modules may define beside the least, by a small method that no file ships."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.attach import attach
from peft_methods.composition import Composition
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora, LowRank
from peft_methods.prefix import Prefix
from peft_methods.protocols import Method, ParameterGroup
from peft_methods.sites import FrozenMap, Site, Sites
from tests.conftest import ALL_ARCHITECTURES
from tests.peft_methods.test_contract import METHODS


class RowScale(nn.Module):
    """y <- diag(m) W x + b: it needs W and b, which are the backbone's."""

    takes_map = True

    def __init__(self, width: int):
        super().__init__()
        self.magnitude = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, y: Tensor, frozen: FrozenMap) -> Tensor:
        torch.testing.assert_close(F.linear(x, frozen.weight, frozen.bias), y)  # the map that gave y
        return F.linear(x, self.magnitude[:, None] * frozen.weight, frozen.bias)

    def delta_weight(self, frozen: FrozenMap) -> Tensor:
        return (self.magnitude[:, None] - 1) * frozen.weight


@dataclass(frozen=True)
class Scaled:
    result_version = 1

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return {site: RowScale(site.width) for site in sites.projections(("query", "value", "ffn_in"))}


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_a_module_at_a_projection_is_given_the_frozen_map(architecture, tiny_backbone, tiny_batch, randomize, snapshot):
    """Also after the backbone's tensors were replaced, as a move to a device does, and in merging."""
    backbone, batch = tiny_backbone(architecture), tiny_batch(architecture)
    attached = attach(backbone, [Scaled()])
    (start,) = attached([batch])
    attached.double()
    before = snapshot(backbone)
    torch.testing.assert_close(attached([batch])[0], start, check_dtype=False)
    randomize(attached.run(0))
    (moved,) = attached([batch])
    assert (moved - start).abs().max() > 0.1
    moved.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attached.run(0).trained().values())
    assert all(p.grad is None for p in backbone.parameters())
    attached.merge()
    torch.testing.assert_close(attached([batch])[0], moved)
    attached.unmerge()
    assert torch.equal(attached([batch])[0], moved)
    assert "magnitude" in next(iter(attached.run(0).trained()))
    assert len([*attached.run(0).parameters()]) == len(attached.run(0).sites)  # the map is no parameter of the run
    attached.detach()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_in_a_pack_only_those_are_given_the_map_that_take_it(architecture, tiny_backbone, tiny_batch, randomize):
    methods: list[Method] = [Scaled(), Lora(2, 4.0, 0.0, ("query", "value"), "normal_0.02")]
    batches = [tiny_batch(architecture, 2, 6, seed) for seed in (1, 2)]
    pack = attach(backbone := tiny_backbone(architecture, torch.float64), methods)
    for k in range(2):
        randomize(pack.run(k), seed=k)
    outputs = pack(batches)
    pack.detach()
    for k, method in enumerate(methods):
        alone = attach(backbone, [method])
        alone.run(0).load_state_dict(pack.run(k).state_dict())
        torch.testing.assert_close(alone([batches[k]])[0], outputs[k])
        alone.detach()


@dataclass(frozen=True)
class LoraPlus:
    """LoRA whose B trains `ratio` times as fast, whose A is drawn to orthogonal rows, and is zero in the end."""

    result_version = 1
    ratio: float

    def modules(self, sites: Sites) -> dict[Site, nn.Module]:
        return Lora(2, 4.0, 0.0, ("query", "value"), "normal_0.02").modules(sites)

    def parameter_groups(self, trained: Mapping[str, nn.Parameter]) -> list[ParameterGroup]:
        return [ParameterGroup({name: p for name, p in trained.items() if name.endswith(".B")}, self.ratio)]

    def extra_loss(self, modules: Mapping[str, nn.Module]) -> Tensor:
        grams = [module.A @ module.A.T for module in modules.values() if isinstance(module, LowRank)]
        return torch.stack([(gram - torch.eye(len(gram))).square().sum() for gram in grams]).sum()

    def after_step(self, modules: Mapping[str, nn.Module], step: int, total_steps: int) -> None:
        if step == total_steps:  # the gradients of the last step are still there
            for module in modules.values():
                assert isinstance(module, LowRank)
                assert module.B.grad is not None
                module.A.data.zero_()


def step(run: Any, outputs: Tensor, number: int, learning_rate: float = 0.1) -> None:
    """One of two steps of plain gradient descent, as a training loop makes it."""
    groups = [{"params": [*g.parameters.values()], "lr": learning_rate * g.rate} for g in run.parameter_groups()]
    optimizer = torch.optim.SGD(groups, lr=learning_rate)
    loss, extra = outputs.square().mean(), run.extra_loss()
    (loss if extra is None else loss + extra).backward()
    optimizer.step()
    run.after_step(number, 2)
    optimizer.zero_grad(set_to_none=True)


def test_a_method_may_set_rates_add_a_loss_and_be_told_of_steps(tiny_backbone, tiny_batch, snapshot):
    backbone, batch = tiny_backbone("bert"), tiny_batch("bert")
    head = partial(ClassificationHead, backbone.config, 3)
    moved = {}
    for ratio in (1.0, 16.0):
        attached = attach(backbone, [LoraPlus(ratio)], [head])
        run = attached.run(0)
        first, apart = run.parameter_groups()
        assert (first.rate, apart.rate) == (1.0, ratio)
        assert {*first.parameters} | {*apart.parameters} == {*run.trained()}
        assert {name.rpartition(".")[2] for name in apart.parameters} == {"B"}
        before = snapshot(run.trained())
        step(run, attached([batch])[0], 1)
        moved[ratio] = {name: p.detach() - before[name] for name, p in run.trained().items()}
        extra = run.extra_loss()
        assert extra is not None
        step(run, attached([batch])[0], 2)
        assert all(not p.any() for name, p in run.trained().items() if name.endswith(".A"))
        attached.detach()
    for name, change in moved[1.0].items():
        assert change.any()
        torch.testing.assert_close(moved[16.0][name], change * (16 if name.endswith(".B") else 1))


def test_the_extra_loss_trains(tiny_backbone):
    """At the start LoRA's B is zero, so that all of A's gradient is the extra loss's."""
    run = attach(tiny_backbone("bert"), [LoraPlus(1.0)]).run(0)
    extra = run.extra_loss()
    assert extra is not None
    extra.backward()
    for module in run.by_site.values():
        assert isinstance(module, LowRank)
        gram = module.A @ module.A.T - torch.eye(2)
        torch.testing.assert_close(module.A.grad, 4 * gram @ module.A)
        assert module.B.grad is None


def test_methods_without_options_have_one_group_no_loss_and_hear_nothing(tiny_backbone):
    attached = attach(tiny_backbone("bert"), [Scaled()])
    (group,) = attached.run(0).parameter_groups()
    assert group == ParameterGroup(attached.run(0).trained(), 1.0)
    assert attached.run(0).extra_loss() is None
    before = [p.clone() for p in attached.run(0).parameters()]
    attached.run(0).after_step(1, 1)
    assert all(map(torch.equal, before, attached.run(0).parameters()))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["head.out_proj.bias", "sites.x"], "'sites.x' 1 times"), (["a", "a"], "'a' 2 times")],
)
def test_groups_of_other_parameters_are_refused(names, message, tiny_backbone):
    groups = [ParameterGroup({name: nn.Parameter(torch.zeros(1))}) for name in names]
    method: Any = SimpleNamespace(modules=lambda sites: {}, parameter_groups=lambda trained: groups)
    backbone = tiny_backbone("bert")
    run = attach(backbone, [method], [partial(ClassificationHead, backbone.config, 3)]).run(0)
    with pytest.raises(ValueError, match=message):
        run.parameter_groups()


def test_a_composition_hands_no_option_on(tiny_backbone):
    with pytest.raises(ValueError, match="LoraPlus defines parameter_groups, which a composition does not hand on"):
        attach(tiny_backbone("bert"), [Composition([Prefix(2, None, "random", ""), LoraPlus(2.0)])])


@pytest.mark.parametrize("method", sorted({type(case.make(1)) for case in METHODS}, key=str))
def test_every_method_says_its_result_version(method):
    assert isinstance(method.result_version, int)
    assert "result_version" not in {field.name for field in dataclasses.fields(method)}  # no setting
