"""VeRA beyond its equation (test_equations_*.py): the shared pair, what is stored, merging as in peft."""

from typing import Any

import pytest
import torch
from peft import VeraConfig, get_peft_model

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.counting import count_parameters
from peft_methods.state import load_trained, save_trained
from peft_methods.vera import Vera
from tests.peft_methods.oracle import path_of, real

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls it
ROLES = ("query", "value", "ffn_out")
ARCHITECTURES = ("bert", "llama")


def vera(rank: int = 5, seed: int = 7) -> Vera:
    return Vera(rank, 0.3, 0.0, ROLES, seed)


def attached_run(architecture: str, tiny_backbone: Any, randomize: Any, method: Vera) -> Attached:
    attached = attach(tiny_backbone(architecture, torch.float64), [method])
    randomize(attached.run(0), seed=5)
    return attached


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_pair_and_merged_weights_are_pefts(architecture, tiny_backbone, randomize):
    ours = attached_run(architecture, tiny_backbone, randomize, vera())
    paths = {site: path_of(architecture, site) for site in ours.run(0).by_site}
    config = VeraConfig(r=5, d_initial=0.3, projection_prng_key=7, target_modules=[*paths.values()])
    theirs: Any = get_peft_model(tiny_backbone(architecture, torch.float64), config).double()
    shared = ours.run(0).at("layer.0.query").shared
    assert torch.equal(shared.A, theirs.base_model.vera_A["default"])
    assert torch.equal(shared.B, theirs.base_model.vera_B["default"])
    for site, path in paths.items():
        own, layer = ours.run(0).at(site), theirs.base_model.model.get_submodule(path)
        layer.vera_lambda_b["default"].data.copy_(own.b)
        layer.vera_lambda_d["default"].data.copy_(own.d)
    ours.merge()
    merged = theirs.merge_and_unload()
    for path in paths.values():
        own, other = ours.backbone.get_submodule(path).weight, merged.get_submodule(path).weight
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
        assert (own - tiny_backbone(architecture, torch.float64).get_submodule(path).weight).abs().max() > 0.01


def test_one_pair_for_all_targets_follows_from_the_projection_seed(tiny_backbone):
    """Not from the run's seed: runs of several seeds share it, and it lies once in memory."""
    attached = attach(tiny_backbone("bert"), [vera(), vera(), vera(seed=8)], seeds=[0, 1, 0])
    first, second, third = (attached.run(k).at("layer.0.query").shared for k in range(3))
    assert {id(module.shared) for module in attached.run(0).by_site.values()} == {id(first)}
    assert torch.equal(first.A, second.A)
    assert not torch.equal(first.A, third.A)
    assert first.A.shape == (5, 24)
    assert first.B.shape == (16, 5)


def test_the_pair_is_not_stored(tiny_backbone, tiny_batch, randomize, tmp_path):
    attached, batch = attached_run("bert", tiny_backbone, randomize, vera(rank=400)), tiny_batch("bert")
    (expected,) = attached([batch])
    assert not any("shared" in name for name in attached.state_dict())
    save_trained(attached, tmp_path / "run.safetensors")
    stored = 8 * 2 * (3 * 400 + 3 * 16)
    assert stored < (tmp_path / "run.safetensors").stat().st_size < stored + 3000  # one pair alone: 8 * 400 * 40
    again = attach(tiny_backbone("bert", torch.float64), [vera(rank=400)], seeds=[3])
    load_trained(again, tmp_path / "run.safetensors")
    assert torch.equal(again([batch])[0], expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_under_bfloat16_autocast(architecture, tiny_backbone, tiny_batch, randomize):
    attached, batch = attached_run(architecture, tiny_backbone, randomize, vera()), tiny_batch(architecture)
    attached.float().train()
    (exact,) = attached([batch])
    with torch.autocast("cpu", torch.bfloat16):
        (rounded,) = attached([batch])
    torch.testing.assert_close(real(rounded.float(), batch), real(exact, batch), rtol=0.1, atol=0.3)
    rounded.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attached.run(0).trained().values())


def test_counts_need_shapes_only(tiny_backbone):
    counts = count_parameters(attach(tiny_backbone("bert").to("meta"), [vera()]))
    assert counts.method == counts.added == 2 * 3 * (16 + 5)
    assert counts.merged == 0


def test_a_rank_below_one_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"rank=0: expected at least 1; change method\.rank"):
        attach(tiny_backbone("bert"), [vera(rank=0)])
