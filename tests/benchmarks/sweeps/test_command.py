"""The verbs sweep and plan."""

import pytest

from peft_bench.config.multirun import own_sweep
from peft_bench.sweeps.command import main
from peft_bench.sweeps.command import plan as plan_main
from tests.benchmarks.sweeps.carrying import LORA, SHORT


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
