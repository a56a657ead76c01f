"""The site table: every linear map and every norm of a backbone's layers is one site, and nothing else is."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import RobertaModel
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from peft_methods.architectures import ARCHITECTURES
from peft_methods.sites import Sites
from tests.conftest import ALL_ARCHITECTURES, ENCODER_DECODERS

ROLES = ["attention_output", "ffn_in", "ffn_out", "key", "query", "value"]


@pytest.fixture(params=ALL_ARCHITECTURES)
def architecture(request):
    return request.param


def test_every_architecture_is_under_test(tiny_config):
    """tests/conftest.py: a new entry needs a tiny backbone, and then gets the contract tests for free."""
    assert set(ARCHITECTURES) == {tiny_config(architecture).model_type for architecture in ALL_ARCHITECTURES}


def test_sites_cover_the_backbone(architecture, tiny_backbone):
    table = Sites(tiny_backbone(architecture))
    modules = {name: module for name, module in table.base.named_modules() if name != "lm_head"}
    for kind, types in (("projection", (nn.Linear, Conv1D)), ("norm", (nn.LayerNorm, T5LayerNorm))):
        expected = {name for name, module in modules.items() if isinstance(module, types)}
        assert {site.path for site in table.all if site.kind == kind} == expected
    assert len({site.name for site in table.all}) == len(table.all)


def test_columns_of_a_fused_map_are_disjoint_and_cover_it(tiny_backbone):
    """GPT-2's c_attn: query, key and value in this order, as its forward splits them."""
    table = Sites(tiny_backbone("gpt2"))
    columns = [table.by_name[f"layer.1.{role}"].columns for role in ("query", "key", "value")]
    assert columns == [(0, 16), (16, 32), (32, 48)]
    assert {table.by_name[f"layer.1.{role}"].path for role in ("query", "key", "value")} == {"h.1.attn.c_attn"}


def test_hooked_modules_run_once_a_forward_and_batch_first(architecture, tiny_backbone, tiny_batch):
    """But for DeBERTa's query and key, which the table says take no packs for this very reason."""
    table = Sites(tiny_backbone(architecture))
    calls: dict[str, list[int]] = {}
    seen = [s for s in table.all if s.kind not in ("embeddings", "attention")]
    for site in seen:

        def count(module, args, output, name=site.name):
            hidden = output[0] if isinstance(output, tuple) else output
            calls.setdefault(name, []).append(len(hidden))

        table.module(site).register_forward_hook(count)
    batch = tiny_batch(architecture, rows=5)
    batch.pop("boundary", None)
    table.backbone(**batch)
    once = {site.name: [5] for site in seen}
    for site in seen:
        if site.role in table.architecture.no_packs:
            # 8 relative embeddings, normalized once for all layers; projected in each, beside the 5 rows
            once[site.name] = [8] if site.role == "relative_norm" else [5, 1]
    assert calls == once


def test_widths(architecture, tiny_backbone):
    table = Sites(tiny_backbone(architecture, hidden_size=12, intermediate_size=20, num_attention_heads=2))
    stack = "decoder." if architecture in ENCODER_DECODERS else ""
    widths = {
        role: (table.by_name[f"{stack}layer.1.{role}"].in_features, table.by_name[f"{stack}layer.1.{role}"].width)
        for role in ROLES
    }
    square = dict.fromkeys(("query", "key", "value", "attention_output"), (12, 12))
    assert widths == {**square, "ffn_in": (12, 20), "ffn_out": (20, 12)}
    assert {site.width for site in table.all if site.kind in ("sublayer", "norm", "block", "embeddings")} == {12}
    for site in table.all:
        if site.kind == "input":
            assert site.width == table.by_name[site.name.removesuffix("_input")].in_features


def test_weight_and_bias_are_the_projection(architecture, tiny_backbone, tiny_batch, randomize):
    """Whichever way round, and fused with whatever else, the map lies in the backbone: y = x W^T + b at every site."""
    table = Sites(tiny_backbone(architecture, torch.float64))
    randomize(table.backbone)
    seen = {}
    for site in (projections := [site for site in table.all if site.kind == "projection"]):
        table.module(site).register_forward_hook(
            lambda module, args, y, path=site.path: seen.update({path: (args[0], y)})
        )
    batch = tiny_batch(architecture, rows=2)
    batch.pop("boundary", None)
    table.backbone(**batch)
    for site in projections:
        x, y = seen[site.path]
        weight, bias = table.weight(site), table.bias(site)
        assert weight.shape == (site.width, site.in_features)
        torch.testing.assert_close(nn.functional.linear(x, weight, bias), y[..., slice(*site.columns or (None,))])
        assert not weight.requires_grad
    assert all(table.bias(site) is None for site in projections) == architecture.startswith("t5")


def test_weight_and_bias_are_views(architecture, tiny_backbone):
    table = Sites(tiny_backbone(architecture))
    site = table.by_name[f"{'decoder.' if architecture in ENCODER_DECODERS else ''}layer.1.value"]
    for view in (table.weight(site), table.bias(site)):
        if view is not None:
            view.fill_(7.0)
    module: Any = table.module(site)
    columns = slice(*site.columns or (None,))
    assert (module.weight == 7.0).sum() == site.width * site.in_features
    assert module.bias is None or (module.bias[columns] == 7.0).all()


def test_whose_tokens(tiny_backbone):
    """A cross-attention computes its keys and values from the encoder's tokens."""
    for architecture in ENCODER_DECODERS:
        table = Sites(tiny_backbone(architecture))
        assert table.by_name["encoder.layer.0.query"].tokens == "input"
        assert table.by_name["decoder.layer.0.cross_query"].tokens == "target"
        assert table.by_name["decoder.layer.0.cross_key"].tokens == "input"
        assert table.by_name["decoder.layer.0.ffn"].tokens == "target"


def test_selection_by_role(tiny_backbone):
    table = Sites(tiny_backbone("bert", num_hidden_layers=3))
    assert [site.name for site in table.projections(["value"])] == [f"layer.{i}.value" for i in range(3)]
    assert [site.name for site in table.sublayers(["ffn"])] == [f"layer.{i}.ffn" for i in range(3)]
    assert [site.name for site in table.norms_after_ffn(1)] == ["layer.1.ffn_norm", "layer.2.ffn_norm"]
    assert len(table.norms()) == 7
    with pytest.raises(ValueError, match=r"no sub-layer \['cross'\] on bert \(known: attention, ffn\)"):
        table.sublayers(["cross"])


def test_pooler_is_a_site_only_where_it_is_built(tiny_backbone, tiny_config):
    assert "pooler" in Sites(tiny_backbone("bert")).by_name
    assert "pooler" not in Sites(tiny_backbone("roberta")).by_name
    assert "pooler" in Sites(RobertaModel(tiny_config("roberta"))).by_name
