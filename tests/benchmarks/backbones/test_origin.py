"""Whether a checkpoint counts as the published one, and the table of pins that says so."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from peft_bench.backbones import check_pins
from peft_bench.backbones.hashes import file_sha256
from peft_bench.backbones.location import digests_of, folder_of
from peft_bench.backbones.origin import Origin, origin_of
from peft_bench.backbones.weight_files import BackboneError
from peft_bench.config.compose import backbone_choice, choices, compose_run
from peft_bench.config.pins import Pin, PinnedFile, data_revision_of, pins, revision_of
from peft_bench.config.schema import CONF_DIR, BackboneConfig

COMMIT, OTHER = "ab" * 20, "cd" * 20
SHA256 = re.compile("[0-9a-f]{64}")


def snapshot(cache: Path, repository: str, commit: str, weights: bytes = b"weights") -> Path:
    """A folder as the hub's library keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def backbone() -> BackboneConfig:
    return dataclasses.replace(backbone_choice("roberta_base"), hub_id="some/model")


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """pinned(revision, weights): the pin of some/model, with the hash of these weights."""

    def pin(revision: str | None, weights: bytes | None = b"weights") -> None:
        (tmp_path / "pinned").write_bytes(weights or b"")
        files = {"model.safetensors": PinnedFile(file_sha256(tmp_path / "pinned"), None, 1)} if weights else {}
        known = {"some/model": Pin("some/model", "models", revision, 1, files)}
        monkeypatch.setattr("peft_bench.backbones.origin.pins", lambda: known)
        monkeypatch.setattr("peft_bench.config.pins.pins", lambda: known)

    return pin


class TestFromTheHub:
    def test_is_published_at_the_pinned_commit(self, tmp_path, backbone, pinned):
        pinned(COMMIT)
        assert revision_of(backbone) == COMMIT
        assert origin_of(backbone, snapshot(tmp_path, "some/model", COMMIT), None) == Origin(True, COMMIT, True)

    def test_is_published_at_any_commit_where_none_is_known_and_says_which(self, tmp_path, backbone, pinned):
        pinned(None)
        assert revision_of(backbone) == "main"
        assert origin_of(backbone, snapshot(tmp_path, "some/model", OTHER), None) == Origin(True, OTHER, False)

    def test_is_not_published_at_another_commit(self, tmp_path, backbone, pinned):
        pinned(COMMIT)
        backbone.revision = OTHER
        assert revision_of(backbone) == OTHER
        assert origin_of(backbone, snapshot(tmp_path, "some/model", OTHER), None) == Origin(False, OTHER, False)

    def test_other_bytes_at_the_pinned_commit_are_refused(self, tmp_path, backbone, pinned):
        pinned(COMMIT)
        folder = snapshot(tmp_path, "some/model", COMMIT, b"others")
        with pytest.raises(
            BackboneError, match=r"model\.safetensors has the SHA-256 .*, pins\.yaml says .*other_shape=true"
        ):
            origin_of(backbone, folder, None)
        backbone.other_shape = True
        assert origin_of(backbone, folder, None) == Origin(False, COMMIT)


class TestFromAFolder:
    @pytest.mark.parametrize(("weights", "published"), [(b"weights", True), (b"others", False)])
    def test_is_published_by_its_hashes_alone(self, tmp_path, backbone, pinned, weights, published):
        pinned(COMMIT)
        folder = snapshot(tmp_path, "some/model", COMMIT, weights)
        assert origin_of(backbone, folder, str(folder)) == Origin(published, None, published)

    def test_is_not_published_where_no_hash_is_known(self, tmp_path, backbone, pinned):
        pinned(COMMIT, weights=None)
        folder = snapshot(tmp_path, "some/model", COMMIT)
        assert origin_of(backbone, folder, str(folder)) == Origin(False)
        backbone.weights_sha256 = file_sha256(folder / "model.safetensors")
        assert origin_of(backbone, folder, str(folder)) == Origin(True, None, True)

    def test_one_pinned_shard_of_two_is_not_enough(self, tmp_path, backbone, pinned):
        pinned(COMMIT)
        folder = snapshot(tmp_path, "some/model", COMMIT)
        (folder / "more.safetensors").write_bytes(b"more")
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "part.safetensors", "b": "more.safetensors"}}'
        )
        assert origin_of(backbone, folder, str(folder)) == Origin(False)


def test_random_weights_are_nobodys(tmp_path, backbone, pinned):
    pinned(COMMIT)
    backbone.pretrained = False
    assert origin_of(backbone, snapshot(tmp_path, "some/model", COMMIT), None) == Origin(False, COMMIT)


class TestTable:
    def test_names_every_repository_of_conf(self):
        texts = [path.read_text() for group in ("backbone", "task") for path in (CONF_DIR / group).rglob("*.yaml")]
        named = {match for text in texts for match in re.findall(r"^hub_id: (\S+/\S+)", text, re.M)}
        assert named <= pins().keys()
        assert {name for name, pin in pins().items() if pin.kind == "models"} == {
            backbone.hub_id for backbone in map(backbone_choice, choices("backbone")) if "/" in backbone.hub_id
        }

    def test_every_value_is_a_commit_or_a_hash_with_a_source(self):
        for pin in pins().values():
            assert pin.revision is None or re.fullmatch("[0-9a-f]{40}", pin.revision)
            assert bool(pin.sources) == (pin.revision is not None)
            assert not pin.files or pin.revision
            for file in pin.files.values():
                assert SHA256.fullmatch(file.sha256)
                assert file.sources >= 1
                assert file.bytes is None or file.bytes > 0

    def test_stands_apart_from_the_identity_and_from_stand_ins(self):
        micro = compose_run(["experiment=lora/table2_roberta_base_lora", "task=glue/rte"])
        assert micro.backbone.revision == "main"
        assert digests_of(micro.backbone, micro.scale, None) == {}
        assert "micro_roberta" in str(folder_of(micro.backbone, micro.scale, None))

    def test_data_are_read_at_the_pinned_commit_unless_a_task_names_another(self):
        for name in ("glue/rte", "super_glue/cb", "xsum", "squad", "e2e"):
            task = compose_run([f"task={name}", "backbone=t5_v1_1_small", "method=prompt"]).task
            assert data_revision_of(task) == (pins()[task.hub_id].revision or "refs/convert/parquet")
            assert (pins()[task.hub_id].revision is None) == (name == "e2e")
            task.hub_revision = OTHER
            assert data_revision_of(task) == OTHER


class Hub:
    """What HfApi answers of some/model."""

    def __init__(self, commit: str, sha256: str, size: int):
        lfs = SimpleNamespace(sha256=sha256)
        self.info = SimpleNamespace(
            sha=commit,
            siblings=[
                SimpleNamespace(rfilename="model.safetensors", lfs=lfs, size=1),
                SimpleNamespace(rfilename="pytorch_model.bin", lfs=lfs, size=2),
                SimpleNamespace(rfilename="config.json", lfs=None, size=size),
            ],
        )

    def model_info(self, repository: str, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if repository != "some/model":
            answer: Any = SimpleNamespace(status_code=404, headers={}, request=None)
            raise RepositoryNotFoundError("404", response=answer)
        return self.info


FILES = {"model.safetensors": PinnedFile("1" * 64, 1, 1), "config.json": PinnedFile("2" * 64, 3, 1)}


class TestCheck:
    PIN = Pin("some/model", "models", COMMIT, 1, FILES)

    def states(self, pin: Pin, hub: Hub) -> dict[str, str]:
        return {finding.what: finding.state for finding in check_pins.check(pin, hub)}  # type: ignore[arg-type]

    def test_all_as_pinned(self):
        assert self.states(self.PIN, Hub(COMMIT, "1" * 64, 3)) == {
            "commit": "same", "model.safetensors": "same", "config.json": "same", "pytorch_model.bin": "missing",
        }  # fmt: skip

    def test_what_differs_and_what_is_gone(self):
        gone = dataclasses.replace(self.PIN, files=FILES | {"vocab.txt": PinnedFile("3" * 64, 1, 1)})
        found = self.states(gone, Hub(OTHER, "4" * 64, 5))
        assert found == dict.fromkeys(["commit", *gone.files], "differs") | {"pytorch_model.bin": "missing"}

    def test_a_commit_that_nobody_pinned_is_told(self):
        commit, *_ = check_pins.check(Pin("some/model", "models", None), Hub(OTHER, "4" * 64, 5))  # type: ignore[arg-type]
        assert (commit.state, commit.hub) == ("missing", OTHER)

    def test_a_repository_that_is_not_there_differs(self):
        [found] = check_pins.check(Pin("no/model", "models", COMMIT), Hub(OTHER, "", 1))  # type: ignore[arg-type]
        assert found.state == "differs"

    @pytest.mark.parametrize(("commit", "status"), [(COMMIT, 0), (OTHER, 1)])
    def test_the_command_ends_with_1_where_something_differs(self, monkeypatch, capsys, commit, status):
        monkeypatch.setattr(check_pins, "pins", lambda: {"some/model": self.PIN})
        monkeypatch.setattr(check_pins, "HfApi", lambda: Hub(commit, "1" * 64, 3))
        assert check_pins.main(["--check"]) == status
        assert f"{3 - status} same, {status} differs, 1 missing" in capsys.readouterr().out

    def test_without_network_it_is_one_sentence(self, monkeypatch, capsys):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert check_pins.main(["--check"]) == 1
        assert re.match("peft-bench pins: the hub cannot be asked", capsys.readouterr().err)

    def test_the_table_is_printed_whole(self, capsys):
        assert check_pins.main([]) == 0
        printed = capsys.readouterr().out
        assert all(pin.repository in printed and (pin.revision or "not known") in printed for pin in pins().values())
