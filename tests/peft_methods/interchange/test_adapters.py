"""Folders of the adapters library. It cannot be installed beside ours: fixtures/adapters holds tensors and logits of
its own; names and settings below are spelled out from its 1.3.0 (`loading.py`, `head_utils.py`, the models' mixins).
Our folders were loaded in it once, on all six architectures, and its folders here: logits equal to 1e-7.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from peft_methods.attach import attach
from peft_methods.bottleneck import AdapterL, Houlsby, Parallel, Pfeiffer, SharedPfeiffer
from peft_methods.heads import ClassificationHead
from peft_methods.interchange import export_adapters, import_adapters, read_adapters
from peft_methods.lora import Lora

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapters"
HOULSBY = Houlsby(3, "gelu_tanh", "normal", 0.02, False)
PFEIFFER = Pfeiffer(3, "swish", "normal", 0.02, 1)
PARALLEL = Parallel(3, "gelu_erf", "normal", 0.02, 2.5, 0.1, ("attention", "ffn"))
ADAPTER_L = AdapterL(3, "relu", "normal", 0.02)
POST_NORM, PRE_NORM = ("bert", "roberta", "deberta_v2", "bart"), ("gpt2", "t5", "t5_gated")
CASES = [
    *((architecture, HOULSBY) for architecture in POST_NORM + PRE_NORM),
    *((architecture, method) for architecture in POST_NORM for method in (PFEIFFER, PARALLEL)),
    *((architecture, ADAPTER_L) for architecture in PRE_NORM),
    ("bert", Parallel(5, "relu", "normal", 0.02, 4.0, 0.0, ("ffn",))),
]


@pytest.fixture
def attached_run(tiny_backbone, randomize):
    def build(architecture: str, method: Any) -> Any:
        backbone = tiny_backbone(architecture, torch.float64)
        encoder = architecture in ("bert", "roberta", "deberta_v2")
        attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, 4)] if encoder else None)
        randomize(attached.run(0))
        return attached

    return build


def logits_of(attached: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return attached([batch])[0]


def fixture_folder(name: str, folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A backbone of the fixture, and the folder that save_adapter and save_head would have written for it."""
    description, tensors = (
        json.loads((FIXTURES / f"{name}.json").read_text()),
        load_file(FIXTURES / f"{name}.safetensors"),
    )
    settings, kind = dict(description["backbone_config"]), description["backbone"]
    labels = settings.pop("num_labels")
    backbone = BertModel(BertConfig(**settings)) if kind == "bert" else RobertaModel(RobertaConfig(**settings), False)

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

    backbone.load_state_dict(under(f"base.{kind}."))
    about = {
        "model_type": kind,
        "hidden_size": 32,
        "name": "a",
        "model_name": None,
        "model_class": f"{kind.title()}ForSequenceClassification",
        "version": "adapters.1.3.0",
    }
    folder.mkdir()
    save_file(under("adapter."), folder / "adapter.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(about | {"config": description["adapter_config"]}))
    save_file(
        {f"classifier.{key}": t for key, t in under("base.classifier.").items()}, folder / "model_head.safetensors"
    )
    # A head of transformers' own has no configuration and no name there.
    (folder / "head_config.json").write_text(json.dumps(about | {"config": None, "name": None, "num_labels": labels}))
    return backbone.eval(), tensors


@pytest.mark.parametrize("name", ["houlsby_bert", "houlsby_roberta", "pfeiffer_bert", "pfeiffer_roberta"])
def test_the_librarys_own_tensors_give_its_logits(name, tmp_path):
    backbone, reference = fixture_folder(name, tmp_path / "theirs")
    batch = {key: reference[key] for key in ("input_ids", "attention_mask")}
    attached = import_adapters(tmp_path / "theirs", backbone)
    torch.testing.assert_close(logits_of(attached, batch), reference["logits"], rtol=0, atol=1e-6)
    export_adapters(attached, tmp_path / "ours", "a")
    theirs, ours = (load_file(tmp_path / folder / "adapter.safetensors") for folder in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    configs = [json.loads((tmp_path / f / "adapter_config.json").read_text())["config"] for f in ("theirs", "ours")]
    assert {key: configs[0].get(key, configs[1][key]) for key in configs[1]} == configs[1]


@pytest.mark.parametrize(("architecture", "method"), CASES, ids=str)
def test_round_trip(architecture, method, attached_run, tiny_backbone, tiny_batch, tmp_path):
    attached, batch = attached_run(architecture, method), tiny_batch(architecture, rows=4)
    export_adapters(attached, tmp_path / "run", "task")
    again = import_adapters(tmp_path / "run", tiny_backbone(architecture, torch.float64))
    assert again.run(0).method == method
    assert torch.equal(logits_of(again, batch), logits_of(attached, batch))
    assert {n: p.shape for n, p in again.run(0).trained().items()} == {
        n: p.shape for n, p in attached.run(0).trained().items()
    }


def test_a_shared_adapter_is_written_once_a_layer(attached_run, tiny_backbone, tiny_batch, tmp_path):
    attached, batch = attached_run("bert", SharedPfeiffer(3, "relu", "normal", 0.02)), tiny_batch("bert")
    export_adapters(attached, tmp_path / "run", "task")
    again = import_adapters(tmp_path / "run", tiny_backbone("bert", torch.float64))
    assert again.run(0).method == Pfeiffer(3, "relu", "normal", 0.02, 0)
    assert torch.equal(logits_of(again, batch), logits_of(attached, batch))


@pytest.mark.parametrize(
    ("architecture", "places"),
    [
        ("bert", ["bert.encoder.layer.1.attention.output", "bert.encoder.layer.1.output"]),
        ("roberta", ["roberta.encoder.layer.1.attention.output", "roberta.encoder.layer.1.output"]),
        ("deberta_v2", ["deberta.encoder.layer.1.attention.output", "deberta.encoder.layer.1.output"]),
        ("gpt2", ["transformer.h.1.attention_adapters", "transformer.h.1.output_adapters"]),
        ("t5", [f"transformer.{s}.block.1.layer.{n}" for s, n in (("encoder", 0), ("encoder", 1), ("decoder", 2))]),
        ("bart", ["model.encoder.layers.1.attention_adapters", "model.decoder.layers.1.output_adapters"]),
    ],
)
def test_names_are_the_librarys(architecture, places, attached_run, tmp_path):
    export_adapters(attached_run(architecture, HOULSBY), tmp_path / "run", "task")
    tensors = load_file(tmp_path / "run" / "adapter.safetensors")
    for place in places:
        shapes = {"adapter_down.0.weight": (3, 16), "adapter_down.0.bias": (3,)}
        shapes |= {"adapter_up.weight": (16, 3), "adapter_up.bias": (16,)}
        for leaf, shape in shapes.items():
            assert tensors[f"{place}.adapters.task.{leaf}"].shape == shape


def test_settings_are_the_librarys(attached_run, tmp_path):
    """Those of its `double_seq_bn`, `seq_bn` and `par_bn`, in which original_ln_after holds unless said otherwise."""
    expected: dict[Any, dict[str, Any]] = {
        HOULSBY: {"mh_adapter": True, "output_adapter": True, "original_ln_before": False, "non_linearity": "gelu_new"},
        PFEIFFER: {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "leave_out": [0]},
        PARALLEL: {"mh_adapter": True, "is_parallel": True, "scaling": 2.5, "non_linearity": "gelu", "dropout": 0.1},
    }
    for i, (method, settings) in enumerate(expected.items()):
        export_adapters(attached_run("bert", method), tmp_path / str(i), "task")
        config = json.loads((tmp_path / str(i) / "adapter_config.json").read_text())["config"]
        assert {key: config[key] for key in settings} == settings
        assert (config["original_ln_after"], config["residual_before_ln"]) == (True, True)
        assert int(16 // config["reduction_factor"]) == 3  # how the library takes m from it


def test_layers_left_out_count_through_both_stacks(attached_run, tmp_path):
    export_adapters(attached_run("bart", PFEIFFER), tmp_path / "run", "task")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["config"]
    assert config["leave_out"] == [0, 2]  # the first of two layers in the encoder, and in the decoder


@pytest.mark.parametrize(
    ("architecture", "maps", "settings"),
    [
        ("bert", ["1"], {"layers": 1, "activation_function": None, "use_pooler": True}),
        ("roberta", ["1", "4"], {"layers": 2, "activation_function": "tanh", "use_pooler": False}),
        ("deberta_v2", ["1", "4"], {"layers": 2, "activation_function": "gelu", "use_pooler": False}),
    ],
)
def test_heads_are_the_librarys(architecture, maps, settings, attached_run, tmp_path):
    export_adapters(attached_run(architecture, HOULSBY), tmp_path / "run", "task")
    tensors = load_file(tmp_path / "run" / "model_head.safetensors")
    assert tensors.keys() == {f"heads.task.{index}.{kind}" for index in maps for kind in ("weight", "bias")}
    head = json.loads((tmp_path / "run" / "head_config.json").read_text())
    assert {key: head["config"][key] for key in settings} == settings
    assert head["config"]["num_labels"] == 4
    assert head["model_class"].endswith("AdapterModel")


@pytest.mark.parametrize(
    ("architecture", "method", "message"),
    [
        ("bert", Lora(2, 4.0, 0.0, ("query",), "kaiming_uniform"), "Lora is no bottleneck: .*export_peft"),
        ("bert", Houlsby(2, "relu", "normal", 0.02, True), "train_layer_norms=True: adapters has no layout"),
        ("gpt2", PARALLEL, "gpt2 normalizes before its sub-layers"),
    ],
)
def test_an_export_that_the_library_cannot_hold_is_refused(architecture, method, message, attached_run, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        export_adapters(attached_run(architecture, method), tmp_path / "run", "task")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_name_with_a_dot_is_refused(attached_run, tmp_path):
    with pytest.raises(ValueError, match=r"name='a\.b': expected letters, digits"):
        export_adapters(attached_run("bert", HOULSBY), tmp_path / "run", "a.b")


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    inner = content["config"] if "config" in content and not {*values} & {*content} else content
    path.write_text(json.dumps(content | values if inner is content else content | {"config": inner | values}))


def lose(path: Path, key: str, add: str | None = None) -> None:
    tensors = load_file(path)
    tensor = tensors.pop(key)
    save_file(tensors if add is None else tensors | {add: tensor}, path)


DOWN = "bert.encoder.layer.1.output.adapters.task.adapter_down.0.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change(f / "adapter_config.json", use_gating=True), "use_gating=True has no counterpart here"),
        (lambda f: change(f / "adapter_config.json", output_adapter=False), "output_adapter=False .*expected True"),
        (lambda f: change(f / "adapter_config.json", inv_adapter="nice"), "inv_adapter='nice' has no counterpart"),
        (lambda f: change(f / "adapter_config.json", phm_layer=True), "phm_layer=True has no counterpart"),
        (lambda f: change(f / "adapter_config.json", scaling="learned"), "scaling='learned' has no counterpart"),
        (lambda f: change(f / "adapter_config.json", leave_out=[1]), r"leave_out=\[1\] .*expected \[\] for Houlsby"),
        (lambda f: change(f / "adapter_config.json", something_new=2), "something_new=2 has no counterpart here"),
        (lambda f: change(f / "adapter_config.json", non_linearity="leakyrelu"), "non_linearity='leakyrelu' has no"),
        (lambda f: change(f / "adapter_config.json", leave_out=3), "a setting or tensor is of a wrong kind"),
        (lambda f: change(f / "adapter_config.json", architecture="lora"), "holds no bottleneck"),
        (lambda f: change(f / "adapter_config.json", model_type="gpt2"), "model_type is 'gpt2', this backbone's is"),
        (lambda f: change(f / "adapter_config.json", hidden_size=32), "hidden_size is 32, this backbone's is 16"),
        (lambda f: change(f / "adapter_config.json", name="other"), "expected the adapters of 'other'"),
        (lambda f: lose(f / "adapter.safetensors", DOWN), r"layer.1.ffn.down.weight is missing, expected \(3, 16\)"),
        (
            lambda f: lose(f / "adapter.safetensors", DOWN, "bert.encoder.layer.9.x"),
            "layer.9.x has no place in Houlsby",
        ),
        (lambda f: (f / "adapter.safetensors").rename(f / "pytorch_adapter.bin"), "use_safetensors=True"),
        (lambda f: change(f / "head_config.json", use_pooler=False), "use_pooler=False, expected True on bert"),
        (lambda f: change(f / "head_config.json", layers=2), "layers=2, expected 1 on bert"),
        (lambda f: lose(f / "model_head.safetensors", "heads.task.1.bias"), r"head.out_proj.bias is missing"),
        (lambda f: (f / "model_head.safetensors").unlink(), "model_head.safetensors is missing"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_attached(
    spoil, message, attached_run, tiny_backbone, tmp_path, snapshot
):
    export_adapters(attached_run("bert", HOULSBY), tmp_path / "run", "task")
    spoil(tmp_path / "run")
    backbone = tiny_backbone("bert", torch.float64)
    before = snapshot(backbone)
    with pytest.raises(ValueError, match=message) as error:
        import_adapters(tmp_path / "run", backbone)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "run") in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    attach(backbone, [HOULSBY])  # nothing is attached yet: this would be refused


def test_activations_of_the_time_before_versions(attached_run, tiny_backbone, tmp_path):
    """The library renames them where adapter_config.json has no version: `gelu` was the tanh approximation."""
    export_adapters(attached_run("bert", Houlsby(3, "gelu_erf", "normal", 0.02, False)), tmp_path / "run", "task")
    path = tmp_path / "run" / "adapter_config.json"
    content = json.loads(path.read_text())
    del content["version"]
    path.write_text(json.dumps(content))
    method: Any = read_adapters(tmp_path / "run", tiny_backbone("bert", torch.float64)).method
    assert method.activation == "gelu_tanh"
