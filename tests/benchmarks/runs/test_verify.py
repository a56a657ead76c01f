"""verify: the same bits in the same numerics class, within tolerance elsewhere, wrong where a record was changed."""

import dataclasses
import json

import pytest

from peft_bench.config.compose import compose_run
from peft_bench.config.recorded import run_config
from peft_bench.records.store import read_record, record_path
from peft_bench.runs.run import run, run_pack
from peft_bench.runs.verify import find, main

LORA = "experiment=lora/table2_roberta_base_lora"


@pytest.fixture
def made(tmp_path):
    """made(*overrides, seeds=1): records of a pack of three steps."""

    def make(*overrides, seeds=1):
        words = ["trainer.max_steps=3", "trainer.evaluate_every_steps=2", f"results_dir={tmp_path}", "device=cpu"]
        cfgs = [compose_run([*words, f"seed={seed}", *overrides]) for seed in range(seeds)]
        outcomes = run_pack(cfgs)
        return [read_record(record_path(tmp_path, o.experiment, o.run_id)) for o in outcomes]

    return make


def changed(tmp_path, record, change):
    path = find(tmp_path, record["run_id"])
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def test_a_pack_and_a_run_come_out_bit_by_bit(made, tmp_path, capsys):
    records = made("method=lora", "task=glue/sst2", seeds=2)
    assert main([records[1]["run_id"][:8], "--results", str(tmp_path)]) == 0
    assert "the same, bit by bit" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # nothing was written beside the records


def test_a_child_starts_from_the_recorded_parent(made, tmp_path, capsys):
    (record,) = made(LORA, "task=glue/rte", 'init_from.overrides=["trainer.max_steps=2"]')
    assert record["parents"]
    assert main([record["run_id"], "--results", str(tmp_path)]) == 0
    assert "bit by bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: r["scores"][0].update(score=0.123), "scores"),
        (lambda r: r["history"][0].update(train_loss=0.1), "history"),
        (lambda r: r.update(trained_sha256="0" * 64), "trained tensors"),
    ],
)
def test_a_changed_record_does_not_come_out(made, tmp_path, capsys, change, word):
    (record,) = made("method=bitfit", "task=glue/sst2")
    changed(tmp_path, record, change)
    assert main([record["run_id"], "--results", str(tmp_path)]) == 1
    assert f"NOT the same in {word}" in capsys.readouterr().err


def test_another_numerics_class_has_a_tolerance(made, tmp_path, capsys):
    (record,) = made("method=bitfit", "task=glue/sst2")
    changed(tmp_path, record, lambda r: r["numerics"]["versions"].update(torch="1.0"))
    assert main([record["run_id"], "--results", str(tmp_path)]) == 0
    assert "within tolerance: another numerics class (versions)" in capsys.readouterr().out
    changed(tmp_path, record, lambda r: r["history"][0].update(train_loss=0.1))
    assert main([record["run_id"], "--results", str(tmp_path)]) == 1
    assert "NOT within tolerance" in capsys.readouterr().err


def test_what_cannot_be_made_again_is_one_sentence(made, tmp_path):
    with pytest.raises(ValueError, match=r"0 finished records in .* begin with it, expected one"):
        main(["abc", "--results", str(tmp_path)])
    (record,) = made("method=bitfit", "task=glue/sst2")
    changed(tmp_path, record, lambda r: r["config"]["trainer"].update(warp=1))
    with pytest.raises(ValueError, match=r"config\.trainer\.warp: this version of peft-bench has no such field"):
        main([record["run_id"], "--results", str(tmp_path)])
    changed(tmp_path, record, lambda r: (r["config"]["trainer"].pop("warp"), r["config"]["trainer"].update(beta1=0.5)))
    with pytest.raises(ValueError, match=r"made again it is the run .* check out the commit"):
        main([record["run_id"], "--results", str(tmp_path)])


def test_a_record_of_the_first_schema_is_read_and_verified(made, tmp_path, capsys):
    """As the committed ones are."""
    (record,) = made("method=bitfit", "task=glue/sst2")

    def age(stored):
        stored["schema"] = 1
        del stored["trained_sha256"], stored["tolerance"], stored["numerics"]["members"]
        del stored["numerics"]["micro_batch_size"]

    changed(tmp_path, record, age)
    assert main([record["run_id"], "--results", str(tmp_path)]) == 0
    assert "bit by bit" in capsys.readouterr().out


def test_a_record_of_a_later_schema_is_neither_read_nor_replaced(made, tmp_path):
    (record,) = made("method=bitfit", "task=glue/sst2")
    changed(tmp_path, record, lambda r: r.update(schema=99))
    kept = find(tmp_path, record["run_id"]).read_bytes()
    cfg = dataclasses.replace(run_config(record["config"]), results_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"schema 99 is unknown, .* or name another folder"):
        run(cfg)
    assert find(tmp_path, record["run_id"]).read_bytes() == kept
