"""A printed row that takes a scientific value from a default is refused at scale=paper."""

from pathlib import Path
from typing import Any

import pytest

from peft_bench.config import published
from peft_bench.config.compose import compose_run
from peft_bench.config.published import check_published, inherited


@pytest.mark.parametrize(
    ("group", "left_out", "experiment", "task"),
    [
        ("trainer/prefix_e2e", "warmup_ratio", "prefix_tuning/table4_prefix", "e2e"),
        ("trainer/prompt_tuning", "z_loss", "prompt_tuning/model_tuning", "super_glue/rte"),
        ("decoding/lora_e2e", "beams", "lora/table3_gpt2_medium_lora", "e2e"),
        ("method/lora", "init_A", "lora/table2_roberta_base_lora", "glue/rte"),
    ],
)
def test_a_value_that_nobody_states_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str, left_out: str, experiment: str, task: str
) -> None:
    words = (f"experiment={experiment}", f"task={task}", "scale=paper")
    cfg = compose_run(words)
    real = published._read

    def without(path: Path) -> dict[str, Any]:
        return {k: v for k, v in real(path).items() if not (path.match(f"{group}.yaml") and k == left_out)}

    monkeypatch.setattr(published, "_read", without)
    published._stated.cache_clear()
    key = f"{group.partition('/')[0]}.{left_out}"
    assert inherited(cfg, task) == [key]
    with pytest.raises(ValueError, match=f"would take over {key} from a default .* conf/experiment/{experiment}"):
        check_published(cfg, task)
    published._stated.cache_clear()
