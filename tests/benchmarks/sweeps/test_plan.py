"""Plans: states, order, what is stale; parents first."""

import dataclasses
import json

from peft_bench.records import leases
from peft_bench.records.store import read_record, record_path
from peft_bench.runs import parents
from peft_bench.runs import train as training
from peft_bench.runs.prepare import prepare
from peft_bench.runs.run import run_pack
from peft_bench.sweeps.display import summary
from peft_bench.sweeps.forecast import write_plan
from peft_bench.sweeps.plan import make_plan
from peft_bench.sweeps.status import states_by_experiment
from peft_bench.sweeps.workers import Line, run_all
from peft_methods.lora import Lora
from tests.benchmarks.sweeps.carrying import LORA, InThisProcess, carry_out, cells, states


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

    def test_each_run_is_prepared_once_for_the_whole_sweep(self, tmp_path, monkeypatch):
        """The rounds of the plan ask for nothing again; a pack prepares its own runs and their parents."""
        calls = []

        def counted(cfg):
            calls.append(cfg.task.name)
            return prepare(cfg)

        monkeypatch.setattr(parents, "prepare", counted)
        overrides = 'init_from.overrides=["trainer.max_steps=2"]'
        cfgs = cells(tmp_path, LORA, "task=glue/rte", "seed=0,1", "init_from.parent=same_seed", overrides)
        plan = make_plan(cfgs)
        assert sorted(calls) == ["mnli", "mnli", "rte", "rte"]
        calls.clear()
        pool = InThisProcess()
        assert [line.status for line in run_all(cfgs, plan, pool, 1, None, False)] == ["done"] * 4
        assert [len(pack) for pack in pool.made] == [2, 2]
        assert sorted(calls) == ["mnli"] * 2 + ["mnli", "mnli", "rte", "rte"]  # the parents' pack, their children's

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
