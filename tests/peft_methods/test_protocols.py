"""What methods and modules may define beside the least, by a small method that no file ships."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_methods.attach import attach
from peft_methods.lora import Lora
from peft_methods.sites import FrozenMap, Site, Sites
from tests.conftest import ALL_ARCHITECTURES


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
    lora, batches = (
        Lora(2, 4.0, 0.0, ("query", "value"), "normal_0.02"),
        [tiny_batch(architecture, 2, 6, i) for i in (1, 2)],
    )
    pack = attach(backbone := tiny_backbone(architecture, torch.float64), [Scaled(), lora])
    for k in range(2):
        randomize(pack.run(k), seed=k)
    outputs = pack(batches)
    pack.detach()
    for k, method in enumerate((Scaled(), lora)):
        alone = attach(backbone, [method])
        alone.run(0).load_state_dict(pack.run(k).state_dict())
        torch.testing.assert_close(alone([batches[k]])[0], outputs[k])
        alone.detach()
