"""Attach and detach: what is refused, in one sentence and with nothing half attached; compiling; memory."""

import gc
import weakref
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel, PreTrainedModel

from peft_methods.attach import attach
from peft_methods.baselines import Full, HeadOnly
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby, Pfeiffer
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora
from peft_methods.protocols import Method

GOOD = Lora(2, 4.0, 0.0, ("query",), "normal_0.02")
REFUSED: dict[str, tuple[Method, str]] = {
    "rank": (Lora(0, 4.0, 0.0, ("query",), "normal_0.02"), r"rank=0: expected at least 1; change method\.rank"),
    "init_A": (Lora(2, 4.0, 0.0, ("query",), "zeros"), r"init_A='zeros': expected kaiming_uniform or normal_0\.02"),
    "dropout": (Lora(2, 4.0, 1.5, ("query",), "normal_0.02"), r"dropout=1\.5: expected 0 <= dropout < 1"),
    "unknown target": (
        Lora(2, 4.0, 0.0, ("query", "c_attn"), "normal_0.02"),
        r"unknown \['c_attn'\] \(known: .*ffn_in.*query.*\); change method\.targets",
    ),
    "empty target": (
        Lora(2, 4.0, 0.0, (), "normal_0.02"),
        r"targets=\[\] match no projection .*change method\.targets",
    ),
    "bottleneck_dim": (
        Houlsby(0, "relu", "normal", 0.02, True),
        r"bottleneck_dim=0: expected at least 1; change method\.bottleneck_dim",
    ),
    "activation": (
        Houlsby(2, "gelu", "normal", 0.02, True),  # which of the two?
        r"activation='gelu': expected one of gelu_tanh, gelu_erf, relu, swish; change method\.activation",
    ),
    "init": (
        Pfeiffer(2, "relu", "bert", 0.02, 0),
        r"init='bert': expected one of truncated_normal, normal, lora; change method\.init",
    ),
    "all layers skipped": (Pfeiffer(2, "relu", "normal", 0.02, 2), r"skip_layers=2: expected 0 to 1.*has 2 layers"),
    "negative layers skipped": (Pfeiffer(2, "relu", "normal", 0.02, -1), r"skip_layers=-1: expected 0 to 1"),
    "biases": (BitFit("query"), r"biases='query': expected all or query_ffn_in; change method\.biases"),
}


def state(backbone):
    """Everything `attach` changes on a backbone."""
    return (
        [p.requires_grad for p in backbone.parameters()],
        [module.training for module in backbone.modules()],
        sum(len(module._forward_hooks) for module in backbone.modules()),
        backbone.config._attn_implementation,
    )


@pytest.fixture
def backbone(architecture, tiny_backbone):
    """Half frozen and in training mode, so that a blanket freeze or eval would be seen."""
    model = tiny_backbone(architecture, dropout=0.1).train()
    model.embeddings.requires_grad_(False)
    return model


@pytest.mark.parametrize("cause", REFUSED)
def test_a_refused_method_leaves_nothing_half_attached(cause, backbone):
    method, message = REFUSED[cause]
    before, random_state = state(backbone), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        attach(backbone, [GOOD, method])  # the first run is fine and must not stay either
    assert state(backbone) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    attach(backbone, [GOOD]).detach()
    assert state(backbone) == before


def test_full_cannot_share_a_pack(backbone):
    before = state(backbone)
    with pytest.raises(ValueError, match="Full trains the backbone in place: it cannot share a pack, attach it alone"):
        attach(backbone, [GOOD, Full()])
    assert state(backbone) == before


def test_unknown_architecture():
    backbone = DistilBertModel(DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8))
    before = state(backbone)
    with pytest.raises(
        ValueError,
        match=r"no sites for model_type='distilbert' \(known: bart, .*, t5\); add an entry",
    ):
        attach(backbone, [GOOD])
    assert state(backbone) == before


def test_a_second_pack_is_refused_until_the_first_is_detached(backbone, architecture, tiny_batch):
    attached, batch = attach(backbone, [GOOD]), tiny_batch(architecture)
    before, (expected,) = state(backbone), attached([batch])
    with pytest.raises(ValueError, match="has runs attached already: detach them first"):
        attach(backbone, [HeadOnly()])
    assert state(backbone) == before
    assert torch.equal(attached([batch])[0], expected)
    attach(attached.detach(), [HeadOnly()])


def test_a_compiled_backbone_is_refused(backbone):
    """A hook attached after compiling is silently ignored: the method would train nothing."""
    with pytest.raises(ValueError, match="attach first, compile after"):
        attach(cast(PreTrainedModel, torch.compile(backbone, backend="eager")), [GOOD])
    backbone.encoder.layer[1].compile(backend="eager")  # a part of it, in place
    before = state(backbone)
    with pytest.raises(ValueError, match="attach first, compile after"):
        attach(backbone, [GOOD])
    assert state(backbone) == before


@pytest.mark.parametrize(
    ("heads", "seeds", "count"),
    [([None], None, "2 methods, 1 heads, 2 seeds"), (None, [1], "2 methods, 2 heads, 1 seeds")],
)
def test_one_head_and_seed_per_run(backbone, heads, seeds, count):
    with pytest.raises(ValueError, match=count):
        attach(backbone, [GOOD, GOOD], heads, seeds)


def test_a_pack_of_no_runs(backbone):
    with pytest.raises(ValueError, match="0 methods"):
        attach(backbone, [])


def test_an_error_inside_a_method_leaves_nothing_half_attached(backbone):
    def fail(sites):
        raise RuntimeError("no site for me")

    before = state(backbone)
    with pytest.raises(RuntimeError, match="no site for me"):
        attach(backbone, [GOOD, SimpleNamespace(modules=fail)])
    assert state(backbone) == before


def test_detach_gives_the_backbone_back(backbone, architecture, tiny_batch):
    before, batch = state(backbone), tiny_batch(architecture)
    backbone.eval()
    with torch.no_grad():
        own = backbone(**batch).last_hidden_state
    backbone.train()
    attached = attach(backbone, [GOOD, BitFit("all")], [lambda: ClassificationHead(backbone.config, 2)] * 2)
    assert state(backbone) != before
    assert not any(p.requires_grad for p in backbone.parameters())
    assert attached.detach() is backbone
    assert state(backbone) == before
    with torch.no_grad():
        assert torch.equal(backbone.eval()(**batch).last_hidden_state, own)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_is_restored_and_equal(implementation, architecture, tiny_backbone, tiny_batch):
    backbone, batch = tiny_backbone(architecture), tiny_batch(architecture)
    backbone.set_attn_implementation(implementation)
    with torch.no_grad():
        own = backbone(**batch).last_hidden_state
        attached = attach(backbone, [HeadOnly()])
        real = batch["attention_mask"].bool()  # padding has positions of its own, and is seen by nobody
        torch.testing.assert_close(attached([batch])[0][real], own[real], rtol=0, atol=1e-5)
        attached.detach()
        assert backbone.config._attn_implementation == implementation
        assert torch.equal(backbone(**batch).last_hidden_state, own)


def test_initial_weights_follow_from_the_seed_alone(architecture, tiny_backbone, snapshot):
    """Same seed, same start, next to whatever neighbor; another seed, another start."""
    head = [lambda: ClassificationHead(tiny_backbone(architecture).config, 2)]
    houlsby = Houlsby(2, "relu", "normal", 0.02, False)
    alone = attach(tiny_backbone(architecture), [houlsby], head, [4])
    torch.rand(7)
    pack = attach(tiny_backbone(architecture), [GOOD, houlsby, houlsby], head * 3, [4, 4, 5])
    start = snapshot(alone.run(0))
    assert all(torch.equal(value, start[name]) for name, value in pack.run(1).state_dict().items())
    assert not any(torch.equal(value, start[name]) for name, value in pack.run(2).state_dict().items() if value.any())


def test_train_mode_leaves_the_backbones_own_dropout_off(backbone):
    attach(backbone, [GOOD]).train()
    dropouts = [module for module in backbone.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert not any(module.training for module in dropouts), "masks would be drawn twice"
    assert backbone.encoder.layer[0].training


@pytest.mark.parametrize("detached", [True, False])
def test_nothing_keeps_a_dropped_backbone_in_memory(detached, architecture, tiny_backbone, tiny_batch):
    backbone = tiny_backbone(architecture, dropout=0.1)
    attached = attach(backbone, [GOOD]).train()
    attached([tiny_batch(architecture)])
    if detached:
        attached.detach()
    alive = weakref.ref(backbone)
    del backbone, attached
    gc.collect()
    assert alive() is None


def test_compiling_after_attaching_equals_eager(tiny_backbone, tiny_batch, randomize):
    """A pack with every kind of site. Dynamo must trace our hooks: without them the logits would be the backbone's."""
    methods: list[Method] = [
        GOOD,
        Houlsby(2, "gelu_tanh", "normal", 0.3, False),
        Pfeiffer(2, "relu", "normal", 0.3, 0),
        BitFit("all"),
    ]
    backbone = tiny_backbone("bert", num_hidden_layers=1)
    attached = attach(backbone, methods)
    for k in range(len(methods)):
        randomize(attached.run(k), seed=k)
    batches = [tiny_batch("bert", rows=2 + k, width=7 + k) for k in range(len(methods))]
    expected = attached(batches)
    torch._dynamo.reset()
    for logits, eager in zip(torch.compile(attached, backend="eager")(batches), expected, strict=True):
        torch.testing.assert_close(logits, eager, rtol=0, atol=1e-6)
    backbone = attached.detach()
    for batch, eager in zip(batches, expected, strict=True):
        assert (backbone(**batch).last_hidden_state - eager).abs().max() > 0.1, "a method changes nothing here"
