"""Half precision: what trains stays float32, and no run changes the type that backbone or neighbors compute in."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_methods.ia3 import IA3
from tests.peft_methods.test_contract import DEFINED, attach_one, loss_of, own, train

CASES = pytest.mark.parametrize(("case", "architecture"), DEFINED)


def types_within(backbone: nn.Module) -> dict[str, set[torch.dtype]]:
    """Filled by the next calls: module -> the types of the tensors that it gives, after every hook on it now."""
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.is_floating_point():
                seen.setdefault(name, set()).add(first.dtype)

        return hook

    for name, module in backbone.named_modules():
        module.register_forward_hook(note(name))
    return seen


@CASES
def test_on_a_bfloat16_backbone_what_trains_is_float32(case, architecture, tiny_backbone, tiny_batch):
    backbone = tiny_backbone(architecture, torch.bfloat16, dropout=0.1)
    if case.in_place:
        with pytest.raises(ValueError, match=r"own weights, which are torch.bfloat16.*trainer.precision=bf16"):
            attach_one(backbone, case.make(4))
        assert all(p.requires_grad for p in backbone.parameters())  # nothing is half attached
        return
    attached = attach_one(backbone, case.make(4))
    seen = types_within(backbone)
    trained = attached.run(0).trained()
    before = {name: p.detach().clone() for name, p in trained.items()}
    train(attached, [tiny_batch(architecture, rows=4, width=9)], steps=2)
    assert {p.dtype for p in trained.values()} <= {torch.float32}
    assert all(p.isfinite().all() for p in trained.values())
    assert not trained or any(not torch.equal(before[name], p) for name, p in trained.items())
    assert {kind for kinds in seen.values() for kind in kinds} == {torch.bfloat16}
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}


@CASES
def test_under_autocast_every_module_gives_the_type_that_it_gives_alone(case, architecture, tiny_backbone, tiny_batch):
    backbone, batch = tiny_backbone(architecture), tiny_batch(architecture, rows=4, width=9)
    alone = tiny_backbone(architecture)
    expected = types_within(alone)
    with torch.autocast("cpu", torch.bfloat16):
        own(alone, batch)
        attached = attach_one(backbone, case.make(4)).train()
        seen = types_within(backbone)
        loss = loss_of(attached([batch])[0].float())
    loss.backward()
    assert {name: seen[name] for name in expected if name in seen} == {n: k for n, k in expected.items() if n in seen}


@pytest.mark.parametrize("architecture", ["bert", "deberta_v2", "gpt2"])
def test_a_step_too_small_for_bfloat16_is_not_lost(architecture, tiny_backbone, tiny_batch):
    """1 + 1e-3 rounds to 1 in bfloat16: a scale that trains there would stand still."""
    attached = attach_one(tiny_backbone(architecture, torch.bfloat16), IA3())
    train(attached, [tiny_batch(architecture, rows=4, width=9)], steps=1, learning_rate=1e-3)
    scales = [p for name, p in attached.run(0).trained().items() if name.endswith("scale")]
    moved = torch.cat([(p - 1).abs() for p in scales])
    assert (moved > 5e-4).float().mean() > 0.9
