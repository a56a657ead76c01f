"""What changes a run's identity, and what does not."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from peft_bench.backbones import location
from peft_bench.backbones.location import MICRO_BACKBONES, BackboneError, digests_of, weights_digest
from peft_bench.config import recorded
from peft_bench.config.compose import choices, compose_run, method_choice, method_class, task_choice
from peft_bench.config.recorded import as_recorded, run_config
from peft_bench.config.schema import CONF_DIR
from peft_bench.records.store import read_record
from peft_bench.runs.identity import identity, run_id
from peft_methods.lora import Lora

RECORDS = Path(__file__).parents[3] / "results" / "records"


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
        "trainer.max_steps=7", "scale=paper", "trainer.regression_bias=zero", "backbone.dtype=bfloat16",
    ],
)  # fmt: skip
def test_science_counts(base, override):
    assert made(override) != base


def test_a_young_field_does_not_count_at_its_old_value():
    """So a record from before the field keeps its identity."""
    cfg = compose_run(["experiment=small/minilm_lora", "task=glue/mrpc", "scale=small"])
    assert cfg.trainer.regression_bias == "zero"
    assert "regression_bias" not in identity(cfg, "d", [])["config"]["trainer"]


MICRO = sorted(folder.relative_to(RECORDS).as_posix() for folder in RECORDS.glob("[!s]*/*"))  # not small/


# Their config group says what, the record only which text: one of the group's files makes it.
CHOSEN = {"prefix_tuning/low_data_words": "start_words", "prefix_tuning/hand_written": "hand_written"}


@pytest.mark.parametrize("experiment", MICRO)
def test_committed_micro_runs_are_still_found(experiment):
    """What changes identities by accident would make every record stale."""
    records = map(read_record, sorted((RECORDS / experiment).glob("*.json")))
    prompts = experiment.startswith("prompt_tuning/")
    at_micro = (record for record in records if record["scale"] == "micro")
    record = next(r for r in at_micro if prompts or r["task"] in ("rte", "e2e", "xsum"))
    config = record["config"]
    task = task_choice(config["task"]["dataset"], record["task"])
    words = [f"experiment={experiment}", f"task={task}", f"seed={record['seed']}"]
    if prompts:  # the rates are those of conf/sweep/prompt_tuning.yaml
        words += [f"backbone={config['backbone']['name']}", f"task.target_prefix='{config['task']['target_prefix']}'"]
        words += [f"trainer.{name}={config['trainer'][name]}" for name in ("optimizer", "learning_rate")]
        words += [f"method.{name}={config['method'][name]}" for name in ("length", "init") if name in config["method"]]
        words += [f"in_context={config['in_context']['name']}"] if config["in_context"] else []
    if experiment in ("prefix_tuning/length", "prefix_tuning/xsum_length"):
        words.append(f"method.length={config['method']['length']}")
    if experiment == "houlsby2019/table1_adapters_8_256":
        words.append(f"method.bottleneck_dim={config['method']['bottleneck_dim']}")
    if "low_data" in experiment:
        drawn = config["task"]["micro_generation"]
        words += [f"task.micro_generation.{name}={drawn[name]}" for name in ("train_rows", "train_sample")]
    group = CHOSEN.get(experiment)
    choices = [[f"{group}={path.stem}"] for path in (CONF_DIR / group).glob("*.yaml")] if group else [[]]
    made = [identity(compose_run([*words, *more]), record["data"]["sha256"], record["parents"]) for more in choices]
    assert record["run_id"] in map(run_id, made)


def test_weights_configuration_and_tokenizer_count_wherever_they_lie(tmp_path):
    """Where nothing shipped stands in, another checkpoint under the same name is another run."""
    cfg = compose_run(["experiment=small/minilm_lora", "task=glue/mrpc", "scale=small"])
    for name, byte in (("one", b"1"), ("moved", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / name / file).write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(byte)

    def digests(folder):
        return digests_of(cfg.backbone, cfg.scale, str(tmp_path / folder))

    assert digests("one") == digests("moved") != digests("other")
    ids = {name: run_id(identity(cfg, "d", [], digests(name))) for name in ("one", "moved", "other")}
    assert ids["one"] == ids["moved"] != ids["other"]
    seen = {ids["one"]}
    for name, number in (("tokenizer.json", 1), ("config.json", 2), ("vocab.txt", 3), ("README.md", 3)):
        (tmp_path / "moved" / name).write_text("changed")
        seen.add(run_id(identity(cfg, "d", [], digests("moved"))))
        assert len(seen) == 1 + number, name
    random = dataclasses.replace(cfg.backbone, pretrained=False)
    of_random = digests_of(random, cfg.scale, str(tmp_path / "one"))
    assert of_random == {"weights": "random", "files": digests("one")["files"]}
    assert digests_of(cfg.backbone, compose_run(["scale=micro"]).scale, None) == {}
    with pytest.raises(BackboneError, match="holds no checkpoint of minilm_l6"):
        digests("nowhere")
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "weights.safetensors")
    weights_digest.cache_clear()
    with pytest.raises(BackboneError, match=r"holds no weights: expected model\.safetensors"):
        digests("one")


def test_a_shipped_backbones_configuration_counts(base, tmp_path, monkeypatch):
    copy = tmp_path / "micro_roberta"
    shutil.copytree(MICRO_BACKBONES / "micro_roberta", copy)
    monkeypatch.setattr(location, "MICRO_BACKBONES", tmp_path)
    assert made() == base
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"initializer_range": 0.07', '"initializer_range": 0.02'))
    assert made() != base


def test_data_parents_and_result_versions_count(base, monkeypatch):
    assert made(data="other") != base
    assert made(parents=["0123"]) != base
    with monkeypatch.context() as patch:
        patch.setattr(Lora, "result_version", 99)
        assert made() != base
    assert made() == base != made("task.version=2")


def test_every_method_and_task_file_has_a_result_version():
    for name in choices("method"):
        assert isinstance(method_class(method_choice(name)["_target_"]).result_version, int)
    for name in choices("task"):
        assert isinstance(yaml.safe_load((CONF_DIR / "task" / f"{name}.yaml").read_text())["version"], int), name


@pytest.mark.parametrize("target", ["peft_methods.new.New", "peft_methods.lora.Loar", "Lora"])
def test_an_unknown_method_is_refused(target):
    cfg = compose_run([])
    with pytest.raises(ValueError, match=rf"method\._target_={target}: .* expected the full name of a class"):
        identity(dataclasses.replace(cfg, method={"_target_": target}), "d", [])


def test_a_record_made_again_has_the_task_versions_of_today(monkeypatch):
    """They stand in no record's configuration; its identity has those that it was made with."""
    cfg = compose_run(["experiment=prompt_tuning/domain_shift_prompt", "task=squad"])
    config = as_recorded(cfg)
    assert "version" not in config["task"]
    assert "version" not in config["transfer"]["squad_sea"]
    assert run_config(config) == cfg
    monkeypatch.setattr(recorded, "task_version", lambda dataset, name: 1 + (name == "squad_sea"))
    assert identity(run_config(config), "d", [])["versions"] == {
        "loop": 1, "method": 1, "task": 1, "transfer": {"squad_sea": 2},
    }  # fmt: skip
