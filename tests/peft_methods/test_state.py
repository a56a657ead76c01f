"""Saving and loading: what does not fit is refused in one sentence, and nothing is loaded."""

import dataclasses
import json
import resource
import signal
from collections.abc import MutableSequence

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peft_methods.attach import attach
from peft_methods.baselines import Full
from peft_methods.bottleneck import Houlsby
from peft_methods.heads import ClassificationHead
from peft_methods.lora import Lora
from peft_methods.state import (
    copy_trained,
    load_trained,
    read_safetensors,
    save_trained,
    trained_tensors,
    write_safetensors,
)

LORA = Lora(2, 4.0, 0.1, ("query", "value"), "normal_0.02")


@pytest.fixture
def attach_run(tiny_backbone, randomize):
    def build(method=LORA, labels=3, architecture="bert", seed=0, **changes):
        backbone = tiny_backbone(architecture, **changes)
        attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, labels)])
        if not isinstance(method, Full):
            randomize(attached.run(0), seed=seed)
        return attached

    return build


@pytest.fixture
def saved(attach_run, tmp_path):
    path = tmp_path / "run.safetensors"
    save_trained(attach_run(seed=9), path)  # other values than those it is loaded onto
    return path


def assert_refused(attached, path, message, snapshot):
    before = snapshot(attached)
    with pytest.raises(ValueError, match=message) as error:
        load_trained(attached, path)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in attached.state_dict().items())


def test_another_method_is_refused(attach_run, saved, snapshot):
    houlsby = attach_run(Houlsby(2, "relu", "normal", 0.02, True))
    assert_refused(
        houlsby, saved, r"'method': 'Lora'.*the attached run is .*'Houlsby'.*attach the same method", snapshot
    )


def test_another_setting_is_refused(attach_run, saved, snapshot):
    """Equal shapes, but alpha scales the update: the logits would differ without a word."""
    assert_refused(attach_run(Lora(2, 8.0, 0.1, ("query", "value"), "normal_0.02")), saved, "'alpha': 4.0", snapshot)


@pytest.mark.parametrize(
    "changes", [{"architecture": "roberta"}, {"hidden_size": 32}, {"num_hidden_layers": 3}], ids=str
)
def test_another_backbone_is_refused(attach_run, saved, snapshot, changes):
    assert_refused(attach_run(**changes), saved, "attach the same method first", snapshot)


def test_another_number_of_labels_is_refused(attach_run, saved, snapshot):
    message = (
        r"2 tensors do not fit the attached run, first 'head.out_proj.(bias|weight)': given \(3,.*\), expected \(2,"
    )
    assert_refused(attach_run(labels=2), saved, message, snapshot)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_file_is_refused(attach_run, saved, snapshot, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    assert_refused(attach_run(), saved, r"run\.safetensors is not a whole safetensors file", snapshot)


def test_a_missing_tensor_is_refused(attach_run, saved, snapshot):
    with safe_open(saved, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(saved)
    del tensors["sites.layer.1.value.B"]
    save_file(tensors, saved, header)
    assert_refused(attach_run(), saved, r"first 'sites.layer.1.value.B': given nothing, expected \(16, 2\)", snapshot)


def test_a_file_without_description_is_refused(attach_run, saved, snapshot):
    save_file(load_file(saved), saved)
    assert_refused(attach_run(), saved, "holds None", snapshot)


def test_the_header_tells_what_it_is(saved):
    with safe_open(saved, framework="pt") as file:
        description = json.loads(file.metadata()["header"])["description"]
    assert description == {
        **{
            "method": "Lora",
            "rank": 2,
            "alpha": 4.0,
            "dropout": 0.1,
            "targets": ["query", "value"],
            "init_A": "normal_0.02",
        },
        **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2},
    }


def test_the_file_is_small(saved):
    """8 query and value factors of 2 x 16 and a head of 3 x 17: nothing of the backbone's 7,000 numbers."""
    assert 4 * (8 * 32 + 51) < saved.stat().st_size < 4 * (8 * 32 + 51) + 1500


@pytest.mark.parametrize(
    "targets", [("query", "value"), ["query", "value"], OmegaConf.create(["query", "value"])], ids=type
)
def test_targets_may_be_any_sequence(attach_run, saved, tmp_path, targets):
    """YAML gives Hydra's list, Python a tuple: one and the same setting."""
    assert isinstance(targets, MutableSequence | tuple)
    attached = attach_run(Lora(2, 4.0, 0.1, targets, "normal_0.02"))
    load_trained(attached, saved)
    save_trained(attached, tmp_path / "again.safetensors")
    load_trained(attach_run(), tmp_path / "again.safetensors")


def test_one_run_of_a_pack_moves_into_another_pack(tiny_backbone, tiny_batch, randomize, tmp_path):
    other = Houlsby(2, "relu", "normal", 0.02, False)
    first = attach(tiny_backbone("bert", torch.float64), [other, LORA])
    randomize(first)
    save_trained(first, tmp_path / "lora.safetensors", k=1)
    second = attach(tiny_backbone("bert", torch.float64), [LORA, other])
    second.backbone.load_state_dict(first.backbone.state_dict())
    load_trained(second, tmp_path / "lora.safetensors", k=0)
    batch = tiny_batch("bert")
    torch.testing.assert_close(second([batch, batch])[0], first([batch, batch])[1], rtol=0, atol=1e-12)


def test_full_saves_the_backbone_too(attach_run, tmp_path):
    attached = attach_run(Full())
    with torch.no_grad():
        attached.backbone.encoder.layer[0].output.dense.weight += 1.0
    save_trained(attached, tmp_path / "full.safetensors")
    loaded = attach_run(Full())
    load_trained(loaded, tmp_path / "full.safetensors")
    for name, value in attached.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[name], value)


def test_copy_only_one_part(attach_run, snapshot):
    """Starting from another task's run: the method carries over, the output layer does not (other labels)."""
    parent, child = attach_run(labels=3, seed=1), attach_run(labels=2, seed=2)
    head = snapshot(child.run(0).head)
    copy_trained(child, trained_tensors(parent), only="sites.")
    assert all(torch.equal(value, head[name]) for name, value in child.run(0).head.state_dict().items())
    for name, value in trained_tensors(parent).items():
        assert name.startswith("head.") or torch.equal(child.run(0).trained()[name], value)


def test_trained_tensors_are_copies(attach_run):
    attached = attach_run()
    tensors = trained_tensors(attached)
    before = {name: value.clone() for name, value in tensors.items()}
    with torch.no_grad():
        for parameter in attached.run(0).trained().values():
            parameter += 1.0
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())


def test_a_file_from_before_a_young_field_still_loads(tiny_backbone, tmp_path):
    """A field with a default is young; at the default, no file says it, and at another value every one does."""
    old = {"method": "Lora", "rank": 2, "alpha": 4.0, "dropout": 0.1, "targets": ["query", "value"]}
    lora = Lora(2, 4.0, 0.1, ("query", "value"), "normal_0.02")
    for method, young in (lora, {}), (dataclasses.replace(lora, shared_dropout=True), {"shared_dropout": True}):
        save_trained(attach(tiny_backbone("gpt2"), [method]), tmp_path / "x.safetensors")
        _, header = read_safetensors(tmp_path / "x.safetensors")
        sizes = {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 2}
        assert header["description"] == {**old, "init_A": "normal_0.02", **young, **sizes}


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("peft_methods.state.os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors({"x": torch.zeros(3)}, saved, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name], "a temporary file stayed behind"


def test_a_disk_that_is_full_is_an_oserror(saved):
    """The library writing the file reports it with an exception of its own; here the system refuses more than 4 kB."""
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*File too large"):
            write_safetensors({"x": torch.zeros(100_000)}, saved, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
