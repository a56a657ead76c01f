"""Runs that fail: what stops, what goes on, what begins again."""

import os
import subprocess
import sys

import pytest

from peft_bench.records.states import list_states
from peft_bench.runs import train as training
from peft_bench.sweeps.plan import make_plan
from tests.benchmarks.sweeps.carrying import LORA, SHORT, carry_out, cells, states


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
