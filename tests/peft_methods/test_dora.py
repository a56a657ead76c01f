"""DoRA beyond its equation (test_equations_*.py): merging and dropout as in peft, autocast, shapes alone."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.counting import count_parameters
from peft_methods.dora import Dora
from tests.peft_methods.oracle import path_of, real

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls it
ROLES = ("query", "value", "ffn_out")
ARCHITECTURES = ("bert", "llama")


def both(architecture: str, tiny_backbone: Any, randomize: Any, dropout: float = 0.0) -> tuple[Attached, Any]:
    """Ours and peft's, with the same tensors."""
    ours = attach(tiny_backbone(architecture, torch.float64), [Dora(3, 7.0, dropout, ROLES, "normal_0.02")])
    randomize(ours.run(0), seed=5)
    paths = {site: path_of(architecture, site) for site in ours.run(0).by_site}
    config = LoraConfig(r=3, lora_alpha=7, lora_dropout=dropout, use_dora=True, target_modules=[*paths.values()])
    theirs: Any = get_peft_model(tiny_backbone(architecture, torch.float64), config).eval()
    for site, path in paths.items():
        own, layer = ours.run(0).at(site), theirs.base_model.model.get_submodule(path)
        layer.lora_A["default"].weight.data.copy_(own.low_rank.A)
        layer.lora_B["default"].weight.data.copy_(own.low_rank.B)
        layer.lora_magnitude_vector["default"].weight.data.copy_(own.magnitude)
    return ours, theirs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_equal_pefts(architecture, tiny_backbone, randomize):
    ours, theirs = both(architecture, tiny_backbone, randomize)
    before = {
        site: ours.backbone.get_submodule(path_of(architecture, site)).weight.clone() for site in ours.run(0).by_site
    }
    ours.merge()
    merged = theirs.merge_and_unload()
    for site, weight in before.items():
        path = path_of(architecture, site)
        own, other = ours.backbone.get_submodule(path).weight, merged.get_submodule(path).weight
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
        assert (own - weight).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_on_the_input_of_the_change_as_in_peft(architecture, tiny_backbone, tiny_batch, randomize):
    """Both with one mask in the place of their own dropout."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([2 * x[..., ::2], 0 * x[..., ::2]], dim=-1)

    ours, theirs = both(architecture, tiny_backbone, randomize, dropout=0.5)
    batch = tiny_batch(architecture, rows=4, width=9)
    inputs = {name: x for name, x in batch.items() if name != "boundary"}
    (without,) = ours([batch])
    for site in ours.run(0).by_site:
        ours.run(0).at(site).low_rank.dropout = Halves()
        theirs.base_model.model.get_submodule(path_of(architecture, site)).lora_dropout["default"] = Halves()
    outputs = theirs.train()(**inputs)
    expected = outputs.logits if architecture == "llama" else outputs.last_hidden_state
    (dropped,) = ours.train()([batch])
    torch.testing.assert_close(real(dropped, batch), real(expected, batch), rtol=1e-6, atol=1e-6)
    assert (real(dropped, batch) - real(without, batch)).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_under_bfloat16_autocast(architecture, tiny_backbone, tiny_batch, randomize):
    ours, _ = both(architecture, tiny_backbone, randomize)
    ours.float().train()
    batch = tiny_batch(architecture, rows=3, width=8)
    (exact,) = ours([batch])
    with torch.autocast("cpu", torch.bfloat16):
        (rounded,) = ours([batch])
    torch.testing.assert_close(real(rounded.float(), batch), real(exact, batch), rtol=0.1, atol=0.3)
    rounded.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.run(0).trained().values())


def test_counts_need_shapes_only(tiny_backbone):
    counts = count_parameters(attach(tiny_backbone("bert").to("meta"), [Dora(3, 7.0, 0.0, ROLES, "normal_0.02")]))
    assert counts.method == counts.added == 2 * (3 * (32 + 32 + 40) + 3 * 16)
    assert counts.merged == 0
