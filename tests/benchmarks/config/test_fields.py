"""What each field of a configuration decides: its role, and since which value it is there."""

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from peft_bench.config import compose, fields, schema, science
from peft_bench.config.compose import compose_run, method_choice
from peft_bench.config.fields import NOTE, NUMERICS, PLACE, ROLES, SCIENCE, VERSION, field, names
from peft_bench.config.recorded import as_recorded
from peft_bench.config.schema import RunConfig
from peft_bench.config.science import scientific, start


def parts(kind: type) -> Iterator[type]:
    """The dataclass and all within it."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner):
                yield from parts(typing.cast(type, inner))


@dataclasses.dataclass
class Toy:
    """One field of each role."""

    rate: float = field()
    young: float = field(0.0, since=0.0)
    listed: list[str] = field([], since=[])  # noqa: RUF009
    speed: int = field(64, NUMERICS)
    version: int = field(1, VERSION)
    origin: str = field("", NOTE)
    folder: str | None = field(None, PLACE)


def test_every_field_has_a_role():
    kinds = {*parts(RunConfig)}
    assert kinds == {k for k in vars(schema).values() if dataclasses.is_dataclass(k)}
    for kind in kinds:
        for f in dataclasses.fields(kind):
            assert f.metadata.get("role") in ROLES, f"{kind.__name__}.{f.name}"


def test_a_young_field_starts_at_the_value_that_older_runs_had():
    """Else composing one of them again would give another identity."""
    for kind in {*parts(RunConfig)}:
        for f in dataclasses.fields(kind):
            if "since" in f.metadata:
                default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
                assert (default, f.metadata["role"]) == (f.metadata["since"], SCIENCE), f"{kind.__name__}.{f.name}"


def test_a_part_is_what_its_fields_say():
    part = dataclasses.asdict(Toy(rate=0.1, folder="/data", origin="hub"))
    assert fields.scientific_part(Toy, part) == {"rate": 0.1}
    assert fields.scientific_part(Toy, part | {"young": 0.5, "listed": ["a"]}).keys() == {"rate", "young", "listed"}
    assert fields.scientific_part(Toy, part | {"of_another_version": 1})["of_another_version"] == 1
    assert as_recorded(Toy(rate=0.1)) == {"rate": 0.1, "young": 0.0, "listed": [], "speed": 64, "origin": ""}
    assert names(Toy, NUMERICS, NOTE) == {"speed", "origin"}
    assert Toy(rate=1).listed is not Toy(rate=1).listed


WRITES = ("experiment=prompt_tuning/domain_shift_prompt", "task=squad")
LABELS = ("experiment=prompt_tuning/in_context", "task=glue/sst2", "in_context=micro_few_shot")
STARTS = ("experiment=lora/table2_roberta_base_lora", "task=glue/rte", "scale=paper")


@pytest.mark.parametrize(
    ("kind", "words", "path", "name"),
    [
        (schema.BackboneConfig, WRITES, "backbone", "revision"),
        (schema.TrainerConfig, WRITES, "trainer", "schedule"),
        (schema.TaskConfig, WRITES, "task", "label_column"),
        (schema.TaskConfig, WRITES, "transfer.squad_sea", "label_column"),
        (schema.GenerationConfig, WRITES, "task.generation", "separator"),
        (schema.DecodingConfig, WRITES, "decoding", "beams"),
        (schema.TextConfig, LABELS, "task.text", "source"),
        (schema.InContextConfig, LABELS, "in_context", "shots"),
        (schema.InitFromConfig, STARTS, "init_from", "parent"),
    ],
)
def test_a_field_of_any_part_may_be_young(
    kind: type, words: tuple[str, ...], path: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.asdict(compose_run(list(words)))

    def part() -> dict[str, Any]:
        found: Any = scientific(config) | {"init_from": start(config)}
        for key in path.split("."):
            found = found[key]
        return dict(found)

    value = part()[name]
    monkeypatch.setattr(fields, "_since", lambda k: {name: value} if k is kind else {})
    assert name not in part()
    monkeypatch.setattr(fields, "_since", lambda k: {name: "another"} if k is kind else {})
    assert part()[name] == value


@pytest.mark.parametrize("method", ["prefix", "mam"])
def test_a_field_of_a_method_may_be_young(method: str, monkeypatch: pytest.MonkeyPatch):
    config = dataclasses.asdict(compose_run([f"method={method}"]))
    words = {"words": ""}

    def prefix() -> dict[str, Any]:
        found = scientific(config)["method"]
        return dict(found["parts"][0] if method == "mam" else found)

    assert prefix()["words"] == ""
    monkeypatch.setitem(science.YOUNG_FIELDS_OF_METHODS, method_choice("prefix")["_target_"], words)
    assert "words" not in prefix()
    words["words"] = "another"
    assert prefix()["words"] == ""


def test_a_record_has_all_but_places_and_versions():
    cfg = compose_run([*WRITES, "data_dir=/data", "results_dir=/results"])
    everything, kept = dataclasses.asdict(cfg), as_recorded(cfg)
    left_out = {"data_dir", "backbone_dir", "results_dir", "checkpoint_seconds", "force"}
    assert everything.keys() - kept.keys() == left_out
    for task in (everything["task"], *everything["transfer"].values()):
        assert task.pop("version") == 1
    assert kept == {name: value for name, value in everything.items() if name not in left_out}


def test_the_schema_and_what_is_known_of_backbones_load_without_torch():
    code = "import sys, peft_bench.config.science, peft_bench.backbones.location; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["rank: 4\n", "", "_target_: 3\n"])
def test_a_method_file_without_its_class_is_refused_by_name(text, tmp_path, monkeypatch):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    monkeypatch.setattr(compose, "CONF_DIR", tmp_path)
    with pytest.raises(ValueError, match=r"conf/method/mine\.yaml has no _target_: expected the full name"):
        compose.register.__wrapped__()


def test_a_class_without_a_result_version_is_no_method():
    with pytest.raises(ValueError, match=r"method\._target_=collections\.OrderedDict: no result_version"):
        compose.method_class("collections.OrderedDict")


def test_quick_runs_start_from_no_parent():
    """Its training would take the time of a real run."""
    words = ["experiment=lora/table2_roberta_base_lora", "task=glue/rte"]
    assert compose_run(words).init_from is not None
    assert compose_run([*words, "debug=quick"]).init_from is None
