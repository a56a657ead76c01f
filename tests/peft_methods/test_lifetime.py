"""What is refused around a run's life: after detaching, when it is lost, where no position or token is left."""

import contextlib
import copy
import gc

import pytest
import torch
from transformers import BertForSequenceClassification

from peft_methods.attach import attach, attached_to
from peft_methods.baselines import HeadOnly
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora
from peft_methods.prefix import Infix, Prefix
from peft_methods.prompt import Prompt
from tests.conftest import ALL_ARCHITECTURES

LORA = Lora(2, 4.0, 0.0, ("query",), "normal_0.02")
PREFIX = Prefix(4, None, "random", "")


def text(rows=2, length=5):
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_detached_runs_are_refused_and_leave_the_backbone_alone(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    attached = attach(backbone, [LORA])
    with torch.no_grad():
        attached.run(0).trained()["sites.layer.0.query.B"].normal_()
    assert attached.detach() is backbone
    assert attached.detach() is backbone  # twice is once
    new = attach(backbone, [LORA])
    for call in (lambda: attached([text()]), lambda: attached.generate([text()], max_new_tokens=1), attached.merge):
        with pytest.raises(ValueError, match="these runs are detached"):
            call()
    attached.detach()  # does not end the new one
    new([text()])
    new.detach()
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())


def switches(backbone):
    """Whatever a run may switch on or off: modes, gradients, checkpointing with its settings, caches, attention."""
    modules = [
        (
            module.training,
            getattr(module, "gradient_checkpointing", None),
            vars(module).get("_gradient_checkpointing_func"),
        )
        for module in backbone.modules()
    ]
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in backbone.modules()]
    caches = [getattr(m.config, "use_cache", None) for m in backbone.modules() if hasattr(m, "config")]
    required = [p.requires_grad for p in backbone.parameters()]
    return modules, hooks, required, caches, backbone.config._attn_implementation


@pytest.mark.parametrize("before", ["plain", "checkpointing", "half frozen, half in training"])
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_what_a_run_switches_on_is_off_after_it(architecture, before, tiny_backbone, tiny_batch):
    """A backbone serves many runs of a process: one that checkpoints must not make the later ones do so."""
    backbone, batch = tiny_backbone(architecture, dropout=0.1), tiny_batch(architecture)
    if before == "checkpointing":
        backbone.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    if before == "half frozen, half in training":
        for module in [*backbone.modules()][::2]:
            module.training = True
        for parameter in [*backbone.parameters()][::2]:
            parameter.requires_grad_(False)
    found = switches(backbone)
    attached = attach(backbone, [Lora(2, 4.0, 0.0, ("value",), "normal_0.02")])
    attached.backbone.activation_checkpointing_enable({"use_reentrant": False})
    attached.train()
    for module in backbone.modules():
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    attached([batch])[0].sum().backward()
    assert all(now != then for now, then in zip(switches(backbone)[:3], found[:3], strict=True))
    attached.detach()
    assert switches(backbone) == found
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_lost_runs_can_be_detached(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    attach(backbone, [LORA])
    gc.collect()
    with pytest.raises(ValueError, match="attached_to"):
        attach(backbone, [LORA])
    with pytest.raises(ValueError, match="was called itself: call the Attached"):
        backbone(**text())
    lost = attached_to(backbone)
    assert lost is not None
    lost.detach()
    assert attached_to(backbone) is None
    backbone(**text())


@pytest.mark.parametrize("method", [PREFIX, Prompt(4, None, "normal", (0, 1), 5, ()), Infix(4, None)])
def test_prompts_that_leave_no_position_are_refused(tiny_backbone, method):
    backbone = tiny_backbone("gpt2", max_position_embeddings=4)
    with pytest.raises(ValueError, match="length=4 leaves no position for text: gpt2 has 4"):
        attach(backbone, [method])
    assert attached_to(backbone) is None


def test_what_is_written_counts_positions_too(tiny_backbone):
    gpt2, bart = (tiny_backbone(name, max_position_embeddings=12) for name in ("gpt2", "bart"))
    attached = attach(gpt2, [PREFIX])
    (written,) = attached.generate([text(1, 5)], max_new_tokens=4, min_new_tokens=4)  # 4 + 5 + 4 - 1 positions
    assert written is not None
    assert written.shape[1] == 4
    with pytest.raises(ValueError, match="max_new_tokens=5 with 8 positions before it: gpt2 has 12"):
        attached.generate([text(1, 5)], max_new_tokens=5)
    attached = attach(bart, [LORA])
    attached.generate([text(1, 5)], max_new_tokens=12, min_new_tokens=12)
    with pytest.raises(ValueError, match="max_new_tokens=13"):
        attached.generate([text(1, 5)], max_new_tokens=13)
    with pytest.raises(ValueError, match="13 positions, prompt or prefix included: bart has 12"):
        attached([text(1, 5) | {"decoder_input_ids": torch.ones(1, 13, dtype=torch.long)}])


@pytest.mark.parametrize("boundary", [[0, 5], [5, 5], [-1, 0]])
def test_an_infix_needs_a_token_behind_it(tiny_backbone, boundary):
    attached = attach(tiny_backbone("gpt2"), [Infix(2, None)])
    with pytest.raises(ValueError, match=r"expected a token of its row, first to last \[\(0, 4\), \(0, 4\)\]"):
        attached([text() | {"boundary": torch.tensor(boundary)}])
    attached([text() | {"boundary": torch.tensor([0, 4])}])


def test_the_token_behind_an_infix_predicts_the_target_having_seen_it(tiny_backbone):
    """With the boundary of the text-to-text tasks every target token's logits, the first included, have a gradient."""
    attached = attach(tiny_backbone("gpt2"), [Infix(2, None)])
    logits = attached([text(1, 6) | {"boundary": torch.tensor([3])}])[0]  # four tokens of source, two of target
    logits[0, 3].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in attached.run(0).trained().items() if "0" in n)


def test_an_empty_batch_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="no tokens"):
        attach(tiny_backbone("gpt2"), [LORA])([text(2, 0)])


def test_task_heads_and_missing_poolers_are_refused(tiny_config, tiny_backbone):
    config = tiny_config("bert")
    with pytest.raises(ValueError, match="BertForSequenceClassification has a task head of its own"):
        attach(BertForSequenceClassification(config), [LORA])
    from transformers import BertModel

    backbone = BertModel(config, add_pooling_layer=False)
    with pytest.raises(ValueError, match="load the backbone with its pooler"):
        attach(backbone, [LORA], [lambda: ClassificationHead(config, 2)])
    assert attached_to(backbone) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prompt(3, None, "uniform", (0, 1, 2), 5, ()), r"init_range=\[0, 1, 2\]: expected the lowest"),
        (lambda: Prompt(3, None, "uniform", (1, 0), 5, ()), r"init_range=\[1, 0\]: expected the lowest"),
        (lambda: Lora(2, float("nan"), 0.0, ("query",), "normal_0.02"), "alpha=nan: expected a finite number"),
        (lambda: Lora(2, 1.0, 0.0, "query", "normal_0.02"), r"targets='query': expected a list of them, \[query\]"),
    ],
)
def test_settings_that_make_no_sense(tiny_backbone, make, message):
    with pytest.raises(ValueError, match=message):
        attach(tiny_backbone("gpt2"), [make()])


def test_the_backbone_itself_is_refused_after_a_call_too(tiny_backbone, tiny_batch):
    """Its hooks would route by the rows of the call before."""
    backbone = tiny_backbone("gpt2")
    lora = Lora(2, 4.0, 0.0, ("query",), "kaiming_uniform")
    attached = attach(backbone, [lora, lora], seeds=[0, 1])
    batch = tiny_batch("gpt2", 2, 6)
    attached([batch, batch])
    attached.generate([batch, batch], max_new_tokens=2, do_sample=False)
    with pytest.raises(ValueError, match="was called itself: call the Attached"):
        backbone(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="was called itself: call the Attached"):
        backbone.generate(input_ids=batch["input_ids"], max_new_tokens=2)
    backbone.gradient_checkpointing_enable()  # layers are recomputed behind the call
    torch.stack([logits.sum() for logits in attached.train()([batch, batch])]).sum().backward()
    assert all(p.grad is not None for p in attached.run(0).trained().values())


@pytest.mark.parametrize("method", [LORA, HeadOnly()])
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_the_backbone_itself_is_refused_or_as_it_was(architecture, method, tiny_backbone, tiny_batch):
    """Also where no run changes anything; with another mask, from which BART's positions follow, of the same shape."""
    backbone, other = tiny_backbone(architecture), tiny_batch(architecture, 3, 9, seed=1)
    other["attention_mask"] = other["attention_mask"].flip(1)
    inputs = {key: value for key, value in other.items() if key != "boundary"}
    plain = backbone(**inputs)[0]
    attach(backbone, [method])([tiny_batch(architecture, 3, 9)])
    with contextlib.suppress(ValueError):
        torch.testing.assert_close(backbone(**inputs)[0], plain)


def test_a_copy_with_the_hooks_of_another_is_refused(tiny_backbone, tiny_batch):
    backbone = tiny_backbone("bert")
    lora = Lora(2, 4.0, 0.0, ("query",), "kaiming_uniform")
    attached = attach(backbone, [lora])
    with pytest.raises(ValueError, match="is a copy of one that has runs on it"):
        attach(copy.deepcopy(backbone), [lora])
    attached.detach()
    attach(copy.deepcopy(backbone), [lora])


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta_v2"])
def test_padding_before_the_token_that_a_head_reads_is_refused(architecture, tiny_backbone, tiny_batch):
    backbone = tiny_backbone(architecture)
    lora = Lora(2, 4.0, 0.0, ("query",), "kaiming_uniform")
    attached = attach(backbone, [lora], [lambda: ClassificationHead(backbone.config, 3)])
    batch = tiny_batch(architecture, 2, 6)
    batch["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"run 0 has a head, which reads the first token.*pad them on the right"):
        attached([batch])
