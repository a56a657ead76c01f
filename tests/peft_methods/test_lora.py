"""LoRA against Hugging Face peft (whole models) and Microsoft's loralib (layer by layer), merged and not."""

from copy import deepcopy
from typing import Any

import loralib
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification, RobertaForSequenceClassification

from peft_methods.attach import attach
from peft_methods.baselines import HeadOnly
from peft_methods.bitfit import BitFit
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora, LowRank
from peft_methods.sites import Site, Sites

QUERY_VALUE = ("query", "value")
SIX = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
# peft names modules, not roles. Both expressions stay inside the layers: RoBERTa's head has a `dense` too.
PEFT_TARGETS = {
    QUERY_VALUE: r".*encoder\.layer.*\.(query|value)",
    SIX: r".*encoder\.layer.*\.(query|key|value|dense)",
}


def with_their_head(backbone, architecture, labels):
    """Hugging Face's own classification model around a copy of our backbone."""
    config = deepcopy(backbone.config)
    config.num_labels = labels
    kind = BertForSequenceClassification if architecture == "bert" else RobertaForSequenceClassification
    model = kind(config).to(backbone.dtype)
    setattr(model, architecture, deepcopy(backbone))
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls it
@pytest.mark.parametrize("targets", [QUERY_VALUE, SIX], ids=["query_value", "six"])
def test_logits_and_gradients_equal_peft(architecture, targets, tiny_backbone, tiny_batch, randomize):
    backbone, batch = tiny_backbone(architecture), tiny_batch(architecture, rows=5, width=11)
    # init_lora_weights=False: with B = 0 both sides would equal the backbone and this test could not fail
    reference = LoraConfig(r=3, lora_alpha=7, target_modules=PEFT_TARGETS[targets], init_lora_weights=False)
    theirs: Any = get_peft_model(with_their_head(backbone, architecture, labels=4), reference).eval()
    their_head = theirs.base_model.model.classifier.requires_grad_(True)
    randomize(their_head)

    attached = attach(
        backbone, [Lora(3, 7.0, 0.0, targets, "normal_0.02")], [lambda: ClassificationHead(backbone.config, 4)]
    )
    run: Any = attached.run(0)
    pairs = {}
    for site in Sites(backbone).projections(targets):
        module = theirs.get_submodule(f"base_model.model.{architecture}.{site.path}")
        ours = run.sites[site.name.replace(".", "/")]
        pairs[f"{site.name}.A"] = (ours.A, module.lora_A["default"].weight)
        pairs[f"{site.name}.B"] = (ours.B, module.lora_B["default"].weight)
    for name, parameter in run.head.named_parameters():
        pairs[f"head.{name}"] = (
            parameter,
            their_head.get_parameter(name if hasattr(their_head, "dense") else name[9:]),
        )
    assert {id(own) for own, _ in pairs.values()} == {id(p) for p in run.trained().values()}
    with torch.no_grad():
        for own, their in pairs.values():
            own.copy_(their)

    labels = torch.arange(5) % 4
    (logits,), expected = attached([batch]), theirs(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, (own, their) in pairs.items():
        torch.testing.assert_close(own.grad, their.grad, rtol=1e-4, atol=1e-6, msg=f"{name}: {{}}".format)
    with theirs.disable_adapter():
        moved = (expected - theirs(**batch).logits).abs().max()
    assert moved > 1e-2, "LoRA changes nothing here: this test could not fail"


@pytest.mark.parametrize("alpha", [1.0, 16.0])
def test_every_layer_equals_loralib(architecture, alpha, tiny_backbone, randomize):
    backbone = tiny_backbone(architecture)
    attached = attach(backbone, [Lora(3, alpha, 0.0, SIX, "kaiming_uniform")])
    randomize(attached.run(0))
    table = Sites(backbone)
    theirs: dict[Site, Any] = {}
    frozen: Any
    for site in table.projections(SIX):
        frozen, ours = table.module(site), attached.run(0).sites[site.name.replace(".", "/")]
        layer = loralib.Linear(site.in_features, site.width, r=3, lora_alpha=alpha)
        layer.load_state_dict({**frozen.state_dict(), "lora_A": ours.A, "lora_B": ours.B})
        layer.train()  # loralib's train and eval return nothing
        theirs[site] = layer
        x = torch.randn(2, 5, site.in_features)
        frozen_output = F.linear(x, frozen.weight, frozen.bias)
        ours_output, expected = ours(x, frozen_output), layer(x)
        torch.testing.assert_close(ours_output, expected, rtol=0, atol=1e-5)
        ours_output.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(ours.A.grad, layer.lora_A.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.B.grad, layer.lora_B.grad, rtol=1e-4, atol=1e-5)
        assert layer.weight.grad is None
    attached.merge()
    for site, layer in theirs.items():
        layer.eval()  # merges
        torch.testing.assert_close(table.module(site).weight, layer.weight, rtol=0, atol=1e-6)


def test_dropout_is_on_the_input_of_the_update(tiny_backbone, tiny_batch, randomize):
    """Training mode: y + alpha/r B A dropout(x). The frozen path keeps all of x."""
    backbone, batch = tiny_backbone("bert", torch.float64), tiny_batch("bert")
    attached = attach(backbone, [Lora(2, 6.0, 0.5, ("query",), "normal_0.02")], seeds=[3]).train()
    randomize(attached.run(0))
    seen: dict[str, torch.Tensor] = {}
    projection = backbone.encoder.layer[1].attention.self.query
    projection.register_forward_hook(lambda module, args, y: seen.update(x=args[0], y=y))
    attached([batch])
    update: Any = attached.run(0).sites["layer/1/query"]
    stream = attached.streams[0]
    x = seen["x"]
    mask = stream.dropout(torch.ones_like(x), 0.5, "sites.layer/1/query.dropout")
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    expected = F.linear(x, projection.weight, projection.bias) + 3.0 * (x * mask) @ update.A.T @ update.B.T
    torch.testing.assert_close(seen["y"], expected, rtol=0, atol=1e-12)


def test_shared_dropout_is_that_of_loralibs_merged_linear(tiny_backbone, tiny_batch, randomize):
    """GPT-2's query and value in training, alone and behind a wider run: loralib's layer, given our mask for its."""
    batch, wider = tiny_batch("gpt2", 3, 7), tiny_batch("gpt2", 2, 14)
    own, shared = (Lora(2, 6.0, 0.5, ("query", "value"), "kaiming_uniform", which) for which in (False, True))
    for methods, batches, seeds in ([shared], [batch], [5]), ([own, shared], [wider, batch], [4, 5]):
        backbone = tiny_backbone("gpt2", torch.float64)
        attached, k = attach(backbone, methods, seeds=seeds).train(), len(methods) - 1
        randomize(attached.run(k))
        seen: dict[str, torch.Tensor] = {}
        fused: Any = backbone.transformer.h[1].attn.c_attn
        fused.register_forward_hook(lambda module, args, y: seen.update(x=args[0], y=y))  # noqa: B023
        attached(batches)
        x, y = (seen[name][-3:, :7] for name in ("x", "y"))
        query, value = (attached.run(k).at(f"layer.1.{role}") for role in ("query", "value"))
        layer: Any = loralib.MergedLinear(
            16, 48, 2, 6, 0.5, [True, False, True], fan_in_fan_out=True, merge_weights=False, dtype=torch.float64
        )
        factors = {"lora_A": torch.cat([query.A, value.A]), "lora_B": torch.cat([query.B, value.B])}
        layer.load_state_dict({**fused.state_dict(), **factors})
        mask = attached.streams[k].dropout(torch.ones_like(x), 0.5, "sites.layer/1/query.dropout")
        assert set(mask.unique().tolist()) == {0.0, 2.0}
        layer.lora_dropout.forward = lambda x, mask=mask: x * mask
        torch.testing.assert_close(y, layer(x), rtol=0, atol=1e-12)
        weights = torch.randn(y.shape, dtype=torch.float64)
        ours = torch.autograd.grad((y * weights).sum(), [query.A, value.A, query.B, value.B], retain_graph=True)
        theirs = torch.autograd.grad((layer(x.detach()) * weights).sum(), [layer.lora_A, layer.lora_B])
        torch.testing.assert_close(torch.cat(ours[:2]), theirs[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.cat(ours[2:]), theirs[1], rtol=0, atol=1e-12)


def test_masks_are_shared_only_where_that_is_said_and_possible(tiny_backbone):
    for shared in (False, True):
        attached = attach(tiny_backbone("gpt2"), [Lora(2, 6.0, 0.5, SIX, "normal_0.02", shared)]).train()
        q, k, out = (attached.run(0).at(f"layer.0.{role}").dropout for role in ("query", "key", "attention_output"))
        x = torch.ones(2, 6, 16)
        assert torch.equal(q(x), k(x)) == shared
        assert not torch.equal(q(x), out(x))
    with pytest.raises(ValueError, match=r"shared_dropout=true: no two of targets=\['query', 'value'\] .* of bert"):
        attach(tiny_backbone("bert"), [Lora(2, 6.0, 0.5, QUERY_VALUE, "normal_0.02", True)])


def test_initial_values_follow_the_setting():
    """kaiming_uniform(a = sqrt(5)) is uniform within 1/sqrt(in); both start from B = 0."""
    for init, spread, largest in (("kaiming_uniform", 0.05 / 3**0.5, 0.05), ("normal_0.02", 0.02, 1.0)):
        module = LowRank(400, 30, 100, 1.0, 0.0, init)
        assert not module.B.any()
        assert module.A.abs().max() <= largest
        assert module.A.std().item() == pytest.approx(spread, rel=0.02)


class TestMerge:
    @pytest.fixture(params=[(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=["float32", "float64"])
    def precision(self, request):
        return request.param

    @pytest.fixture
    def attached(self, architecture, precision, tiny_backbone, randomize):
        backbone = tiny_backbone(architecture, precision[0])
        targets = (*SIX, "pooler") if architecture == "bert" else SIX
        head = [lambda: ClassificationHead(backbone.config, 3)]
        attached = attach(backbone, [Lora(2, 6.0, 0.1, targets, "normal_0.02")], head)
        randomize(attached.run(0), std=0.1)
        return attached

    def test_logits_stay_and_the_weights_come_back(self, architecture, attached, precision, tiny_batch, snapshot):
        backbone, batch = attached.backbone, tiny_batch(architecture)
        before = snapshot(backbone)
        with torch.no_grad():
            (unmerged,) = attached([batch])
            attached.merge()
            torch.testing.assert_close(attached([batch])[0], unmerged, rtol=0, atol=precision[1])
            attached.unmerge()
            assert torch.equal(attached([batch])[0], unmerged)
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    def test_merged_weights_serve_without_our_code(self, architecture, attached, precision, tiny_batch, tiny_backbone):
        batch = tiny_batch(architecture)
        served = tiny_backbone(architecture, precision[0])
        with torch.no_grad():
            (expected,) = attached([batch])
            attached.merge()
            served.load_state_dict(attached.backbone.state_dict())
            for model in (served, attached.backbone):  # the attached one runs its plain forward as well
                plain = model(**batch)
                logits = attached.run(0).head(plain.last_hidden_state, plain.pooler_output)
                torch.testing.assert_close(logits, expected, rtol=0, atol=precision[1])
            assert (
                served(**batch).last_hidden_state - tiny_backbone(architecture, precision[0])(**batch)[0]
            ).abs().max() > 0.1

    def test_detach_unmerges(self, attached, snapshot):
        before = snapshot(attached.backbone)
        attached.merge()
        backbone = attached.detach()
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    def test_merging_twice_is_refused(self, attached, snapshot):
        attached.merge()
        once = snapshot(attached.backbone)
        with pytest.raises(ValueError, match="merged already"):
            attached.merge()
        assert all(torch.equal(value, once[name]) for name, value in attached.backbone.state_dict().items())

    def test_a_pack_cannot_merge(self, architecture, tiny_backbone):
        attached = attach(tiny_backbone(architecture), [Lora(2, 6.0, 0.1, ("query",), "normal_0.02"), HeadOnly()])
        with pytest.raises(ValueError, match=r"exactly one run .* this pack has 2"):
            attached.merge()

    def test_what_is_not_low_rank_cannot_merge(self, architecture, tiny_backbone):
        with pytest.raises(ValueError, match="BitFit has no module that merges"):
            attach(tiny_backbone(architecture), [BitFit("all")]).merge()
