"""Composing many runs at once gives what composing each gives."""

import dataclasses

import pytest

from peft_bench.config.compose import compose_run
from peft_bench.config.many import compose_all
from peft_bench.config.multirun import expand

LORA = "experiment=lora/table2_roberta_base_lora"


class TestComposition:
    def test_equals_composing_each_run(self):
        jobs = expand(
            [
                LORA,
                "task=glue/sst2,glue/rte",
                "seed=0,1",
                "method.rank=2,4",
                "trainer.learning_rate=1e-3,1",
            ]
        )
        jobs += [["method=houlsby", "seed=3", "method.bottleneck_dim=2", "results_dir='a b'", "threads=null"]]
        jobs += [["method=lora", "method.targets=[query]", "+init_from=null"[1:], "seed=1", "seed=2"]]
        jobs += [["backbone=gpt2", "in_context=micro_few_shot", "debug=quick", f"seed={seed}"] for seed in (0, 1)]
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
            compose_all(
                [
                    [LORA, "task=glue/sst2", "seed=0"],
                    [LORA, "task=glue/sst2", word],
                ]
            )
        assert word in str(error.value)
