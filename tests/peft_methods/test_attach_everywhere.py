"""Attaching on every architecture: compiled after it, refused after compiling; packs that DeBERTa-v2 cannot take."""

from typing import Any

import pytest
import torch
from torch import Tensor

from peft_methods.attach import attach
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby, Parallel
from peft_methods.dropout import DropoutStream
from peft_methods.ia3 import IA3
from peft_methods.lora import Lora
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from peft_methods.protocols import Method
from tests.conftest import ALL_ARCHITECTURES
from tests.peft_methods.oracle import plain, real

VALUE = Lora(2, 4.0, 0.0, ("value", "ffn_out"), "normal_0.02")
QUERY = Lora(2, 4.0, 0.0, ("query",), "normal_0.02")
KEY = Lora(2, 4.0, 0.0, ("value", "key"), "normal_0.02")
PARALLEL = Parallel(3, "relu", "normal", 0.3, 4.0, 0.0, ("attention", "ffn"))


def state(backbone: Any) -> tuple[Any, ...]:
    """Everything that `attach` changes on a backbone."""
    return (
        list(backbone.state_dict()),
        [p.requires_grad for p in backbone.parameters()],
        [module.training for module in backbone.modules()],
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules()),
        [{n: v for n, v in vars(module).items() if isinstance(v, float)} for module in backbone.modules()],
        backbone.config._attn_implementation,
    )


# The encoders' modules are BERT's, which test_attach.py compiles; T5 1.0's are those of 1.1.
@pytest.mark.parametrize("architecture", ["deberta_v2", "gpt2", "llama", "t5_gated", "bart"])
def test_compiling_after_attaching_equals_eager(architecture, tiny_backbone, tiny_batch, randomize):
    """A pack, outputs and gradients; Dynamo must trace our hooks and the attention function."""
    other: Method = PARALLEL if architecture == "deberta_v2" else Prefix(3, None, "random", "")
    attached = attach(tiny_backbone(architecture, num_hidden_layers=1), [VALUE, other])
    for k in range(2):
        randomize(attached.run(k), seed=k)
    batches = [tiny_batch(architecture, rows=2 + k, width=7 + k) for k in range(2)]
    trained = [p for k in range(2) for p in attached.run(k).trained().values()]
    torch._dynamo.reset()
    results = []
    for model in (attached, torch.compile(attached, backend="eager")):
        outputs = torch.cat([real(y, b).flatten() for y, b in zip(model(batches), batches, strict=True)])
        results.append([outputs, *torch.autograd.grad(outputs.square().sum(), trained)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0, "nothing was compiled"
    backbone = attached.detach()
    flat = torch.cat([real(plain(backbone, batch), batch).flatten() for batch in batches])
    assert (results[1][0] - flat).abs().max() > 0.05, "the methods change nothing here"


@pytest.mark.parametrize("architecture", [a for a in ALL_ARCHITECTURES if a != "deberta_v2"])
def test_the_attention_that_drops_weights_is_the_stock_one(
    architecture, tiny_backbone, tiny_batch, randomize, monkeypatch
):
    """In training with dropout it is written out: with masks that keep everything it gives what evaluation gives."""
    methods: list[Method] = [VALUE, Prefix(3, None, "random", "")]
    attached = attach(tiny_backbone(architecture, torch.float64, dropout=0.3), methods)
    for k in range(2):
        randomize(attached.run(k), seed=k)
    batches = [tiny_batch(architecture, rows=2 + k, width=7 + k) for k in range(2)]
    with torch.no_grad():
        expected, dropped = attached(batches), attached.train()(batches)
        dropped_at = set()

        def keep(self: DropoutStream, x: Tensor, p: float, site: str, *_: Any) -> Tensor:
            dropped_at.add(site)
            return x

        monkeypatch.setattr(DropoutStream, "dropout", keep)
        kept = attached(batches)
    assert any(site.endswith(".weights") for site in dropped_at), "no attention drops anything"
    for k, batch in enumerate(batches):
        torch.testing.assert_close(real(kept[k], batch), real(expected[k], batch), rtol=0, atol=1e-6)
        assert (real(dropped[k], batch) - real(expected[k], batch)).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_attaching_after_compiling_is_refused(architecture, tiny_backbone):
    for compiled in ("whole", "part"):
        backbone: Any = tiny_backbone(architecture)
        if compiled == "whole":
            backbone = torch.compile(backbone, backend="eager")
        else:
            backbone.get_input_embeddings().compile(backend="eager")
        before = state(getattr(backbone, "_orig_mod", backbone))
        with pytest.raises(ValueError, match="attach first, compile after"):
            attach(backbone, [VALUE])
        assert state(getattr(backbone, "_orig_mod", backbone)) == before


TWICE = "DeBERTa-v2 calls its query and key projection a second time, on the relative embeddings"
SHARED = "all rows of a batch share the relative embeddings"
REFUSED: dict[str, tuple[Method, str]] = {
    "query": (QUERY, rf"Lora at layer\.0\.query cannot share a pack: {TWICE}"),
    "key": (KEY, rf"Lora at layer\.0\.key cannot share a pack: {TWICE}"),
    "ia3": (IA3(), rf"IA3 at layer\.0\.key cannot share a pack: {TWICE}"),
    "bitfit": (BitFit("query_ffn_in"), rf"BitFit at layer\.0\.query cannot share a pack: {TWICE}"),
    "norms": (Houlsby(2, "relu", "normal", 0.02, True), rf"Houlsby at relative_norm cannot share a pack: {SHARED}"),
}


@pytest.mark.parametrize("place", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("cause", REFUSED)
def test_deberta_refuses_what_a_pack_cannot_slice(cause, place, tiny_backbone, tiny_batch):
    """The site and the reason are named, and nothing stays attached; alone, and beside nobody, the method is fine."""
    (method, message), backbone = REFUSED[cause], tiny_backbone("deberta_v2").train()
    batch, before = tiny_batch("deberta_v2"), state(backbone)
    with torch.no_grad():
        expected = backbone(**batch).last_hidden_state
    methods: list[Method] = [PARALLEL, PARALLEL]
    methods[place] = method
    with pytest.raises(ValueError, match=rf"{message}.*; attach it alone"):
        attach(backbone, methods)
    assert state(backbone) == before
    with torch.no_grad():
        assert torch.equal(backbone(**batch).last_hidden_state, expected)
    attach(backbone, [method]).detach()
    assert state(backbone) == before


def test_deberta_with_dropout_takes_no_packs(tiny_backbone):
    backbone = tiny_backbone("deberta_v2", dropout=0.1)
    before = state(backbone)
    with pytest.raises(ValueError, match=r"takes no packs: attention\.self\.pos_dropout drops a tensor that all rows"):
        attach(backbone, [VALUE, PARALLEL])
    assert state(backbone) == before
    attach(backbone, [VALUE])


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_a_second_run_that_is_refused_leaves_nothing(architecture, tiny_backbone, tiny_batch):
    """Its first run has modules at the model's input, in the layers and at the attentions by then."""
    backbone, batch = tiny_backbone(architecture, dropout=0.0).train(), tiny_batch(architecture)
    before = state(backbone)
    with torch.no_grad():
        expected = plain(backbone, batch)
    with pytest.raises(ValueError, match=r"length=0: expected at least 1"):
        attach(backbone, [VALUE, Prompt(4, None, "normal", (), 0, ()), Prompt(0, None, "normal", (), 0, ())])
    assert state(backbone) == before
    with torch.no_grad():
        assert torch.equal(plain(backbone, batch), expected)
