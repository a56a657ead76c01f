"""Plans: states, order, packs, what is stale, what it will cost; and the sweeps that carry them out."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from peft_bench.config.compose import compose_run
from peft_bench.config.many import compose_all
from peft_bench.config.multirun import expand, own_sweep
from peft_bench.records import leases
from peft_bench.records.states import list_states
from peft_bench.records.store import read_record, record_path
from peft_bench.runs import train as training
from peft_bench.runs.run import run, run_pack
from peft_bench.sweeps import forecast
from peft_bench.sweeps.command import main
from peft_bench.sweeps.command import plan as plan_main
from peft_bench.sweeps.costs import Costs, total_seconds
from peft_bench.sweeps.display import summary
from peft_bench.sweeps.forecast import check_budget, costs_text, plan_text, write_plan
from peft_bench.sweeps.packs import footprint, memory_bytes, pack_runs
from peft_bench.sweeps.plan import make_plan
from peft_bench.sweeps.status import states_by_experiment
from peft_bench.sweeps.workers import Line, make_lines, run_all
from peft_methods.lora import Lora

LORA = "experiment=lora/table2_roberta_base_lora"
SHORT = ["trainer.max_steps=2", "trainer.evaluate_every_steps=2", "device=cpu"]


def cells(tmp_path, *words):
    """The configurations of a multirun of two steps each."""
    return compose_all(expand([*SHORT, f"results_dir={tmp_path}", *words]))


def states(plan):
    return [cell.state for cell in plan.cells]


class InThisProcess:
    """A pool without processes: for tests that patch."""

    def __init__(self):
        self.made = []

    def make(self, packs):
        for pack in packs:
            self.made.append([cell.label for cell in pack.cells])
            yield pack, make_lines([cell.cfg for cell in pack.cells], pack.whole)


def carry_out(cfgs, pool=None, size=None, retry=False):
    pool = pool or InThisProcess()
    return run_all(cfgs, make_plan(cfgs, size, retry=retry), pool, 1, size, retry), pool


class TestComposition:
    def test_equals_composing_each_run(self):
        jobs = expand([LORA, "task=glue/sst2,glue/rte", "seed=0,1", "method.rank=2,4", "trainer.learning_rate=1e-3,1"])
        jobs += [["method=houlsby", "seed=3", "method.bottleneck_dim=2", "results_dir='a b'", "threads=null"]]
        jobs += [["method=lora", "method.targets=[query]", "+init_from=null"[1:], "seed=1", "seed=2"]]
        for job, cfg in zip(jobs, compose_all(jobs), strict=True):
            assert dataclasses.asdict(cfg) == dataclasses.asdict(compose_run(job)), job

    def test_runs_share_no_changed_part(self):
        one, two = compose_all([[LORA, "task=glue/sst2", f"method.rank={rank}"] for rank in (2, 3)])
        assert (one.method["rank"], two.method["rank"]) == (2, 3)

    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("trainer.lr=1", "there is no key 'lr'"),
            ("seed=x", "could not be converted to Integer"),
            ("task=no", "no file"),
        ],
    )
    def test_a_bad_value_names_its_run(self, word, message):
        with pytest.raises(ValueError, match=message) as error:
            compose_all([[LORA, "task=glue/sst2", "seed=0"], [LORA, "task=glue/sst2", word]])
        assert word in str(error.value)


class TestPacks:
    def test_follow_from_the_runs_alone(self, tmp_path):
        cfgs = cells(tmp_path, "method=lora", "task=glue/sst2,glue/cola", "seed=range(6)")
        packs = [pack.runs for pack in pack_runs(cfgs)]
        assert packs == [(0, 1, 2, 3), (4, 5), (6, 7, 8, 9), (10, 11)]  # CPU: 4 at most
        assert [pack.runs for pack in pack_runs(cfgs, 100)] == [tuple(range(6)), tuple(range(6, 12))]
        assert [len(pack.runs) for pack in pack_runs(cfgs, 1)] == [1] * 12

    def test_what_cannot_share_one_goes_alone_and_says_why(self, tmp_path):
        words = ["task=glue/sst2", "seed=0,1"]
        cfgs = [c for m in ("full", "lora", "majority") for c in cells(tmp_path, f"method={m}", *words)]
        packs = pack_runs(cfgs)
        assert [pack.runs for pack in packs] == [(0,), (1,), (2, 3), (4,), (5,)]
        assert "trains the backbone in place" in packs[0].why
        assert "control" in packs[4].why

    def test_methods_mix_where_steps_and_batches_agree(self, tmp_path):
        cfgs = [c for m in ("lora", "bitfit") for c in cells(tmp_path, f"method={m}", "task=glue/sst2")]
        assert [pack.runs for pack in pack_runs(cfgs)] == [(0, 1)]
        other = dataclasses.replace(cfgs[1], trainer=dataclasses.replace(cfgs[1].trainer, batch_size=8))
        assert [pack.runs for pack in pack_runs([cfgs[0], other])] == [(0,), (1,)]

    def test_memory_bounds_them(self, tmp_path, monkeypatch):
        cfgs = cells(tmp_path, "method=lora", "task=glue/sst2", "seed=range(4)")
        one, three = memory_bytes(cfgs[0]), memory_bytes(cfgs[0], 3)
        memory = type("Memory", (), {"total": int(three / 0.6) + 1000})
        monkeypatch.setattr("peft_bench.sweeps.packs.psutil.virtual_memory", lambda: memory)
        assert [pack.runs for pack in pack_runs(cfgs)] == [(0, 1, 2), (3,)]
        assert [len(pack.runs) for pack in pack_runs(cfgs, workers=2)] == [1] * 4
        assert one < three
        assert footprint(cfgs[0]).trained == run_counts(cfgs[0])


def run_counts(cfg):
    """Trained parameters as a record of the run counts them."""
    record = read_record(record_path(cfg.results_dir, cfg.experiment, run(cfg).run_id))
    return record["params"]["method"] + record["params"]["head"]


class TestStates:
    def test_done_runs_are_left_out_and_growing_a_grid_repeats_nothing(self, tmp_path):
        cfgs = cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,1")
        lines, _ = carry_out(cfgs)
        assert [line.status for line in lines] == ["done", "done"]
        grown = cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,1,2,3", "tracking.project=elsewhere")
        plan = make_plan(grown)
        assert states(plan) == ["done", "done", "missing", "missing"]
        assert [[c.cfg.seed for c in pack.cells] for pack in plan.packs] == [[2, 3]]

    def test_changing_a_value_repeats_exactly_the_runs_it_touches(self, tmp_path, monkeypatch):
        cfgs = cells(tmp_path, "method=bitfit,lora", "task=glue/sst2")
        carry_out(cfgs)
        changed = [dataclasses.replace(cfg) for cfg in cfgs]
        changed[1].trainer = dataclasses.replace(changed[1].trainer, learning_rate=1e-4)
        assert states(make_plan(changed)) == ["done", "missing"]
        assert states(make_plan(cfgs)) == ["done", "done"]
        monkeypatch.setattr(Lora, "result_version", 9)
        assert states(make_plan(cfgs)) == ["done", "missing"]

    def test_a_moved_folder_stays_done(self, tmp_path):
        carry_out(cells(tmp_path / "a", "method=bitfit", "task=glue/sst2"))
        (tmp_path / "a").rename(tmp_path / "b")
        assert states(make_plan(cells(tmp_path / "b", "method=bitfit", "task=glue/sst2"))) == ["done"]

    def test_a_record_left_behind_by_another_version_is_stale(self, tmp_path, monkeypatch):
        cfgs = cells(tmp_path, LORA, "task=glue/sst2", "seed=0,1")
        carry_out(cfgs)
        monkeypatch.setattr(Lora, "result_version", 9)
        plan = make_plan(cfgs)
        found = {(old.label, old.differs) for old in plan.stale}
        assert found == {(cell.label, ("result versions",)) for cell in plan.cells}
        write_plan("x", plan)
        by_experiment, problems = states_by_experiment(tmp_path)
        (of,) = by_experiment.values()
        assert (len(of.planned), len(of.stale), len(of.done), problems) == (2, 2, 0, [])

    def test_another_setting_of_the_users_own_leaves_nothing_stale(self, tmp_path):
        words = ["method=bitfit", "task=glue/sst2"]
        run_pack(cells(tmp_path, *words))
        plan = make_plan(cells(tmp_path, *words, "trainer.learning_rate=0.01"))
        assert (states(plan), plan.stale) == (["missing"], [])

    def test_a_record_that_was_cut_short_is_made_again(self, tmp_path, caplog):
        cfgs = cells(tmp_path, "method=bitfit", "task=glue/sst2")
        (outcome,) = run_pack(cfgs)
        path = record_path(tmp_path, "custom", outcome.run_id)
        path.write_bytes(path.read_bytes()[:300])
        lines, _ = carry_out(cfgs)
        assert [line.status for line in lines] == ["done"]
        assert f"{path} is not whole: the run is made again" in caplog.text
        assert read_record(path)["status"] == "done"
        assert len(list(path.parent.glob("*.unreadable*"))) == 1  # nothing is lost

    def test_running_and_interrupted_come_from_claims(self, tmp_path):
        cfgs = cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=range(3)")
        plan = make_plan(cfgs)
        keys = [cell.key for cell in plan.cells if cell.key]
        held = leases.claim_runs(tmp_path, keys[:2])
        assert states(make_plan(cfgs)) == ["running", "running", "missing"]
        assert [[c.cfg.seed for c in pack.cells] for pack in make_plan(cfgs).packs] == [[2]]
        for path in held.paths:  # as if its process had been killed
            path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 0.0}))
        again = make_plan(cfgs)
        assert states(again) == ["interrupted", "interrupted", "missing"]
        assert [([c.cfg.seed for c in p.cells], p.whole) for p in again.packs] == [([0, 1], True), ([2], False)]
        held.release()

    def test_a_pack_begun_and_partly_recorded_is_taken_up_as_it_was(self, tmp_path):
        cfgs = cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=range(6)")
        first = run_pack(cfgs[:4])
        original = {o.run_id: record_path(tmp_path, "custom", o.run_id).read_bytes() for o in first}
        held = leases.claim_runs(tmp_path, [("custom", o.run_id) for o in first])
        for path in held.paths:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 0.0}))
        record_path(tmp_path, "custom", first[2].run_id).unlink()
        plan = make_plan(cfgs)
        assert [[c.cfg.seed for c in pack.cells] for pack in plan.packs] == [[0, 1, 2, 3], [4, 5]]
        carry_out(cfgs)
        again = json.loads(record_path(tmp_path, "custom", first[2].run_id).read_bytes())
        before = json.loads(original[first[2].run_id])
        for name in ("scores", "history", "trained_sha256", "numerics"):
            assert again[name] == before[name]
        held._stop.set()

    def test_two_configurations_of_one_run_are_one(self, tmp_path):
        plan = make_plan(cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,0", "threads=1"))
        assert (len(plan.cells), plan.duplicates) == (1, 1)

    def test_what_another_process_made_meanwhile_is_counted(self, tmp_path):
        class Elsewhere(InThisProcess):
            def make(self, packs):
                for pack in packs:
                    run_pack([cell.cfg for cell in pack.cells])
                    yield pack, [Line(cell.label, "busy", "", None, 0.0) for cell in pack.cells]

        lines, _ = carry_out(cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,1"), Elsewhere())
        assert [line.status for line in lines] == ["elsewhere"] * 2
        assert "0 runs done, 0 found done before, 2 made by other processes, 0 failed" in summary(lines, 0, 1.0)


class TestParents:
    def test_come_first_and_once(self, tmp_path):
        cfgs = cells(tmp_path, LORA, "task=glue/rte,glue/mrpc", 'init_from.overrides=["trainer.max_steps=2"]')
        plan = make_plan(cfgs)
        assert [(cell.cfg.task.name, cell.parent) for cell in plan.cells] == [
            ("mnli", True),
            ("rte", False),
            ("mrpc", False),
        ]
        assert [pack.cells[0].cfg.task.name for pack in plan.packs] == ["mnli", "rte", "mrpc"]
        lines, pool = carry_out(cfgs)
        assert [line.status for line in lines] == ["done"] * 3
        assert [labels[0].split()[1] for labels in pool.made] == ["mnli", "rte", "mrpc"]

    def test_their_pack_is_taken_up_whole_although_one_is_done(self, tmp_path):
        words = [LORA, "task=glue/rte", "seed=0,1", 'init_from.overrides=["trainer.max_steps=2"]']
        cfgs = cells(tmp_path, *words, "init_from.parent=same_seed")
        keys = [cell.key for cell in make_plan(cfgs).cells if cell.parent and cell.key]
        carry_out(cfgs)
        held = leases.claim_runs(tmp_path, keys)
        for path in held.paths:  # as if it had been killed between the two records
            path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 0.0}))
        path = record_path(tmp_path, *keys[1])
        numerics = json.loads(path.read_bytes())["numerics"]
        path.unlink()
        first = make_plan(cfgs).packs[0]
        assert ([cell.key for cell in first.cells], first.whole) == (keys, True)
        carry_out(cfgs)
        assert json.loads(path.read_bytes())["numerics"] == numerics
        held._stop.set()

    def test_of_which_the_best_is_wanted_are_all_made_before_their_child_has_an_identity(self, tmp_path):
        words = ['init_from.overrides=["trainer.max_steps=2"]', "init_from.parent=best", "init_from.seeds=[0,1]"]
        cfgs = cells(tmp_path, LORA, "task=glue/rte", *words)
        plan = make_plan(cfgs)
        assert [(c.cfg.task.name, c.cfg.seed, c.state) for c in plan.cells] == [
            ("mnli", 0, "missing"),
            ("mnli", 1, "missing"),
            ("rte", 0, "waiting"),
        ]
        lines, _ = carry_out(cfgs)
        assert [line.status for line in lines] == ["done"] * 3
        assert set(states(make_plan(cfgs))) == {"done"}

    def test_a_child_whose_parent_failed_is_not_begun(self, tmp_path, monkeypatch):
        words = ['init_from.overrides=["trainer.max_steps=2"]', "init_from.parent=best", "init_from.seeds=[0]"]
        monkeypatch.setattr(training, "train", lambda *_, **__: (_ for _ in ()).throw(KeyError("a bug")))
        lines, _ = carry_out(cells(tmp_path, LORA, "task=glue/rte", *words))
        assert [(line.status, line.message.split(":")[0]) for line in lines] == [
            ("failed", "error"),
            ("skipped", "its parents have no score"),
        ]


class TestFailures:
    def test_a_bug_stops_its_experiment_and_is_repeated_only_when_asked(self, tmp_path, monkeypatch):
        cfgs = cells(tmp_path, LORA, "task=glue/sst2,glue/cola", "seed=0,1")
        cfgs += cells(tmp_path, "method=bitfit", "task=glue/sst2")
        real = training.train

        def buggy(attached, jobs, *rest):
            if jobs[0].cfg.experiment != "custom":
                raise KeyError("a bug")
            return real(attached, jobs, *rest)

        monkeypatch.setattr(training, "train", buggy)
        lines, _ = carry_out(cfgs, size=2)
        assert [(line.status, line.kind) for line in lines] == [
            *[("failed", "error")] * 2,
            *[("skipped", None)] * 2,
            ("done", None),
        ]
        monkeypatch.undo()
        again, _ = carry_out(cfgs)
        assert [line.status for line in again] == ["done", "done", "skipped", "skipped"]
        assert "--retry repeats it" in again[2].message
        assert [line.status for line in carry_out(cfgs, retry=True)[0]] == ["done", "done"]
        assert not list_states(tmp_path)[cfgs[0].experiment].failed

    def test_out_of_memory_begins_again_by_itself(self, tmp_path, monkeypatch):
        cfgs = cells(tmp_path, "method=bitfit", "task=glue/sst2")
        monkeypatch.setattr(training, "train", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        assert [line.kind for line in carry_out(cfgs)[0]] == ["out_of_memory"]
        plan = make_plan(cfgs)
        assert (states(plan), len(plan.packs)) == (["failed"], 1)
        monkeypatch.undo()
        assert [line.status for line in carry_out(cfgs)[0]] == ["done"]

    @pytest.mark.slow
    def test_a_pack_that_kills_its_workers_is_named_and_the_others_go_on(self, tmp_path):
        """In a process of its own: the killer is put where every worker imports it."""
        (tmp_path / "sitecustomize.py").write_text(
            "import os, sys\n"
            "if '--multiprocessing-fork' in sys.orig_argv:\n"
            "    import peft_bench.runs.train as training\n"
            "    train = training.train\n"
            "    def deadly(attached, jobs, *rest):\n"
            "        if jobs[0].cfg.seed == 1:\n"
            "            os.kill(os.getpid(), 9)\n"
            "        return train(attached, jobs, *rest)\n"
            "    training.train = deadly\n"
        )
        words = ["method=bitfit", "task=glue/sst2", "seed=0,1", "pack=1", "--workers", "1"]
        command = [sys.executable, "-m", "peft_bench", "sweep", *SHORT, f"results_dir={tmp_path}", *words]
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path}
        )
        assert done.returncode == 1, done.stderr
        assert "1 runs done, 0 found done before, 1 failed" in done.stdout
        assert list(list_states(tmp_path)["custom"].failed.values()) == ["worker_lost"]
        assert states(make_plan(cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,1"))) == ["done", "failed"]


class TestCosts:
    def test_are_predicted_from_like_runs(self, tmp_path):
        cfgs = cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,1")
        plan = make_plan(cfgs)
        assert "no prediction for 2 runs" in costs_text(plan, 1, measure=False)
        with pytest.raises(ValueError, match="no prediction for 2 runs"):
            check_budget(plan, 3600, 1, measure=False)
        run(cfgs[0])
        plan = make_plan(cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=range(20)"))
        device = forecast._device(cfgs[0], 1)
        record = read_record(record_path(tmp_path, "custom", run(cfgs[0]).run_id))
        seconds = (record["cost"]["train_seconds"] or 0) + (record["cost"]["eval_seconds"] or 0)
        assert Costs([str(tmp_path)], device).of(cfgs[1]).seconds == pytest.approx(seconds, rel=0.3)
        assert "predicted: " in costs_text(plan, 2, measure=False)
        with pytest.raises(ValueError, match=r"the 19 open runs are predicted to take .* raise the budget"):
            check_budget(plan, 1e-3, 2, measure=False)

    def test_a_calibration_is_kept(self, tmp_path):
        plan = make_plan(cells(tmp_path, "method=bitfit", "task=glue/sst2", "seed=0,1"))
        assert "predicted: " in costs_text(plan, 1, measure=True)
        assert "predicted: " in costs_text(plan, 1, measure=False)
        assert not (tmp_path / "records").exists()

    def test_the_end_of_a_list(self):
        assert total_seconds([3, 1, 1, 1], 2) == 3
        assert total_seconds([], 2) == 0


class TestCommands:
    def test_plan_says_and_does_nothing(self, tmp_path, capsys):
        assert plan_main([LORA, "task=glue/sst2", "seed=range(6)", *SHORT, f"results_dir={tmp_path}"]) == 0
        out = capsys.readouterr().out
        assert "6 runs: 6 missing" in out
        assert "packs: 1 of 4, 1 of 2" in out
        assert not (tmp_path / "records").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["pack=0", "seed=0"], "pack=0: expected a number of at least 1"),
            (["budget=2", "seed=0"], "budget=2: expected a number with its unit"),
            (["nosuch"], "no sweep 'nosuch'"),
            (["seed=range(0)"], "these overrides name no run"),
            (["seed=0", "hydra.job.name=x"], "hydra.job.name=x: of Hydra's own keys"),
            (["seed=0", "--workers", "0"], "--workers 0: expected at least 1"),
            (["seed=0", "results_dir=/dev/null/x"], "results_dir=/dev/null/x: cannot write there"),
        ],
    )
    def test_bad_arguments_are_one_sentence(self, words, message):
        with pytest.raises(ValueError, match=message):
            main(words)

    def test_an_experiment_brings_its_own_sweep(self, tmp_path, capsys):
        assert (
            plan_main(["experiment=houlsby2019/table1_adapters_64", "task=glue/sst2", f"results_dir={tmp_path}"]) == 0
        )
        assert "5 runs: 5 missing" in capsys.readouterr().out  # its grid is not searched again at micro scale

    @pytest.mark.parametrize(
        ("scale", "first", "backbones"),
        [([], "task=glue/sst2", 3), (["scale=paper"], "task=super_glue/boolq,super_glue/cb,", 5)],
    )
    def test_a_scale_may_have_other_tasks_and_sizes(self, scale, first, backbones):
        found = own_sweep(["experiment=prompt_tuning/length", *scale])
        (task, sizes) = (next(w for w in found if w.startswith(key)) for key in ("task=", "backbone="))
        assert task.startswith(first)
        assert len(sizes.split(",")) == backbones
        assert "method.length=1,5,20,50,100,150" in found

    def test_the_text_names_failures_parents_and_duplicates(self, tmp_path):
        cfgs = cells(tmp_path, LORA, "task=glue/rte", "seed=0,0", 'init_from.overrides=["trainer.max_steps=2"]')
        text = plan_text("x", make_plan(cfgs), 2)
        assert "1 of them are parents that were not asked for" in text
        assert "1 more are the same as another run" in text
