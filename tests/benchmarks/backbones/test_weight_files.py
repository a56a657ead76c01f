"""Which files of a folder are taken for its weights, and what is refused before one of them is read."""

import hashlib
import json
from pathlib import Path

import pytest

from peft_bench.backbones.weight_files import FORMS, BackboneError, commit_of, published_hashes, weight_files


def index(folder: Path, form: str, *names: object) -> None:
    (folder / f"{form}.index.json").write_text(json.dumps({"weight_map": {f"w{i}": n for i, n in enumerate(names)}}))


def names(folder: Path) -> list[str]:
    return [path.name for path in weight_files(folder)]


def test_safetensors_come_before_pickles_and_one_file_before_several(tmp_path):
    with pytest.raises(BackboneError, match=r"holds no weights: expected model\.safetensors, model\."):
        weight_files(tmp_path)
    index(tmp_path, "pytorch_model.bin", "b-2.bin", "b-1.bin", "b-2.bin")
    for name in ("b-1.bin", "b-2.bin", "s-1.safetensors", "other.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert names(tmp_path) == ["b-1.bin", "b-2.bin"]
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    assert names(tmp_path) == ["pytorch_model.bin"]
    index(tmp_path, "model.safetensors", "s-1.safetensors")
    assert names(tmp_path) == ["s-1.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"one")
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["../b.bin", "/b.bin", "a/b.bin", "..", ".bin", "b.safetensors", "*.bin", 3, None])
def test_an_index_that_names_another_place_is_refused(tmp_path, name):
    (tmp_path.parent / "b.bin").write_bytes(b"elsewhere")
    index(tmp_path, "pytorch_model.bin", name)
    with pytest.raises(BackboneError, match=r"names the file .*, expected names of \*\.bin in its own folder"):
        weight_files(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": ["b"]}}', "\xff"])
def test_a_damaged_index_is_refused(tmp_path, text):
    (tmp_path / FORMS[-1]).write_text(text, encoding="latin-1")
    with pytest.raises(BackboneError, match="is no index of weights"):
        weight_files(tmp_path)
    index(tmp_path, "pytorch_model.bin")
    with pytest.raises(BackboneError, match="names no file"):
        weight_files(tmp_path)


def test_a_missing_shard_is_refused_and_a_link_to_nothing_is_no_other_form(tmp_path):
    index(tmp_path, "pytorch_model.bin", "b-1.bin", "b-2.bin")
    (tmp_path / "b-1.bin").write_bytes(b"1")
    with pytest.raises(BackboneError, match=r"lacks 1 of the 2 files of its weights, b-2\.bin first"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(BackboneError, match=r"lacks 1 of the 1 files of its weights, model\.safetensors first"):
        weight_files(tmp_path)


def test_a_pointer_of_git_lfs_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin is a Git LFS pointer, .*: run `git lfs pull` there"):
        weight_files(tmp_path)


def test_each_published_file_has_its_hash(tmp_path):
    index(tmp_path, "pytorch_model.bin", "b-1.bin", "b-2.bin")
    for name in ("b-1.bin", "b-2.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert published_hashes(tmp_path) == {n: hashlib.sha256(n.encode()).hexdigest() for n in ("b-1.bin", "b-2.bin")}
    (tmp_path / "b-2.bin").write_bytes(b"another")
    assert published_hashes(tmp_path)["b-2.bin"] == hashlib.sha256(b"another").hexdigest()


def test_a_folder_of_the_hubs_cache_has_a_commit(tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshots = tmp_path / "models--google--t5-v1_1-xxl" / "snapshots"
    assert commit_of(snapshots / commit) == commit
    monkeypatch.chdir(tmp_path)
    assert commit_of(snapshots.relative_to(tmp_path) / commit) == commit
    for other in (snapshots / "main", tmp_path / "datasets--a" / "snapshots" / commit, tmp_path / commit, Path("/")):
        assert commit_of(other) is None, other
