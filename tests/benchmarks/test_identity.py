"""What changes a run's identity, and what does not."""

import dataclasses
import shutil

import pytest

from benchmarks import backbone
from benchmarks.backbone import MICRO_BACKBONES
from benchmarks.identity import METHOD_VERSIONS, identity, run_id
from benchmarks.parents import compose_run


def made(*overrides, data="d", parents=()):
    return run_id(identity(compose_run(["experiment=lora/table2_roberta_base_lora", *overrides]), data, parents))


@pytest.fixture(scope="module")
def base():
    return made()


@pytest.mark.parametrize(
    "override",
    [
        "results_dir=/elsewhere", "data_dir=/elsewhere", "backbone_dir=/elsewhere", "tracking=offline", "threads=1",
        "device=cpu", "force=true", "trainer.eval_batch_size=3", "trainer.precision=bf16",
    ],
)  # fmt: skip
def test_places_tracking_and_devices_do_not_count(base, override):
    assert made(override) == base


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "task=glue/cola", "method.rank=3", "trainer.learning_rate=1e-3", "trainer.batch_size=5",
        "trainer.group_by_length=true", "trainer.selection=last", "backbone.pretrained=false", "settings=script",
        "trainer.max_steps=7", "scale=paper", "trainer.regression_bias=zero",
    ],
)  # fmt: skip
def test_science_counts(base, override):
    assert made(override) != base


def test_a_young_field_does_not_count_at_its_old_value():
    """So a record from before the field keeps its identity."""
    cfg = compose_run(["experiment=small/minilm_lora", "task=glue/mrpc", "scale=small"])
    assert cfg.trainer.regression_bias == "zero"
    assert "regression_bias" not in identity(cfg, "d", [])["config"]["trainer"]


def test_a_shipped_backbones_configuration_counts(base, tmp_path, monkeypatch):
    copy = tmp_path / "micro_roberta"
    shutil.copytree(MICRO_BACKBONES / "micro_roberta", copy)
    monkeypatch.setattr(backbone, "MICRO_BACKBONES", tmp_path)
    assert made() == base
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"initializer_range": 0.07', '"initializer_range": 0.02'))
    assert made() != base


def test_data_parents_and_result_versions_count(base, monkeypatch):
    assert made(data="other") != base
    assert made(parents=["0123"]) != base
    monkeypatch.setitem(METHOD_VERSIONS, "peft_methods.lora.Lora", 99)
    assert made() != base


def test_every_method_file_has_a_result_version():
    from benchmarks.config import CONF_DIR

    for path in sorted((CONF_DIR / "method").glob("*.yaml")):
        assert compose_run([f"method={path.stem}"]).method["_target_"] in METHOD_VERSIONS


def test_an_unknown_method_is_refused():
    cfg = compose_run([])
    with pytest.raises(ValueError, match=r"add one to benchmarks/identity\.py"):
        identity(dataclasses.replace(cfg, method={"_target_": "peft_methods.new.New"}), "d", [])
