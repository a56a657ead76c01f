"""Which runs train together, and why the others go alone."""

import dataclasses

from peft_bench.records.store import read_record, record_path
from peft_bench.runs.run import run
from peft_bench.sweeps.packs import footprint, memory_bytes, pack_runs
from tests.benchmarks.sweeps.carrying import cells


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
