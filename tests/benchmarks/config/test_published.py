"""Every scientific value of a printed row is written down for it, and is the published one."""

import csv
import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from peft_bench.config import published
from peft_bench.config.compose import compose_run
from peft_bench.config.fields import SCIENCE, names
from peft_bench.config.published import PAPERS, check_published, inherited
from peft_bench.config.schema import CONF_DIR, TrainerConfig

TABLE: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "published_settings.yaml").read_text(encoding="utf-8")
)["rows"]
FILES = [p.relative_to(CONF_DIR / "experiment") for p in sorted((CONF_DIR / "experiment").rglob("*.yaml"))]
EXPERIMENTS = [p.with_suffix("").as_posix() for p in FILES if p.parts[0] in PAPERS]
REFERENCE = CONF_DIR.parent / "results" / "reference"
BY_TASK = {"learning_rate", "batch_size", "epochs", "max_length", "micro_batch_size", "max_steps", "weight_decay"}


def cases() -> list[tuple[str, str, str]]:
    """Experiment, settings and one task of each: recipes differ in a task's own values, which the last test covers."""
    found = []
    for experiment in EXPERIMENTS:
        content = yaml.safe_load((CONF_DIR / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
        task = content["hydra"]["sweeper"]["params"]["task"].split(",")[0]
        found.append((experiment, "paper", task))
        scripts = sorted((CONF_DIR / "recipe" / "script" / experiment).rglob("*.yaml"))
        if scripts:
            folder = CONF_DIR / "recipe" / "script" / experiment
            found.append((experiment, "script", scripts[0].relative_to(folder).with_suffix("").as_posix()))
    return found


def expected_of(experiment: str, settings: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for pattern, values in TABLE.items():
        if fnmatch.fnmatch(experiment, pattern):
            merged |= values
    which = ("paper", "script").index(settings)
    return {key: value[which] if isinstance(value, list) else value for key, value in merged.items()}


@pytest.mark.parametrize(("experiment", "settings", "task"), cases())
def test_every_value_is_stated_and_published(experiment: str, settings: str, task: str) -> None:
    cfg = compose_run([f"experiment={experiment}", f"task={task}", f"settings={settings}", "scale=paper"])
    check_published(cfg, task)
    if not cfg.trainer.epochs:
        return  # nothing is trained
    expected = expected_of(experiment, settings)
    assert names(TrainerConfig, SCIENCE) - expected.keys() <= BY_TASK
    assert {key: getattr(cfg.trainer, key) for key in expected} == expected


def test_the_printed_rows_are_those_of_the_papers_folders() -> None:
    named = set()
    for file in REFERENCE.glob("*.csv"):
        with file.open(newline="", encoding="utf-8") as lines:
            named |= {row["experiment"] for row in csv.DictReader(lines) if row.get("experiment")}
    assert {name.partition("/")[0] for name in named} == set(PAPERS)


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
