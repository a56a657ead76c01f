"""Bottleneck adapters against the `adapters` library, and against the equations written out with dropout on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.bottleneck import ACTIVATIONS, Bottleneck, Houlsby, Parallel, Pfeiffer
from peft_methods.heads import ClassificationHead
from peft_methods.layer_norm import NormOffset

FIXTURES = Path(__file__).parent / "fixtures" / "adapters"
# Where the library keeps the adapter of one of our roles, relative to the layer.
HOME = {"attention": "attention.output", "ffn": "output", "ffn_norm": "output"}


def attach_fixture(name: str, activation: str) -> tuple[Attached, dict[str, Tensor], dict[str, str]]:
    """Our modules with the fixture's weights; its tensors; our parameter name -> the library's."""
    description = json.loads((FIXTURES / f"{name}.json").read_text())
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    settings = dict(description["backbone_config"])
    labels, kind = settings.pop("num_labels"), description["backbone"]
    backbone: PreTrainedModel
    if kind == "bert":
        backbone, output_layer = BertModel(BertConfig(**settings)), "base.classifier"
    else:
        backbone = RobertaModel(RobertaConfig(**settings), add_pooling_layer=False)
        output_layer = "base.classifier.out_proj"
    prefix = f"base.{kind}."
    backbone.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    method = (
        Houlsby(8, activation, "truncated_normal", 1e-2, train_layer_norms=False)
        if description["method"] == "houlsby"
        else Pfeiffer(8, activation, "normal", 0.02, skip_layers=0)
    )
    attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, labels)])
    theirs = {}
    with torch.no_grad():
        for ours, parameter in attached.run(0).trained().items():
            where, _, leaf = ours.rpartition(".")
            if where.startswith("head"):
                source = output_layer if where == "head.out_proj" else "base.classifier.dense"
                parameter.copy_(tensors[f"{source}.{leaf}"])
                continue
            _, _, layer, role, projection = where.split(".")
            inner = {"down": "adapter_down.0", "up": "adapter_up"}[projection]
            theirs[ours] = f"{kind}.encoder.layer.{layer}.{HOME[role]}.adapters.a.{inner}.{leaf}"
            parameter.copy_(tensors[f"adapter.{theirs[ours]}"])
    assert len(theirs) == sum(n.startswith("adapter.") for n in tensors), "an adapter of the fixture is unused"
    return attached, tensors, theirs


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("houlsby_bert", "gelu_erf"),
        ("houlsby_roberta", "gelu_erf"),
        ("pfeiffer_bert", "relu"),
        ("pfeiffer_roberta", "relu"),
    ],
)
@pytest.mark.parametrize("train_mode", [False, True])  # dropout is 0: both must give the library's values
def test_logits_and_gradients_equal_the_adapters_library(name, activation, train_mode):
    attached, reference, theirs = attach_fixture(name, activation)
    batch = {"input_ids": reference["input_ids"], "attention_mask": reference["attention_mask"]}
    (logits,) = attached.train(train_mode)([batch])
    loss = F.cross_entropy(logits, reference["labels"])
    loss.backward()
    torch.testing.assert_close(logits, reference["logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, reference["loss"].squeeze(), rtol=0, atol=1e-5)
    trained = attached.run(0).trained()
    for ours, their in theirs.items():
        expected = reference[f"grad.{their}"]
        # Gradients are as small as 1e-4 here, so 1e-5 in absolute terms would prove little.
        torch.testing.assert_close(trained[ours].grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_other_gelu_is_another_function():
    """Papers and libraries say "gelu" for both: the released Houlsby code means tanh, `adapters` means erf."""
    attached, reference, _ = attach_fixture("houlsby_bert", "gelu_tanh")
    (logits,) = attached([{"input_ids": reference["input_ids"], "attention_mask": reference["attention_mask"]}])
    assert (logits - reference["logits"]).abs().max() > 1e-5


def forward_written_out(attached: Attached, batch: dict[str, Tensor]) -> Tensor:
    """The logits of run 0 as the papers' equations, post-LayerNorm Transformer, without a single hook.

    dropout(x, site) multiplies by the run's mask at that place; adapters, offsets and head are the run's own weights.
    """
    base, run, stream, config = attached.backbone, attached.run(0), attached.streams[0], attached.backbone.config
    parallel = run.method if isinstance(run.method, Parallel) else None
    weights: dict[str, Tensor] = {**dict(base.named_parameters()), **{f"run.{n}": p for n, p in run.trained().items()}}

    def dropout(x: Tensor, site: str, p: float = config.hidden_dropout_prob) -> Tensor:
        return x * stream.dropout(torch.ones_like(x), p, site)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str, site: str) -> Tensor:
        gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if f"run.sites.{site}.weight" in weights:
            gain, bias = gain + weights[f"run.sites.{site}.weight"], bias + weights[f"run.sites.{site}.bias"]
        centered = x - x.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt() * gain + bias

    def adapter(x: Tensor, site: str) -> Tensor:
        inside = F.gelu(linear(x, f"run.sites.{site}.down"), approximate="tanh")
        if parallel:
            inside = dropout(inside, f"sites.{site.replace('.', '/')}.dropout", parallel.dropout)
        return linear(inside, f"run.sites.{site}.up")

    def adapted(x: Tensor, y: Tensor, site: str) -> Tensor:
        if f"run.sites.{site}.down.weight" not in weights:
            return y
        return y + parallel.scale * adapter(x, site) if parallel else y + adapter(y, site)

    ids, mask = batch["input_ids"], batch["attention_mask"]
    if config.model_type == "bert":
        positions = torch.arange(ids.shape[1]).expand_as(ids)
    else:
        positions = mask.cumsum(1) * mask + config.pad_token_id
    h = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][positions]
    types = batch.get("token_type_ids", torch.zeros_like(ids))
    h = norm(h + weights["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm", "embedding_norm")
    h = dropout(h, "embeddings.dropout")
    for i in range(config.num_hidden_layers):
        here, site = f"encoder.layer.{i}", f"layer.{i}"

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

        query, key, value = (heads(linear(h, f"{here}.attention.self.{n}")) for n in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        attention = scores.masked_fill(mask[:, None, None] == 0, float("-inf")).softmax(-1)
        attention = dropout(attention, f"{here}.attention.self.weights", config.attention_probs_dropout_prob)
        y = linear((attention @ value).transpose(1, 2).flatten(2), f"{here}.attention.output.dense")
        y = dropout(y, f"{here}.attention.output.dropout")
        y = adapted(h, y, f"{site}.attention")
        h = norm(y + h, f"{here}.attention.output.LayerNorm", f"{site}.attention_norm")
        y = linear(F.gelu(linear(h, f"{here}.intermediate.dense")), f"{here}.output.dense")
        y = dropout(y, f"{here}.output.dropout")
        z = adapted(h, y, f"{site}.ffn") + h
        h = norm(z, f"{here}.output.LayerNorm", f"{site}.ffn_norm")
        if f"run.sites.{site}.ffn_norm.down.weight" in weights:
            h = norm(z + adapter(h, f"{site}.ffn_norm"), f"{here}.output.LayerNorm", "")
    if config.model_type == "bert":
        h = torch.tanh(linear(h[:, 0], "pooler.dense"))
        return linear(dropout(h, "head.dropout"), "run.head.out_proj")
    h = torch.tanh(linear(dropout(h[:, 0], "head.dropout"), "run.head.dense"))
    return linear(dropout(h, "head.inner_dropout"), "run.head.out_proj")


@pytest.mark.parametrize(
    "method",
    [
        Houlsby(5, "gelu_tanh", "normal", 0.3, train_layer_norms=True),
        Houlsby(5, "gelu_tanh", "normal", 0.3, train_layer_norms=False),
        Pfeiffer(5, "gelu_tanh", "normal", 0.3, skip_layers=0),
        Pfeiffer(5, "gelu_tanh", "normal", 0.3, skip_layers=1),
        Parallel(5, "gelu_tanh", "normal", 0.3, 4.0, 0.2, ["ffn"]),
        Parallel(5, "gelu_tanh", "normal", 0.3, 0.5, 0.0, ["attention", "ffn"]),
    ],
    ids=["houlsby", "adapter_h", "pfeiffer", "pfeiffer_dropped", "parallel", "parallel_both"],
)
def test_adapters_sit_after_the_dropout_of_their_sublayer(architecture, method, tiny_backbone, tiny_batch, randomize):
    """Training mode, p = 0.3 everywhere: fails if an adapter sees its sub-layer before the dropout, or after the sum,
    and if any mask is missing, drawn twice or scaled wrongly."""
    backbone = tiny_backbone(architecture, torch.float64, dropout=0.3)
    batch = tiny_batch(architecture, rows=4, width=10)
    attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, 3)], [7]).train()
    randomize(attached.run(0))
    parameters = list(attached.run(0).trained().values())
    (logits,) = attached([batch])
    expected = forward_written_out(attached, batch)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(logits.square().sum(), parameters)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(logits, attached.eval()([batch])[0]), "dropout is off: this test could not fail"


def test_written_out_forward_is_not_blind(tiny_backbone, tiny_batch):
    """The oracle above does see the place of the dropout: the other order gives other logits."""
    backbone, batch = tiny_backbone("bert", torch.float64, dropout=0.3), tiny_batch("bert")
    method = Houlsby(5, "gelu_tanh", "normal", 0.3, train_layer_norms=False)
    attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, 3)]).train()
    right = forward_written_out(attached, batch)
    output = backbone.encoder.layer[1].output
    adapter = attached.run(0).sites["layer/1/ffn"]
    output.dropout._forward_hooks.popitem()  # the adapter
    output.dense.register_forward_hook(lambda module, args, y: adapter(args[0], y))
    assert (attached([batch])[0] - right).abs().max() > 1e-4


def test_norm_offset_equals_the_norm_with_other_gain_and_bias(randomize):
    frozen, moved, z = nn.LayerNorm(6, eps=1e-3), nn.LayerNorm(6, eps=1e-3), torch.randn(2, 3, 6)
    offset: Any = NormOffset(6)
    randomize(frozen)
    randomize(offset, seed=1)
    with torch.no_grad():
        moved.weight.copy_(frozen.weight + offset.weight)
        moved.bias.copy_(frozen.bias + offset.bias)
    torch.testing.assert_close(offset(z, frozen), moved(z))
    moved(z).square().sum().backward()
    offset(z, frozen).square().sum().backward()
    torch.testing.assert_close(offset.weight.grad, moved.weight.grad)
    torch.testing.assert_close(offset.bias.grad, moved.bias.grad)


@pytest.mark.parametrize(("init", "largest"), [("truncated_normal", 0.02), ("normal", 0.08)])
def test_initial_scale(init, largest):
    """Truncated at two standard deviations (TensorFlow's truncated_normal_initializer), or not; zero biases."""
    block = Bottleneck(200, 100, "relu", init, 0.01)
    for projection in (block.down, block.up):
        assert projection.weight.abs().max() <= largest
        assert (projection.weight.abs().max() > 0.02) == (init == "normal")
        # A normal cut at 2 sigma has standard deviation 0.8796 sigma; 20,000 draws give it to 1.5 %.
        expected = 0.01 * (0.8796 if init == "truncated_normal" else 1.0)
        assert projection.weight.std().item() == pytest.approx(expected, rel=0.015)
        assert not projection.bias.any()


@pytest.mark.parametrize(
    ("name", "at_one"), [("gelu_erf", 0.841344746), ("gelu_tanh", 0.841191991), ("relu", 1.0), ("swish", 0.731058579)]
)
def test_activations(name, at_one):
    """f(1) to nine digits: Phi(1); 0.5 (1 + tanh(sqrt(2/pi) 1.044715)); 1; sigmoid(1)."""
    assert ACTIVATIONS[name](torch.tensor(1.0, dtype=torch.float64)).item() == pytest.approx(at_one, abs=1e-9)


def test_skipped_layers_have_no_adapter(architecture, tiny_backbone):
    backbone = tiny_backbone(architecture, num_hidden_layers=4)
    sites = attach(backbone, [Pfeiffer(2, "relu", "normal", 0.02, skip_layers=3)]).run(0).sites
    assert list(sites) == ["layer/3/ffn_norm"]


def test_parallel_adapters_beside_no_sublayer_are_refused(architecture, tiny_backbone):
    with pytest.raises(ValueError, match=r"sublayers is empty: name attention, ffn or both; change method\.sublayers"):
        attach(tiny_backbone(architecture), [Parallel(5, "relu", "lora", 0.0, 4.0, 0.1, ())])
    with pytest.raises(ValueError, match=r"no sub-layer \['cross'\]"):
        attach(tiny_backbone(architecture), [Parallel(5, "relu", "lora", 0.0, 4.0, 0.1, ("cross",))])
