"""What a command line has changed of an experiment's own settings, as every record says it."""

import dataclasses
from pathlib import Path

import pytest

from peft_bench.config.compose import compose_run
from peft_bench.config.departures import departures, unused_decoding
from peft_bench.config.recorded import run_config
from peft_bench.records.store import read_record

LORA = "experiment=lora/table2_roberta_base_lora"
SWEEP = "experiment=houlsby2019/table1_adapters_8_256"


def of(*words: str) -> dict[str, list[object]]:
    return departures(dataclasses.asdict(compose_run(list(words))))


@pytest.mark.parametrize(
    "words",
    [
        [LORA, "task=glue/rte", "scale=paper", "seed=3", "results_dir=/elsewhere", "trainer.precision=bf16"],
        [LORA, "task=glue/rte", "scale=paper", "settings=script", "init_from.if_missing=error"],
        [SWEEP, "task=glue/rte", "scale=paper", "trainer.learning_rate=3e-3", "method.bottleneck_dim=256"],
        ["experiment=prefix_tuning/low_data_random", "task=e2e", "scale=paper", "low_data=prefix/500"],
        ["experiment=prompt_tuning/size", "task=super_glue/cb", "scale=paper", "backbone=t5_small_lm_adapt"],
        [LORA, "task=wnli"],
        ["experiment=lora/table3_gpt2_medium_lora", "task=e2e_tokenized", "scale=paper"],  # two files named e2e
        ["method=lora", "trainer.max_steps=3"],  # of no experiment
    ],
)
def test_the_published_settings_and_their_sweep_are_no_departure(words: list[str]) -> None:
    assert of(*words) == {}


def test_every_other_value_is_one() -> None:
    paper = [LORA, "task=glue/cola", "scale=paper"]
    assert of(*paper, "trainer.max_steps=100") == {"trainer.max_steps": [100, None]}
    assert of(*paper, "trainer.learning_rate=1e-3") == {"trainer.learning_rate": [1e-3, 4e-4]}
    assert of(*paper, "method.dropout=0.1") == {"method.dropout": [0.1, 0.0]}
    changed = of(*paper, "method=bitfit")
    assert changed["method._target_"] == ["peft_methods.bitfit.BitFit", "peft_methods.lora.Lora"]
    assert changed["method.rank"] == [None, 8]
    elsewhere = of(*paper, "backbone.hub_id=someone/else", "backbone.weights_sha256=abc", "backbone.dtype=bfloat16")
    assert elsewhere == {
        "backbone.dtype": ["bfloat16", "float32"],
        "backbone.hub_id": ["someone/else", "FacebookAI/roberta-base"],
        "backbone.weights_sha256": ["abc", None],
    }
    assert "backbone.pretrained" in of(*paper, "backbone.pretrained=false")
    rows = of("experiment=prefix_tuning/low_data_random", "task=e2e", "scale=paper", "low_data=full/50")
    assert rows["trainer.max_steps"] == [100, 200]
    assert of(SWEEP, "task=glue/rte", "scale=paper", "trainer.learning_rate=1e-3").keys() == {"trainer.learning_rate"}
    assert of(LORA, "task=glue/rte", "scale=paper", "init_from=null").keys() >= {"init_from.experiment"}
    seeds = of(LORA, "task=glue/rte", "scale=paper", "init_from.seeds=[0]")
    assert seeds == {"init_from.seeds": [[0], [0, 1, 2, 3, 4]]}


def test_decoding_that_a_task_with_labels_does_not_use_is_named() -> None:
    def unused(*words: str) -> list[str]:
        return unused_decoding(compose_run(list(words)))

    prompt = "experiment=prompt_tuning/size"
    assert unused(prompt, "task=glue/sst2", "decoding.beams=4") == ["decoding.beams"]
    assert unused("backbone=t5_base_lm_adapt", "task=glue/sst2", "decoding.beams=4") == ["decoding.beams"]
    assert unused(prompt, "task=glue/sst2") == unused(prompt, "task=squad", "decoding.beams=4") == []
    assert unused("experiment=small/t5_prompt", "task=super_glue/cb", "scale=small") == []


def test_a_task_or_experiment_without_a_file_is_one() -> None:
    assert of(LORA, "task=glue/rte", "task.name=mine") == {"task": ["mine", None]}


def test_a_record_from_before_decoding_has_no_unused_decoding():
    """So that `verify` can make it again."""
    folder = Path(__file__).parents[3] / "results" / "records" / "controls" / "majority"
    configs = [read_record(path)["config"] for path in folder.glob("*.json")]
    assert any("decoding" not in config for config in configs)
    assert next(unused_decoding(run_config(config)) for config in configs if "decoding" not in config) == []
