"""A run from configuration to record, at micro scale with a few steps: found, forced, refused, failed, parents."""

import dataclasses
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_bench.backbones import location
from peft_bench.cli import INTERRUPTED
from peft_bench.config.compose import compose_run
from peft_bench.config.init_from import command
from peft_bench.config.schema import RunConfig, TrackingConfig
from peft_bench.records.states import list_states
from peft_bench.records.store import read_record, record_path
from peft_bench.runs import parents
from peft_bench.runs import train as training
from peft_bench.runs.run import How, run, run_pack
from peft_bench.sweeps.workers import make_lines
from peft_bench.training.loop import train

LORA = "experiment=lora/table2_roberta_base_lora"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short(tmp_path):
    """short(*overrides): a micro run of three steps that writes below tmp_path."""

    def compose(*overrides: str) -> RunConfig:
        fixed = ["trainer.max_steps=3", "trainer.evaluate_every_steps=2", f"results_dir={tmp_path}", "device=cpu"]
        return compose_run([*fixed, *overrides])

    return compose


def record_of(cfg, outcome):
    return read_record(record_path(cfg.results_dir, outcome.experiment, outcome.run_id))


def test_a_run_writes_one_record_and_is_found_the_second_time(short):
    cfg = short(LORA, "task=glue/sst2")
    outcome = run(cfg)
    assert outcome.status == "done"
    record = record_of(cfg, outcome)
    assert {(s["split"], s["checkpoint"]) for s in record["scores"]} == {
        (split, checkpoint) for split in ("validation", "test") for checkpoint in ("best", "last")
    }
    assert [point["step"] for point in record["history"]] == [2, 3]
    # LoRA r on query and value of two layers of width 64; RoBERTa's head: dense 64 x 64, output 64 x 2.
    rank = cfg.method["rank"]
    assert record["params"]["method"] == 2 * 2 * 2 * 64 * rank
    assert record["params"]["head"] == 64 * 64 + 64 + 64 * 2 + 2
    assert record["backbone"]["published"] is False
    again = run(cfg)
    assert (again.status, again.score, again.run_id) == ("found", outcome.score, outcome.run_id)
    forced = run(dataclasses.replace(cfg, force=True))
    assert (forced.status, forced.score) == ("done", outcome.score)


def test_a_truncated_record_is_set_aside_and_the_run_made_again(short, caplog):
    cfg = short("method=head_only", "task=glue/rte")
    outcome = run(cfg)
    path = record_path(cfg.results_dir, "custom", outcome.run_id)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with caplog.at_level(logging.WARNING):
        assert run(cfg).status == "done"
    assert "set aside" in caplog.text
    assert path.with_name(path.name + ".unreadable").read_bytes() == content[:100]
    assert json.loads(path.read_text())["run_id"] == outcome.run_id


def test_a_pack_of_runs_and_tasks_equals_the_runs_alone(short, tmp_path):
    cfgs = [
        short("method=lora", "backbone=bert_base_uncased", "task=glue/rte", "seed=1"),
        short("method=houlsby", "backbone=bert_base_uncased", "task=glue/stsb", "seed=2", "trainer.batch_size=7"),
        short("method=bitfit", "backbone=bert_base_uncased", "task=glue/mnli", "seed=3"),
    ]
    packed = run_pack(cfgs)
    for cfg, outcome in zip(cfgs, packed, strict=True):
        alone = run(dataclasses.replace(cfg, results_dir=str(tmp_path / "alone")))
        assert alone.run_id == outcome.run_id
        assert alone.score == pytest.approx(outcome.score, abs=1e-3)
        assert record_of(cfg, outcome)["numerics"]["pack"] == 3


@pytest.mark.parametrize(("start", "expected"), [("zero", 0.0), ("label_mean", None)])
def test_where_the_bias_of_a_regression_starts(short, start, expected, monkeypatch):
    cfg = short(LORA, "task=glue/stsb", "init_from=null", f"trainer.regression_bias={start}")
    seen = {}

    def looking(attached, jobs, *rest, **kwargs):
        seen["bias"] = attached.run(0).head.out_proj.bias.item()
        seen["mean"] = jobs[0].training.labels.mean()
        return train(attached, jobs, *rest, **kwargs)

    monkeypatch.setattr(training, "train", looking)
    assert run(cfg).status == "done"
    assert 2 < seen["mean"] < 3
    assert seen["bias"] == pytest.approx(seen["mean"] if expected is None else expected)


def test_a_checkpoint_that_lacks_tensors_is_refused(short, tmp_path, monkeypatch):
    """transformers would fill them with random values."""
    copy = tmp_path / "backbones" / "micro_bert"
    shutil.copytree(location.MICRO_BACKBONES / "micro_bert", copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.1.attention.self.query.weight"))
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != name}, copy / "model.safetensors", {"format": "pt"}
    )
    monkeypatch.setattr(location, "MICRO_BACKBONES", copy.parent)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the backbone, .*query\.weight first"):
        run(short("experiment=houlsby2019/table1_full", "task=glue/sst2"))


def test_two_data_parallel_processes_train_what_one_does(short, tmp_path):
    """Over gloo on the CPU. Of seven rows in pieces of at most three a process, one has four and the other three, none
    in the last piece; one scores all of a split. With a large eps the steps are as large as the gradients."""
    sizes = [
        "trainer.batch_size=7",
        "trainer.micro_batch_size=3",
        "trainer.max_steps=4",
        "trainer.eval_batch_size=5000",
    ]
    overrides = [LORA, "task=glue/sst2", *sizes, "trainer.eps=1", "trainer.learning_rate=1", "device=cpu"]
    alone = short(*overrides)
    outcome = run(alone)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "peft_bench", "run"]
    done = subprocess.run(
        [sys.executable, *words, *overrides, "trainer.evaluate_every_steps=2", f"results_dir={tmp_path / 'two'}"],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read_record(record_path(tmp_path / "two", outcome.experiment, outcome.run_id))
    assert record["numerics"]["processes"] == 2
    name = f"trained/{outcome.experiment}/{outcome.run_id}.safetensors"
    one, two = load_file(tmp_path / name), load_file(tmp_path / "two" / name)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-6)
    expected = record_of(alone, outcome)
    assert [s["score"] for s in record["scores"]] == [s["score"] for s in expected["scores"]]
    losses = [[point["train_loss"] for point in each["history"]] for each in (record, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert record["cost"]["train_tokens"] == expected["cost"]["train_tokens"]


def test_what_cannot_share_a_pack_is_refused(short):
    random = [short("method=head_only", "backbone.pretrained=false", f"seed={seed}") for seed in (0, 1)]
    with pytest.raises(ValueError, match="a random start draws it from the seed: split the pack"):
        run_pack(random)
    with pytest.raises(ValueError, match="controls without a backbone or runs with one, not both"):
        run_pack([short("method=majority"), short("method=lora")])


def test_threads_are_of_the_run_and_not_of_the_process(short):
    before = torch.get_num_threads()
    cfg = dataclasses.replace(short("method=majority"), threads=before + 1)
    assert run(cfg).status == "done"
    assert torch.get_num_threads() == before


def test_controls_need_no_backbone(short):
    for method in ("majority", "bag_of_words"):
        for task in ("mnli", "stsb"):
            cfg = short(f"experiment=controls/{method}", f"task=glue/{task}")
            outcome = run(cfg)
            assert outcome.status == "done"
            assert record_of(cfg, outcome)["params"]["stored"] == 0


def test_full_fine_tuning_leaves_the_shared_backbone_as_it_was(short):
    before = run(short("method=head_only", "backbone=roberta_base", "task=glue/sst2")).score
    run(short("method=full", "backbone=roberta_base", "task=glue/sst2", "trainer.learning_rate=1e-2"))
    after = run(short("method=head_only", "backbone=roberta_base", "task=glue/sst2", "force=true")).score
    assert before == after


def test_the_mnli_start_trains_its_parent_first_and_carries_the_method_over(short, monkeypatch):
    overrides = '["trainer.max_steps=3","trainer.evaluate_every_steps=2"]'
    cfg = short(LORA, "task=glue/rte", "init_from.parent=same_seed", f"init_from.overrides={overrides}")
    started: dict[str, Any] = {}

    def spy(attached, k, parent, head_dense):
        parents_start(attached, k, parent, head_dense)
        started["parent"] = parent
        started["tensors"] = {n: p.detach().clone() for n, p in attached.run(k).trained().items()}

    parents_start = parents.start_from
    monkeypatch.setattr(parents, "start_from", spy)
    outcome = run(cfg)
    record = record_of(cfg, outcome)
    states = list_states(cfg.results_dir)["lora/table2_roberta_base_lora"]
    assert len(states.done) == 2
    assert record["parents"] == [started["parent"].stem]
    from safetensors.torch import load_file

    parent = load_file(started["parent"])
    for name, tensor in started["tensors"].items():
        if name.startswith("sites."):
            assert torch.equal(tensor, parent[name])
        if name == "head.dense.weight":
            assert not torch.equal(tensor, parent[name])  # head_dense: false
    assert started["tensors"]["head.out_proj.weight"].shape[0] == 2
    assert parent["head.out_proj.weight"].shape[0] == 3
    # A checkout has the records without the trained tensors: what is done stays done, the parent is not made again.
    record_of_parent = record_path(cfg.results_dir, "lora/table2_roberta_base_lora", started["parent"].stem)
    before = record_of_parent.stat().st_mtime_ns
    started["parent"].unlink()
    assert run(cfg).status == "found"
    assert not started["parent"].exists()
    assert record_of_parent.stat().st_mtime_ns == before
    assert run(dataclasses.replace(cfg, force=True)).status == "done"  # this needs them
    whole = started["parent"].read_bytes()
    started["parent"].write_bytes(whole[: len(whole) // 2])  # a copy cut short is as good as none
    assert run(dataclasses.replace(cfg, force=True)).status == "done"
    assert started["parent"].read_bytes() == whole
    # The parent belongs to the identity: another parent seed, another child.
    other = run(dataclasses.replace(cfg, init_from=dataclasses.replace(cfg.init_from, parent="best", seeds=[1])))
    assert other.run_id != outcome.run_id


def test_a_missing_parent_is_refused_with_its_command(short):
    cfg = short(LORA, "task=glue/rte", "init_from.if_missing=error", "init_from.parent=same_seed", "seed=4")
    with pytest.raises(
        ValueError, match=r"peft-bench run experiment=lora/table2_roberta_base_lora task=glue/mnli .*seed=4"
    ):
        run(cfg)


@pytest.mark.parametrize("folder", ["data", "my data", "it's (here)", "a,b=c{d}", "back\\slash"])
def test_the_named_command_survives_a_shell_and_hydra(short, folder):
    cfg = dataclasses.replace(short(LORA, "task=glue/rte"), data_dir=f"/tmp/{folder}")
    words = shlex.split(command(cfg, cfg.init_from))
    again = compose_run([word for word in words[2:] if word != "-m"])
    assert (again.data_dir, again.results_dir) == (cfg.data_dir, cfg.results_dir)
    assert (again.experiment, again.task.name, again.scale.name) == (cfg.experiment, "mnli", "micro")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.learning_rate=0"], "trainer.learning_rate=0.0: expected a finite number above 0"),
        (["trainer.optimizer=sgd"], "expected one of adamw, bert_adam"),
        (["+trainer.lr=3", "+method.rnk=1"], "method.rnk, trainer.lr: no such key"),
        (["trainer.beta1=1.5"], "trainer.beta1=1.5: expected 0 or more, below 1"),
        (["trainer.head_dropout=1"], "trainer.head_dropout=1.0: expected 0 or more, below 1, or null"),
        (["trainer.weight_decay=-1"], "trainer.weight_decay=-1.0: expected 0 or more"),
        (["trainer.learning_rate=inf"], "expected a finite number above 0"),
        (["task.validation_splits=[]"], "expected at least one of each"),
        (["results_dir=/proc/nope"], "results_dir=/proc/nope: cannot write there"),
        (["data_dir=/tmp"], "data_dir=/tmp: scale=micro has data and backbones of its own"),
        (["backbone_dir=/tmp"], "backbone_dir=/tmp: scale=micro has data and backbones of its own"),
        (
            [LORA, "task=glue/rte", "method.rank=4"],
            r"this run has method.rank=4, its parent 1; .*'init_from.overrides=\[\"method.rank=4\"\]'",
        ),
        (["scale=paper", LORA, "task=wnli"], r"expected conf/recipe/paper/lora/table2_roberta_base_lora/wnli.yaml"),
        (["backbone.dtype=float7"], "backbone.dtype='float7': expected one of float32, bfloat16, float64"),
        (["method=lora", "method.alpha=nan"], "method.alpha=nan: expected a finite number"),
        (["backbone.model_type=robert"], "transformers has no such model; methods attach to bart, bert, .*, t5"),
        (["+backbone.architecture.hiden_size=8"], "architecture.hiden_size: roberta has no such key"),
        (["trainer.regression_bias=mean"], "expected one of zero, label_mean"),
        (["trainer.max_length=600"], "max_length=600"),
        (["method=lora", "method.targets=[qwery]"], "match no projection of roberta: unknown ..qwery"),
        (["method=lora", "method.targets=[]"], "match no projection"),
        (["method=pfeiffer", "method.skip_layers=2"], "expected 0 to 1"),
        (["scale=small", "data_dir=/nowhere"], "nowhere"),
        (["scale=paper", LORA, "settings=script", "task=wnli"], "no published recipe"),
        (["device=cuda"], "device=cuda, but torch sees no GPU"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_training(short, overrides, message, monkeypatch):
    if torch.cuda.is_available() and "device=cuda" in overrides:
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("training started"))
    with pytest.raises(ValueError, match=message):
        run(short(*overrides))


def failing(error):
    """In place of `train`: raises `error`."""

    def train(*_, **__):
        raise error

    return train


def test_an_exception_in_training_becomes_a_failed_record_with_its_cause(short, monkeypatch):
    cfg = short("method=lora", "task=glue/cola")
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", failing(KeyError("a bug")))
        outcome = run(cfg)
    assert (outcome.status, outcome.kind) == ("failed", "error")
    record = read_record(record_path(cfg.results_dir, "custom", outcome.run_id, "error"))
    assert record["cause"] == {"kind": "error", "message": "KeyError: 'a bug'"}
    assert run(cfg).status == "done"  # nothing stays attached, and the failure gives way
    assert not list_states(cfg.results_dir)["custom"].failed


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("2 GiB"), RuntimeError("can't allocate memory: 2 GiB")])
def test_out_of_memory_halves_the_micro_batch_until_it_fits(short, monkeypatch, error):
    """The effective batch stays, and so does the result, but for rounding (no dropout in this method and backbone)."""
    cfg = short("method=bitfit", "task=glue/cola", "trainer.batch_size=32")
    sizes = []

    def small_only(attached, jobs, *rest):
        sizes.append((jobs[0].cfg.trainer.micro_batch_size, jobs[0].cfg.trainer.eval_batch_size))
        if len(sizes) < 3:
            raise error
        return train(attached, jobs, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", small_only)
        outcome = run(cfg)
    assert sizes == [(None, 250), (16, 16), (8, 8)]
    record = record_of(cfg, outcome)
    assert record["numerics"]["micro_batch_size"] == 8
    assert record["config"]["trainer"]["micro_batch_size"] is None
    usual = dataclasses.replace(cfg, results_dir=f"{cfg.results_dir}/usual")
    again = record_of(usual, run(usual))
    assert again["run_id"] == record["run_id"]
    losses = [[point["train_loss"] for point in r["history"]] for r in (record, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_out_of_memory_with_one_example_is_a_failed_record(short, monkeypatch):
    cfg = short("method=lora", "task=glue/cola", "trainer.batch_size=4")
    monkeypatch.setattr(training, "train", failing(torch.OutOfMemoryError("2 GiB")))
    outcome = run(cfg)
    assert (outcome.kind, outcome.message) == (
        "out_of_memory",
        "out_of_memory: even with one example at a time: 2 GiB",
    )


def test_a_bug_in_one_run_of_a_pack_fails_that_run_alone(short, monkeypatch):
    cfgs = [short("method=bitfit", "task=glue/cola", f"seed={seed}") for seed in range(3)]

    def seed_one_fails(attached, jobs, *rest):
        if any(job.cfg.seed == 1 for job in jobs):
            raise KeyError("a bug")
        return train(attached, jobs, *rest)

    monkeypatch.setattr(training, "train", seed_one_fails)
    outcomes = run_pack(cfgs)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done"]
    assert [record_of(cfgs[i], outcomes[i])["numerics"]["pack"] for i in (0, 2)] == [1, 1]


def test_a_refused_run_of_a_pack_fails_alone(short):
    cfgs = [short("method=lora", f"method.targets=[{name}]", "method.rank=1") for name in ("query", "qwery", "value")]
    lines = make_lines(cfgs, whole=False)
    assert [line.status for line in lines] == ["done", "failed", "done"]
    assert "match no projection of roberta: unknown ['qwery']" in lines[1].message


def test_a_pack_killed_between_its_records_is_taken_up_whole(short):
    """The missing record comes out as it was; trained alone it would differ in the last bits."""
    cfgs = [short("method=lora", "task=glue/cola", f"seed={seed}") for seed in range(3)]
    first = [record_of(cfg, outcome) for cfg, outcome in zip(cfgs, run_pack(cfgs), strict=True)]
    assert first[0]["numerics"]["members"] == [record["run_id"] for record in first]
    path = record_path(cfgs[2].results_dir, "custom", first[2]["run_id"])
    path.unlink()
    kept = record_path(cfgs[0].results_dir, "custom", first[0]["run_id"]).read_bytes()
    outcomes = run_pack(cfgs, How(whole=True))
    assert [outcome.status for outcome in outcomes] == ["found", "found", "done"]
    again = record_of(cfgs[2], outcomes[2])
    for name in ("scores", "history", "trained_sha256", "numerics"):
        assert again[name] == first[2][name]
    assert record_path(cfgs[0].results_dir, "custom", first[0]["run_id"]).read_bytes() == kept


def test_a_diverged_run_is_a_failed_record_with_a_flag(short):
    cfg = short("method=houlsby", "task=glue/cola", "trainer.learning_rate=1e30", "trainer.max_grad_norm=1e30")
    outcome = run(cfg)
    record = read_record(record_path(cfg.results_dir, "custom", outcome.run_id, "diverged"))
    assert record["cause"] is not None
    assert record["cause"]["kind"] == "diverged"
    assert record["flags"] == ["nan_loss"]


def test_a_forced_run_that_diverges_keeps_the_record_and_the_rest_of_its_pack(short):
    good = short("method=houlsby", "task=glue/cola")
    bad = short("method=houlsby", "task=glue/cola", "trainer.learning_rate=1e30", "trainer.max_grad_norm=1e30")
    finished = run(good)
    record = record_path(bad.results_dir, "custom", run(bad).run_id, "diverged")
    failure = json.loads(record.read_text())
    # as if it had once finished: a record that a failure must not replace
    done = json.loads(record_path(good.results_dir, "custom", finished.run_id).read_text())
    path = record_path(bad.results_dir, "custom", failure["run_id"])
    path.write_text(json.dumps(done | {"run_id": failure["run_id"]}))
    kept = path.read_bytes()
    outcomes = run_pack([dataclasses.replace(cfg, force=True) for cfg in (bad, good)])
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert "already done" in outcomes[0].message
    assert path.read_bytes() == kept


def test_flags_of_a_run_that_did_not_learn(short):
    cfg = short("method=lora", "task=glue/cola", "trainer.learning_rate=1e-30", "trainer.warmup_ratio=0")
    assert "parameters_did_not_move" in record_of(cfg, run(cfg))["flags"]


def test_tracking_failures_never_fail_a_run(short, monkeypatch, caplog):
    import wandb

    def refuse(**_):
        raise wandb.errors.CommError("no network")

    monkeypatch.setattr(wandb, "init", refuse)
    cfg = dataclasses.replace(short("method=head_only", "task=glue/qnli"), tracking=TrackingConfig(mode="offline"))
    with caplog.at_level(logging.WARNING):
        assert run(cfg).status == "done"
    assert "W&B tracking is off for this run" in caplog.text


def test_bf16_trains_and_is_recorded(short):
    cfg = short("method=lora", "task=glue/mrpc", "trainer.precision=bf16")
    record = record_of(cfg, run(cfg))
    assert record["numerics"]["dtype"] == "bfloat16 autocast"
    full = run(dataclasses.replace(cfg, force=True, trainer=dataclasses.replace(cfg.trainer, precision="fp32")))
    assert full.run_id == record["run_id"]  # the numerics class is no part of the identity
    assert record["history"][0]["train_loss"] == pytest.approx(
        record_of(cfg, full)["history"][0]["train_loss"], rel=0.05
    )


def test_a_killed_sweep_leaves_no_workers(tmp_path):
    words = ["method=majority,lora", "task=glue/sst2", "trainer.max_steps=100000", "trainer.epochs=10000"]
    command = [sys.executable, "-m", "peft_bench", "sweep", *words, f"results_dir={tmp_path}", "--workers", "1"]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not list((tmp_path / "records").rglob("*.json")):  # the worker has done the first run
            assert sweep.poll() is None
            time.sleep(0.1)
        listing = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
        if not listing.exists():
            pytest.skip("this system does not list a process's children in /proc")
        children = [int(pid) for pid in listing.read_text().split()]
        assert children
    finally:
        sweep.kill()
        sweep.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            return
        time.sleep(0.1)
    pytest.fail(f"still there 10 s after the sweep was killed: {children}")


def test_an_interrupted_sweep_says_so_in_one_line(tmp_path):
    words = ["method=majority,lora", "task=glue/sst2", "trainer.max_steps=100000", "trainer.epochs=10000"]
    command = [sys.executable, "-m", "peft_bench", "sweep", *words, f"results_dir={tmp_path}", "--workers", "1"]
    sweep = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    while not list((tmp_path / "records").rglob("*.json")):
        assert sweep.poll() is None
        time.sleep(0.1)
    os.killpg(sweep.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert errors.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in errors


REFUSED = [
    (["experiment=lora/nope"], "no file conf/experiment/lora/nope.yaml; expected one of controls/bag_of_words, "),
    (["trainer.lr=3"], "trainer.lr: there is no key 'lr'; expected one of learning_rate, "),
    (["-m", "seed=0,1", "method=lora", "method.rnk=3"], "method.rnk: there is no key 'rnk'"),
    (["seed=abc"], "Value 'abc' of type 'str' could not be converted to Integer"),
    (["seed=-1"], "seed=-1: expected 0 to 4294967295"),
    (["-m", "seed=range("], "no viable alternative at input 'range('; expected key=value"),
    (["recipe=foo"], "recipe=foo: it follows from experiment, task, settings and scale"),
    ([LORA, "task=glue/cola", "init_from.if_missing=error"], "init_from.* is only for tasks that start"),
    (["experiment=null"], "Config group override must be a string or a list"),
]


def test_the_command_refuses_a_configuration_in_one_sentence(tmp_path):
    """One process for all, since starting one takes seconds."""
    code = (
        "import contextlib, io, json, sys\nfrom peft_bench.cli import main\nfound, folder = [], sys.argv[2]\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as errors:\n"
        "        try:\n"
        "            status = main(['run', *words, f'results_dir={folder}'])\n"
        "        except SystemExit as end:\n"
        "            status = end.code\n"
        "    found.append([status, errors.getvalue()])\n"
        "print(json.dumps(found))"
    )
    commands = json.dumps([words for words, _ in REFUSED])
    done = subprocess.run([sys.executable, "-c", code, commands, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    for (words, message), (status, errors) in zip(REFUSED, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert status == 2, words
        assert message in errors
        assert len(errors.splitlines()) == 1, words
