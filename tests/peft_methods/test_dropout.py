"""The counter-based dropout stream: masks follow from (seed, step, micro-batch, site) and from nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor

from peft_methods.dropout import Dropout, DropoutStream

ONES = torch.ones(4, 50, 200)


def mask(stream: DropoutStream, x: Tensor = ONES, p: float = 0.3, site: str = "here") -> Tensor:
    return stream.dropout(x, p, site)


def test_keep_rate_and_scaling():
    """40,000 elements: the kept share lies within 4 standard deviations of 1 - p, what is kept is divided by it."""
    x = torch.randn(4, 50, 200)
    for p in (0.05, 0.3, 0.9):
        y = mask(DropoutStream(1), x, p)
        kept = y != 0
        assert kept.float().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
        torch.testing.assert_close(y[kept], x[kept] / (1 - p))


def test_elements_are_dropped_independently():
    """No row, column or batch entry shares its mask with the next (correlation within 4 / sqrt(n))."""
    kept = (mask(DropoutStream(0)) != 0).double()
    kept = kept - kept.mean()
    for axis in range(3):
        a, b = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        assert abs((a * b).mean() / kept.var()).item() < 4 / a.numel() ** 0.5


def test_same_counter_same_mask():
    state = torch.get_rng_state()
    first = mask(DropoutStream(5, step=3, micro_batch=1))
    torch.manual_seed(99)
    assert torch.equal(first, mask(DropoutStream(5, step=3, micro_batch=1)))
    torch.set_rng_state(state)
    mask(DropoutStream(5))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


@pytest.mark.parametrize(
    ("changes", "site"),
    [({"seed": 6}, "here"), ({"step": 4}, "here"), ({"micro_batch": 2}, "here"), ({}, "there")],
    ids=["seed", "step", "micro_batch", "site"],
)
def test_another_counter_another_mask(changes, site):
    """Not only another one: an independent one (they agree on 0.7² + 0.3² = 58 % of the elements)."""
    counter: dict[str, Any] = {"seed": 5, "step": 3, "micro_batch": 1}
    a, b = mask(DropoutStream(**counter)), mask(DropoutStream(**{**counter, **changes}), site=site)
    assert (a == b).float().mean().item() == pytest.approx(0.58, abs=0.01)


def test_numbers_are_not_glued_together():
    """(seed 1, step 11) and (seed 11, step 1) are two streams."""
    assert not torch.equal(mask(DropoutStream(1, step=11)), mask(DropoutStream(11, step=1)))


def test_masks_do_not_depend_on_the_padding_of_the_pack():
    """Four positions of padding on the input's tokens, one on the target's: each axis says whose tokens it has."""
    shapes: list[Any] = [
        ((3, 6, 5), (3, 10, 5), {1: "input"}),
        ((3, 2, 4, 6), (3, 2, 5, 10), {2: "target", 3: "input"}),
    ]
    for narrow, wide, tokens in shapes:
        own = DropoutStream(2).dropout(torch.ones(narrow), 0.3, "here", tokens)
        padded = DropoutStream(2, padding={"input": 4, "target": 1}).dropout(torch.ones(wide), 0.3, "here", tokens)
        inside = tuple(slice(0, n) for n in narrow)
        assert torch.equal(padded[inside], own)
        assert torch.isfinite(padded).all()


def test_same_mask_in_every_number_type():
    stream = DropoutStream(2)
    kept = mask(stream) != 0
    for dtype in (torch.float64, torch.bfloat16):
        y = mask(stream, ONES.to(dtype))
        assert torch.equal(y != 0, kept)
        assert y.dtype == dtype


def test_bfloat16_is_rounded_once():
    x = torch.randn(4, 50, 200).bfloat16()
    y = mask(DropoutStream(0), x, 0.1)
    expected = (x.double() / 0.9).bfloat16()
    assert torch.equal(y[y != 0], expected[y != 0])


def test_borders():
    stream = DropoutStream(0)
    assert mask(stream, p=0.0) is ONES
    assert not mask(stream, p=1.0).any()


def test_module_is_off_in_eval_mode_and_needs_a_stream_in_training():
    dropout = Dropout(0.3)
    assert dropout.eval()(ONES) is ONES
    with pytest.raises(RuntimeError, match="attach the module to a backbone"):
        dropout.train()(ONES)
    dropout.stream, dropout.site = DropoutStream(5), "here"
    assert torch.equal(dropout(ONES), mask(DropoutStream(5)))


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_impossible_rates_are_refused(p):
    with pytest.raises(ValueError, match=f"dropout={p}: expected 0 <= dropout < 1"):
        Dropout(p)
