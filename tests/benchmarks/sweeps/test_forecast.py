"""What a plan says of its runs, and what they will take."""

import pytest

from peft_bench.records.store import read_record, record_path
from peft_bench.runs.run import run
from peft_bench.sweeps import forecast
from peft_bench.sweeps.costs import Costs, total_seconds
from peft_bench.sweeps.forecast import check_budget, costs_text, plan_text
from peft_bench.sweeps.plan import make_plan
from tests.benchmarks.sweeps.carrying import LORA, cells


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


class TestText:
    def test_the_text_names_failures_parents_and_duplicates(self, tmp_path):
        cfgs = cells(tmp_path, LORA, "task=glue/rte", "seed=0,0", 'init_from.overrides=["trainer.max_steps=2"]')
        text = plan_text("x", make_plan(cfgs), 2)
        assert "1 of them are parents that were not asked for" in text
        assert "1 more are the same as another run" in text
