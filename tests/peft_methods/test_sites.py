"""The site table: every linear map and every LayerNorm of a backbone's layers is one site, and nothing else is."""

import pytest
from torch import nn
from transformers import RobertaModel

from peft_methods.sites import ARCHITECTURES, Sites

ROLES = ["attention_output", "ffn_in", "ffn_out", "key", "query", "value"]


def test_every_architecture_is_under_test():
    """tests/conftest.py: a new entry needs a tiny backbone, and then gets the contract tests for free."""
    assert set(ARCHITECTURES) == {"bert", "roberta"}


def test_sites_cover_the_backbone(architecture, tiny_backbone):
    backbone = tiny_backbone(architecture)
    table = Sites(backbone)
    for kind, module_type in (("projection", nn.Linear), ("norm", nn.LayerNorm)):
        expected = {name for name, module in backbone.named_modules() if isinstance(module, module_type)}
        assert sorted(site.path for site in table.all if site.kind == kind) == sorted(expected)
    assert len({site.name for site in table.all}) == len(table.all)


def test_hooked_modules_run_once_a_forward_and_batch_first(architecture, tiny_backbone, tiny_batch):
    backbone = tiny_backbone(architecture)
    table = Sites(backbone)
    calls: dict[str, list[tuple[int, int]]] = {}
    for site in table.all:

        def count(module, args, output, name=site.name):
            width = (args[0] if name.endswith("_input") else output).shape[-1]
            calls.setdefault(name, []).append((len(args[0]), width))

        table.module(site).register_forward_hook(count)
    backbone(**tiny_batch(architecture, rows=5))
    assert calls == {site.name: [(5, site.width)] for site in table.all}


def test_widths(architecture, tiny_backbone):
    table = Sites(tiny_backbone(architecture, hidden_size=12, intermediate_size=20, num_attention_heads=2))
    widths = {
        role: (table.by_name[f"layer.1.{role}"].in_features, table.by_name[f"layer.1.{role}"].width) for role in ROLES
    }
    square = dict.fromkeys(("query", "key", "value", "attention_output"), (12, 12))
    assert widths == {**square, "ffn_in": (12, 20), "ffn_out": (20, 12)}
    assert {site.width for site in table.all if site.kind in ("sublayer", "norm")} == {12}
    assert {role: table.by_name[f"layer.1.{role}_input"].width for role in ROLES} == {
        role: in_features for role, (in_features, _) in widths.items()
    }


def test_selection_by_role_and_layer(architecture, tiny_backbone):
    table = Sites(tiny_backbone(architecture, num_hidden_layers=3))
    assert [site.name for site in table.projections(["value"], [0, 2])] == ["layer.0.value", "layer.2.value"]
    assert [site.name for site in table.sublayers(["ffn"], [1])] == ["layer.1.ffn"]
    assert [site.name for site in table.norms(["ffn_norm"])] == [f"layer.{i}.ffn_norm" for i in range(3)]
    assert len(table.norms()) == 7
    with pytest.raises(ValueError, match=r"layers \[3\] do not exist: the backbone has layers 0 to 2"):
        table.norms(layers=[2, 3])
    with pytest.raises(ValueError, match=r"no sub-layer \['cross'\] on .*known: attention, ffn"):
        table.sublayers(["cross"])


def test_pooler_is_a_site_only_where_it_is_built(tiny_backbone, tiny_config):
    assert "pooler" in Sites(tiny_backbone("bert")).by_name
    assert "pooler" not in Sites(tiny_backbone("roberta")).by_name
    assert "pooler" in Sites(RobertaModel(tiny_config("roberta"))).by_name
