"""Pickled weights give the model that their tensors make, are converted once, and run nothing.

The oracle is torch.load of the same file; the digest is made here a second time, from torch's tensors.
"""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

from peft_bench.backbones import conversion, hashes, location
from peft_bench.backbones.conversion import converted
from peft_bench.backbones.hashes import tensors_digest
from peft_bench.backbones.loading import _load, load_backbone
from peft_bench.backbones.location import BackboneError, weights_digest
from peft_bench.backbones.weight_files import published_hashes, weight_files
from peft_bench.config.schema import BackboneConfig, ScaleConfig

SMALL = ScaleConfig(name="small", data="published")
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFT_BENCH_CACHE", str(tmp_path / "cache"))
    forget()
    return tmp_path / "cache"


def forget() -> None:
    """As another process would find it."""
    for known in (conversion._converted, hashes._sha256, weights_digest, location._published_folder, _load):
        known.cache_clear()


def digest_of(tensors: Tensors) -> str:
    """The digest as its docstring states it, from tensors in memory."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{json.dumps([name, DTYPES[tensor.dtype], [*tensor.shape]])}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def stored(kind: str) -> Tensors:
    """A few tensors of one kind, some of which share their bytes."""
    torch.manual_seed(0)
    table = torch.randn(40, 6)
    if kind == "bfloat16":
        table = table.bfloat16()
    return {"z": torch.arange(5), "shared": table, "tied": table, "part": table[3:9], "turned": table.T, "a": table + 1}


def write(folder: Path, tensors: Tensors, files: int = 1, legacy: bool = False) -> Path:
    """pytorch_model.bin, or so many files with their index."""
    folder.mkdir(exist_ok=True)
    if files == 1:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        return folder
    names, index = [*tensors], dict[str, str]()
    for i in range(files):
        file = f"pytorch_model-{i + 1:05}-of-{files:05}.bin"
        torch.save({name: tensors[name] for name in names[i::files]}, folder / file)
        index |= dict.fromkeys(names[i::files], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def convert(folder: Path) -> conversion.Conversion:
    return converted(tuple(weight_files(folder)))


def read(made: conversion.Conversion) -> Tensors:
    return {name: t for file in sorted(made.folder.glob("*.safetensors")) for name, t in load_file(file).items()}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize(("files", "legacy"), [(1, False), (1, True), (3, False)])
def test_every_tensor_survives_with_its_name_and_its_bits(tmp_path, monkeypatch, kind, files, legacy):
    monkeypatch.setattr(conversion, "_SHARD_BYTES", 1500)  # several files are written
    tensors = stored(kind)
    made = convert(write(tmp_path / "one", tensors, files, legacy))
    assert len([*made.folder.glob("*.safetensors")]) > 1
    assert read(made).keys() == tensors.keys()
    for name, tensor in read(made).items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name]), name
    assert made.tensors == digest_of(tensors)


def test_the_digest_follows_the_tensors_and_not_their_files(tmp_path):
    tensors = stored("float32")
    digests = {
        convert(write(tmp_path / f"{n}{legacy}", tensors, n, legacy)).tensors
        for n, legacy in [(1, False), (1, True), (2, False)]
    }
    save_file({name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}, tmp_path / "s")
    assert digests == {tensors_digest([tmp_path / "s"])} == {digest_of(tensors)}
    changes: list[Tensors] = [
        {"z": tensors["z"] + 1}, {"z": tensors["z"].reshape(5, 1)}, {"z": tensors["z"].int()},
        {"y": tensors["z"].clone()},
    ]  # fmt: skip
    for change in changes:
        save_file({"z": tensors["z"].clone()} | change, tmp_path / "changed")
        save_file({"z": tensors["z"]}, tmp_path / "as_it_was")
        assert tensors_digest([tmp_path / "changed"]) != tensors_digest([tmp_path / "as_it_was"]), change


def checkpoint(folder: Path, name: str) -> Tensors:
    """A tiny T5 1.1 or BART with its tokenizer, its weights yet to be written: the state_dict, by published names."""
    micro = location.MICRO_BACKBONES / {"t5_gated": "micro_t5_large_lm", "bart": "micro_bart"}[name]
    folder.mkdir()
    for file in micro.iterdir():
        if file.name not in ("model.safetensors", "pretraining.json"):
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(micro / "model.safetensors")
    if name == "bart":
        tensors = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    for side in ("encoder", "decoder"):  # as published: one storage under three names
        tensors[f"{side}.embed_tokens.weight"] = tensors["shared.weight"]
    return tensors


def load(folder: Path, model_type: str, dtype: str = "float32") -> Any:
    backbone = BackboneConfig(
        name="mine", model_type=model_type, hub_id="none/mine", pooler=False, dtype=dtype, architecture={}
    )
    return load_backbone(backbone, SMALL, str(folder), torch.device("cpu"), 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["t5_gated", "bart"])
def test_all_forms_load_to_the_model_that_torch_loads(tmp_path, name, dtype):
    model_type = name.partition("_")[0]
    folders = {form: tmp_path / form for form in ("safetensors", "bin", "legacy", "sharded", "sharded_safetensors")}
    for form, folder in folders.items():
        tensors = checkpoint(folder, name)
        if form.endswith("safetensors"):
            alone = {key: t.clone() for key, t in tensors.items()}
            if form == "safetensors":
                save_file(alone, folder / "model.safetensors", {"format": "pt"})
            else:
                for i in (0, 1):
                    part = {key: alone[key] for key in sorted(alone)[i::2]}
                    save_file(part, folder / f"model-{i}.safetensors", {"format": "pt"})
                index = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(sorted(alone))}
                (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        else:
            write(folder, tensors, 3 if form == "sharded" else 1, form == "legacy")
    models = {form: load(folder, model_type, dtype) for form, folder in folders.items()}
    theirs = torch.load(folders["bin"] / "pytorch_model.bin", weights_only=True)
    if model_type == "t5":
        oracle: Any = T5ForConditionalGeneration(models["bin"].model.config)
        oracle.lm_head.weight = torch.nn.Parameter(torch.empty_like(oracle.lm_head.weight))
        oracle.load_state_dict(theirs, strict=True)
    else:
        oracle = BartForConditionalGeneration(models["bin"].model.config)
        oracle.model.load_state_dict(theirs, strict=True)
    oracle.to(getattr(torch, dtype))
    for form, loaded in models.items():
        state = loaded.model.state_dict()
        assert state.keys() == oracle.state_dict().keys(), form
        for key, tensor in oracle.state_dict().items():
            assert torch.equal(state[key], tensor), (form, key)
    if model_type == "t5":
        assert not torch.equal(models["bin"].model.lm_head.weight, models["bin"].model.shared.weight)
    assert {models[form].sha256 for form in ("bin", "legacy", "sharded")} == {digest_of(theirs)}
    file = folders["safetensors"] / "model.safetensors"
    assert models["safetensors"].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_output_layer_that_a_pickle_lacks_is_missed(tmp_path):
    tensors = checkpoint(tmp_path / "t5", "t5_gated")
    del tensors["lm_head.weight"]
    write(tmp_path / "t5", tensors)
    with pytest.raises(BackboneError, match=r"lacks 1 tensors of the backbone, lm_head\.weight first"):
        load(tmp_path / "t5", "t5")


def test_a_second_process_reads_no_pickle(tmp_path, monkeypatch, cache):
    folder = write(tmp_path / "one", stored("float32"))
    first = convert(folder)
    sha256 = published_hashes(folder)["pytorch_model.bin"]
    assert sha256 == hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    assert first.folder == cache / "converted" / sha256
    forget()
    digested: list[str] = []
    real = hashlib.file_digest

    def listed(file: Any, name: str) -> Any:
        digested.append(file.name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", listed)
    monkeypatch.setattr(torch, "load", None)
    assert convert(folder) == first
    assert [Path(name).name for name in digested] == ["model.safetensors.index.json"]


def test_another_pickle_at_the_same_place_is_another_checkpoint(tmp_path):
    tensors = stored("float32")
    first = convert(write(tmp_path / "one", tensors))
    file = tmp_path / "one" / "pytorch_model.bin"
    before = file.stat()
    write(tmp_path / "one", tensors | {"a": tensors["a"] + 1})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time
    for process in ("this", "the next"):
        again = convert(tmp_path / "one")
        assert again.folder != first.folder, process
        assert again.tensors == digest_of(tensors | {"a": tensors["a"] + 1})
        forget()


def damaged(folder: Path, damage: str) -> None:
    shard = folder / "model-00001.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "one bit":
        content[-1] ^= 1
    if damage == "truncated":
        del content[-5:]
    if damage == "no header":
        content[:] = b"\xff" * 20
    shard.write_bytes(content)
    if damage == "index":
        (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    if damage == "note":
        (folder / "conversion.json").write_text("{")
    if damage == "another version":
        note = json.loads((folder / "conversion.json").read_text())
        (folder / "conversion.json").write_text(json.dumps(note | {"version": 0}))
    if damage == "no shard":
        shard.unlink()


@pytest.mark.parametrize(
    "damage", ["one bit", "truncated", "no header", "index", "note", "another version", "no shard"]
)
def test_a_damaged_conversion_is_made_again(tmp_path, damage):
    folder = write(tmp_path / "one", stored("float32"))
    first = convert(folder)
    intact = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    damaged(first.folder, damage)
    forget()
    assert convert(folder) == first
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == intact


class Runs:
    """What a pickle can do: call anything with anything."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, cache, monkeypatch, form):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "one").mkdir()
    content = {"a": torch.ones(2), "b": Runs(tmp_path / "ran")}
    if form == "bare":
        (tmp_path / "one" / "pytorch_model.bin").write_bytes(pickle.dumps(content["b"], protocol=2))
    else:
        torch.save(content, tmp_path / "one" / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(BackboneError, match=r"is refused: it names posix\.mkdir") as refusal:
        convert(tmp_path / "one")
    assert "\n" not in str(refusal.value)
    assert "weights_only" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".lock"]
    with open(tmp_path / "one" / "pytorch_model.bin", "rb") as stream:  # it would have run
        if form == "bare":
            pickle.load(stream)
        else:
            torch.load(stream, weights_only=False)
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)], {"state": {"a": torch.ones(2)}}, {"a": 3}, {1: torch.ones(2)}, {},
        {"a": torch.eye(2).to_sparse()}, {"a": torch.ones(2, device="meta")},
        {"a": torch.ones(2, dtype=torch.complex128)},
    ],
)  # fmt: skip
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    with pytest.raises(BackboneError, match="expected names with dense tensors and nothing else"):
        convert(write(tmp_path / "one", content))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, legacy, kept):
    file = write(tmp_path / "one", stored("float32"), legacy=legacy) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(BackboneError, match=r"cannot read .*pytorch_model\.bin .*: download it again") as refusal:
        convert(tmp_path / "one")
    assert "\n" not in str(refusal.value)


def test_shards_that_do_not_fit_their_index_are_refused(tmp_path):
    folder = write(tmp_path / "one", stored("float32"), files=2)
    index = folder / "pytorch_model.bin.index.json"
    named = json.loads(index.read_text())
    named["weight_map"]["gone"] = "pytorch_model-00001-of-00002.bin"
    index.write_text(json.dumps(named))
    with pytest.raises(BackboneError, match=r"lacks 1 tensors that pytorch_model\.bin\.index\.json names, gone first"):
        convert(folder)
    files = weight_files(folder)
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(BackboneError, match=r"00002\.bin has the tensor tied, as another file of its checkpoint has"):
        convert(folder)
    files[1].unlink()
    with pytest.raises(BackboneError, match="lacks 1 of the 2 files of its weights"):
        convert(folder)


def process(folder: Path, before: str) -> subprocess.Popen[str]:
    """Convert in a process of its own, after these lines."""
    code = (
        "import os, resource, signal, sys, time\nfrom pathlib import Path\n"
        "from peft_bench.backbones import conversion\nfrom peft_bench.backbones.weight_files import weight_files\n"
        f"real_convert, real_save = conversion._convert, conversion.save_file\n{before}\n"
        f"try: conversion.converted(tuple(weight_files(Path({str(folder)!r}))))\n"
        "except ValueError as error: sys.exit(str(error))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_convert_once(tmp_path):
    folder = write(tmp_path / "one", stored("float32"))
    begin = (
        "def slow(*arguments):\n"
        f"    open({str(tmp_path / 'begun')!r}, 'a').write('x')\n"
        "    time.sleep(1)\n"
        "    return real_convert(*arguments)\n"
        "conversion._convert = slow\n"
        f"open({str(tmp_path)!r} + f'/ready{{os.getpid()}}', 'w').close()\n"
        f"while len([*Path({str(tmp_path)!r}).glob('ready*')]) < 2: time.sleep(0.01)"
    )
    both = [process(folder, begin) for _ in range(2)]
    assert [(each.communicate(timeout=120)[1], each.returncode) for each in both] == [("", 0)] * 2
    assert (tmp_path / "begun").read_text() == "x"
    assert convert(folder).tensors == digest_of(stored("float32"))


def test_a_conversion_that_is_killed_counts_for_nothing(tmp_path, cache):
    folder = write(tmp_path / "one", stored("float32"))
    kill = (
        "conversion._SHARD_BYTES = 1000\n"
        "def die(tensors, file, metadata):\n"
        "    real_save(tensors, file, metadata)\n"
        "    if '00002' in str(file): os.kill(os.getpid(), signal.SIGKILL)\n"
        "conversion.save_file = die"
    )
    killed = process(folder, kill)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = {path.suffix for path in (cache / "converted").iterdir()}
    assert left == {".partial", ".lock"}
    assert convert(folder).tensors == digest_of(stored("float32"))
    assert {path.suffix for path in (cache / "converted").iterdir()} == {"", ".lock"}


def test_a_disk_that_is_full_is_one_sentence_and_leaves_nothing(tmp_path, cache):
    folder = write(tmp_path / "one", {"a": torch.randn(100_000)})
    full = process(folder, "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    sentence = full.communicate(timeout=120)[1].strip()
    assert full.returncode == 1
    assert "\n" not in sentence
    assert sentence.startswith(f"cannot convert {folder}/pytorch_model.bin to safetensors in {cache}/converted (")
    assert sentence.endswith("with 0.0 GB free: set PEFT_BENCH_CACHE to another one")
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".lock"]


@pytest.mark.parametrize("why", ["no folder", "read-only"])
def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, why):
    folder = write(tmp_path / "one", stored("float32"))
    place = tmp_path / "place"
    if why == "no folder":
        place.write_text("a file")
    else:
        place.mkdir(mode=0o500)
        if os.access(place, os.W_OK):
            pytest.skip("root writes everywhere")
    monkeypatch.setenv("PEFT_BENCH_CACHE", str(place))
    with pytest.raises(BackboneError, match="set PEFT_BENCH_CACHE to another one") as refusal:
        convert(folder)
    assert "\n" not in str(refusal.value)


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hashes.cache_folder() == Path(os.environ["PEFT_BENCH_CACHE"])
    monkeypatch.delenv("PEFT_BENCH_CACHE")
    assert hashes.cache_folder() == Path("/x/peft-bench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hashes.cache_folder() == Path.home() / ".cache" / "peft-bench"
