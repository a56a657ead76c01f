"""Every scientific field of every printed row, on every task and in both settings, beside results/reference/settings.

What a row's sweep varies is compared as a whole: all its values with all that were published.
"""

import csv
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import yaml

from peft_bench.config.compose import compose_run
from peft_bench.config.departures import _grid
from peft_bench.config.fields import SCIENCE, names
from peft_bench.config.published import PAPERS, check_published
from peft_bench.config.schema import CONF_DIR, DecodingConfig, InContextConfig, RunConfig, TrainerConfig, generation_of
from peft_bench.runs.attach import with_labels
from peft_bench.runs.checks import check_config

FOLDER = CONF_DIR.parent / "results" / "reference" / "settings"
Entry = dict[str, Any]
Values = dict[str, list[Any]]  # dotted key -> all values of a sweep


@dataclasses.dataclass(frozen=True)
class Case:
    """One printed row on one task, in the paper's or the script's settings."""

    experiment: str
    settings: str
    task: str

    def __str__(self) -> str:
        return f"{self.experiment} {self.settings} {self.task}"


@cache
def tables() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yaml"))}


def published() -> Iterator[tuple[Case, dict[str, Entry]]]:
    """Each case with its entries by dotted key."""
    for table in tables().values():
        for experiment, by_settings in table["rows"].items():
            for settings, row in by_settings.items():
                for task in row["tasks"]:
                    yield Case(experiment, settings, task), entries(table, experiment, settings, task)


def entries(table: Mapping[str, Any], experiment: str, settings: str, task: str) -> dict[str, Entry]:
    """Groups in order, then the row's own values, then the task's; all of it on top of the row it is `like`."""
    row = table["rows"][experiment][settings]
    found = entries(table, experiment, row["like"], task) if "like" in row else {}
    for group in row.get("groups", ()):
        found |= table["groups"][group]
    return found | row.get("values", {}) | row["tasks"][task]


CASES = dict(published())


def ours(cfg: RunConfig, experiment: str) -> Values:
    """All values that a scientific field has in the runs of a row; several where its sweep has several."""
    found: Values = {"backbone": [cfg.backbone.name]}
    parts: list[tuple[str, type, Any]] = [("trainer", TrainerConfig, cfg.trainer)]
    if generation_of(cfg.task, cfg.scale) is not None:
        parts.append(("decoding", DecodingConfig, cfg.decoding))
    if cfg.in_context is not None:
        parts.append(("in_context", InContextConfig, cfg.in_context))
    for prefix, kind, part in parts:
        found |= {f"{prefix}.{name}": [getattr(part, name)] for name in names(kind, SCIENCE)}
    found |= {f"method.{name}": [value] for name, value in with_labels(cfg).items() if name != "_target_"}
    if cfg.init_from is None:
        found["init_from"] = [None]
    else:
        start = ("experiment", "task", "parent", "head_dense")
        found |= {f"init_from.{name}": [getattr(cfg.init_from, name)] for name in start}
    return found | swept(experiment)


def swept(experiment: str) -> Values:
    """What the sweep of a row varies. `seeds`: how many."""
    grid = {key: values for key, values in _grid(experiment).items() if key != "task"}
    found: Values = {"seeds": [len(grid.pop("seed", [0]))]}
    for key, values in grid.items():
        if key == "backbone" or "." in key:
            found[key] = values
        elif key in ("low_data", "start_words"):
            for name in values:
                for field, value in flat(yaml.safe_load((CONF_DIR / key / f"{name}.yaml").read_text())):
                    value_list = found.setdefault(field, [])
                    value_list += [] if value in value_list else [value]
        else:
            assert key in ("hand_written", "in_context")  # prompts of ours
    return found


def flat(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in part.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else ((prefix + key, value),)


# Where a field is read, of those that the table says nobody reads; any other field of the trainer is read in training.
READ: dict[str, Callable[[Values], bool]] = {
    "trainer.beta1": lambda v: "adafactor" not in v["trainer.optimizer"],
    "trainer.beta2": lambda v: "adafactor" not in v["trainer.optimizer"],
    "trainer.eps": lambda v: "adafactor" not in v["trainer.optimizer"],
    "trainer.evaluate_every_steps": lambda v: v["trainer.selection"] != ["last"],
    "trainer.warmup_ratio": lambda v: v["trainer.warmup_steps"] == [None],
    "trainer.loss_reduction": lambda v: v["backbone"][0].startswith(("t5", "gpt2", "bart")),  # they write
    "trainer.regression_bias": lambda v: not v["backbone"][0].startswith(("t5", "gpt2", "bart")),
    "trainer.head_dropout": lambda v: not v["backbone"][0].startswith(("t5", "gpt2", "bart")),
    "decoding.ngram_counts": lambda v: v["decoding.no_repeat_ngram"] != [0],
    "decoding.length_penalty": lambda v: v["decoding.beams"] != [1],
    "decoding.length_counts": lambda v: v["decoding.beams"] != [1],
    "decoding.early_stopping": lambda v: v["decoding.beams"] != [1],
    "method.words": lambda v: "words" in v["method.init"],
    "method.labels": lambda v: "class_labels" in v["method.init"],
    "method.init_range": lambda v: "uniform" in v["method.init"],
    "method.population": lambda v: bool({"sampled_vocabulary", "class_labels"} & {*v["method.init"]}),
}


def is_read(key: str, values: Values) -> bool:
    if key.startswith("trainer.") and values["trainer.epochs"] == [0]:
        return key in ("trainer.epochs", "trainer.max_length", "trainer.eval_max_length")
    return READ[key](values) if key in READ else True


# Rows and field -> what was published, what runs have, and why. Ten at most.
EXEMPT = {
    ("prefix_tuning on e2e", "trainer.max_length"): (
        [1024],
        [512],
        "GPT-2's 1,024 positions have to hold prefix and output, too; no text of E2E has 512 tokens",
    ),
}


def comparable(value: Any) -> str:
    """A value as text; 16 and 16.0 are one, false and 0 are two."""
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def differences(expected: Mapping[str, Entry], found: Values, rows: str = "") -> Iterator[str]:
    """One sentence for each field that is not what was published. rows: of EXEMPT."""
    for key in sorted(expected.keys() | found.keys()):
        if key not in expected:
            yield f"{key}={found[key]} stands in no published group"
        elif key not in found:
            if not key.startswith("decoding.") or any(name.startswith("decoding.") for name in found):
                yield f"{key} is published, and no run has it"
        elif "unpublished" in expected[key]:
            if not expected[key]["unpublished"]:
                yield f"{key}: why nobody published it is not said"
        elif expected[key].get("value") == "unused":
            if is_read(key, found):
                yield f"{key}={found[key]} is read, and the table says that nobody does"
        else:
            values = expected[key].get("values") or [expected[key]["value"]]
            if values == EXEMPT.get((rows, key), ([], None))[0]:
                values = EXEMPT[rows, key][1]
            if sorted(map(comparable, found[key])) != sorted(map(comparable, values)):
                yield f"{key}={found[key]}, published {values} ({expected[key]['source']})"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_scientific_field_is_the_published_one(case: Case):
    cfg = compose_run(
        [f"experiment={case.experiment}", f"task={case.task}", f"settings={case.settings}", "scale=paper"]
    )
    check_config(cfg)
    check_published(cfg, case.task)
    rows = f"{case.experiment.partition('/')[0]} on {case.task}"
    assert [*differences(CASES[case], ours(cfg, case.experiment), rows)] == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("trainer.beta2", [0.98], r"trainer.beta2=\[0.98\], published \[0.999\] \(TARGS\)"),
        ("trainer.batch_size", [16, 32], r"trainer.batch_size=\[16, 32\], published \[32\] \(P9\)"),
        ("trainer.group_by_length", [0], r"trainer.group_by_length=\[0\], published \[False\]"),
        ("trainer.a_new_one", [1], "trainer.a_new_one=.* stands in no published group"),
        ("method.rank", None, "method.rank is published, and no run has it"),
    ],
)
def test_another_value_is_a_difference(field: str, value: list[Any] | None, sentence: str):
    case = Case("lora/table2_roberta_base_lora", "paper", "glue/cola")
    cfg = compose_run([f"experiment={case.experiment}", f"task={case.task}", "scale=paper"])
    found = ours(cfg, case.experiment) | {field: value}
    [difference] = differences(CASES[case], {key: value for key, value in found.items() if value is not None})
    assert re.match(sentence, difference)


def test_a_field_that_nobody_reads_must_not_be_read():
    [case] = [case for case in CASES if case.experiment == "lora/table3_gpt2_medium_lora" and case.settings == "paper"]
    found = ours(compose_run([f"experiment={case.experiment}", "task=e2e", "scale=paper"]), case.experiment)
    found["trainer.warmup_steps"] = [None]
    assert any("trainer.warmup_ratio=[0.0] is read" in sentence for sentence in differences(CASES[case], found))


def test_rows_tasks_and_settings_are_those_of_conf():
    experiments = CONF_DIR / "experiment"
    paths = [path.relative_to(experiments).with_suffix("") for path in experiments.rglob("*.yaml")]
    rows = [path.as_posix() for path in paths if path.parts[0] in PAPERS]
    assert {(case.experiment, case.task) for case in CASES if case.settings == "paper"} == {
        (row, task) for row in rows for task in tasks_of(row)
    }
    scripts = {case for case in CASES if case.settings == "script"}
    # of E2E both forms of the text have the script's settings
    twice = {Case(c.experiment, "script", "e2e_tokenized") for c in scripts if c.task == "e2e"}
    assert recipes("script") == scripts | twice
    whole = {row for row in rows if "recipe" in yaml.safe_load((experiments / f"{row}.yaml").read_text())}
    assert recipes("paper") == {c for c in CASES if c.settings == "paper" and c.experiment not in whole}


def tasks_of(row: str) -> list[str]:
    params = yaml.safe_load((CONF_DIR / "experiment" / f"{row}.yaml").read_text())["hydra"]["sweeper"]["params"]
    return str(params["task"]).split(",")


def recipes(settings: str) -> set[Case]:
    """What files of conf/recipe are of; Hydra skips an optional one silently, so a misnamed one would never be read."""
    found = set()
    for path in (CONF_DIR / "recipe" / settings).rglob("*.yaml"):
        paper, row, *task = path.relative_to(CONF_DIR / "recipe" / settings).with_suffix("").parts
        found.add(Case(f"{paper}/{row}", settings, "/".join(task)))
    return found


@pytest.mark.parametrize("name", tables())
def test_every_group_is_used_and_every_value_has_its_source(name: str):
    table = tables()[name]
    used = {
        group for row in table["rows"].values() for settings in row.values() for group in settings.get("groups", ())
    }
    assert used == table["groups"].keys()
    kinds = [["unpublished"], ["source", "value"], ["source", "values"]]
    for entry in (entry for case in table["rows"] for found in of_row(case) for entry in found.values()):
        assert sorted(entry) in kinds
        assert all(entry[kind] for kind in ("unpublished", "source") if kind in entry)


def of_row(experiment: str) -> list[dict[str, Entry]]:
    return [found for case, found in CASES.items() if case.experiment == experiment]


def test_low_data_runs_take_the_published_number_of_steps():
    """Li & Liang 2021 (ACL), table 8."""
    steps = {"prefix": {50: 200, 100: 200, 200: 200, 500: 400}, "full": {50: 100, 100: 100, 200: 200, 500: 400}}
    for path in (CONF_DIR / "low_data").rglob("*.yaml"):
        of = dict(flat(yaml.safe_load(path.read_text())))
        rows = of["task.generation.train_rows"]
        assert path.stem == str(rows)
        assert of["task.generation.validation_rows"] == 0.3 * rows
        assert of["trainer.max_steps"] == steps[path.parent.name].pop(rows)
    assert not any(steps.values())


def test_the_printed_rows_are_those_of_the_papers_folders():
    named = set()
    for file in FOLDER.parent.glob("*.csv"):
        with file.open(newline="", encoding="utf-8") as lines:
            named |= {row["experiment"] for row in csv.DictReader(lines) if row.get("experiment")}
    assert {name.partition("/")[0] for name in named} == set(PAPERS)
    with_files = {name for name in named if (CONF_DIR / "experiment" / f"{name}.yaml").is_file()}
    assert with_files <= {case.experiment for case in CASES}
