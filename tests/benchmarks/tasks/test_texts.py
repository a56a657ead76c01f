"""Tasks whose answers are texts: rows, references, and settings that cannot be read."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from peft_bench.config.compose import compose_run
from peft_bench.config.schema import ScaleConfig
from peft_bench.metrics.e2e import bleu
from peft_bench.micro.data_to_text import INPUTS, REFERENCES, held_words, load_data_to_text
from peft_bench.runs.checks import check_config
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_task

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


needs_data = pytest.mark.skipif(not (DATA / "e2e_nlg_tokenized").is_dir(), reason="the papers' E2E files are not here")


PUBLISHED = ScaleConfig(name="small", data="published")


MEANING = "name[Blue Spice], eatType[coffee shop], priceRange[more than £30], customer rating[5 out of 5], near[Café X]"


def config(*words: str) -> Any:
    return compose_run(["backbone=gpt2", "task=e2e", *words])


@needs_data
def test_published_data_are_grouped_as_the_papers_group_them():
    data = load_task(config().task, PUBLISHED, str(DATA))
    assert {split: len(rows) for split, rows in data.texts.items()} == {
        "train": 42061,
        "validation": 4672,
        "test": 4693,
    }
    assert {split: len(lines) for split, lines in data.inputs.items()} == {"validation": 547, "test": 630}
    assert sum(map(len, data.references["test"])) == 4693
    assert max(map(len, data.references["test"])) == 45


@needs_data
@pytest.mark.parametrize(("task", "inputs"), [("web_nlg", {"validation": 872, "test": 1862}), ("dart", None)])
def test_webnlg_and_dart_load(task, inputs):
    cfg = config(f"task={task}", *(["task.train_split=validation"] if task == "dart" else []))
    data = load_task(cfg.task, PUBLISHED, str(DATA))
    found = {split: sum(map(len, groups)) for split, groups in data.references.items()}
    assert found == ({"validation": 2268, "test": 4928} if inputs else {"validation": 6980, "test": 12551})
    texts = [group[0] for group in data.references["validation"]]
    assert 0.2 < bleu(texts, data.references["validation"]) <= 1


@pytest.mark.parametrize(
    ("meaning", "message"),
    [
        ("name Blue Spice", "cannot read 'name Blue Spice'"),
        ("name[Blue Spice], eatTyp[pub]", r"cannot read ' ?eatTyp\[pub\]' .*slots name, eatType"),
        ("name[Blue Spice], area[]", "cannot read"),
        ("name[A] near[B]", "expected a comma before"),
        ("", "an empty meaning representation"),
        (None, "None is no text"),
    ],
)
def test_a_meaning_that_cannot_be_read_is_named_by_its_row(tmp_path, meaning, message):
    _e2e(tmp_path, [(MEANING, "a text."), (meaning, "another.")])
    with pytest.raises(DataError, match=rf"split 'train' of e2e, row 1: .*{message}"):
        load_task(config().task, PUBLISHED, str(tmp_path))


def test_an_empty_reference_is_named_by_its_row(tmp_path):
    _e2e(tmp_path, [(MEANING, "a text."), (MEANING, "  ")])
    with pytest.raises(
        DataError, match=r"split 'train' of e2e, row 1: .*at least one reference, and none of them empty"
    ):
        load_task(config().task, PUBLISHED, str(tmp_path))


def _e2e(folder: Path, rows: list[tuple[Any, str]]) -> None:
    (folder / "e2e_nlg").mkdir()
    columns = {"meaning_representation": [m for m, _ in rows], "human_reference": [text for _, text in rows]}
    for split in ("train", "validation", "test"):
        Dataset.from_dict(columns).to_parquet(str(folder / "e2e_nlg" / f"{split}.parquet"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.micro_generation.linearization=xml"], "linearization='xml': expected one of none, e2e"),
        (["task.micro_generation.text_form=upper"], "text_form='upper': expected one of official, tokenized"),
        (["task.micro_generation.train_rows=0"], "train_rows=0: expected at least 1"),
        (["task.micro_generation.train_rows=9999"], "has 6000 rows, 9999 were asked for"),
        (["task.micro_generation.source=text"], r"source='text': expected \{text\} in it"),
        (["task.micro_generation.target_column=text"], "no column 'text'"),
    ],
)
def test_wrong_generation_settings_are_refused(words, message):
    cfg = config(*words)
    with pytest.raises(DataError, match=message):
        load_task(cfg.task, cfg.scale, None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decoding.beams=0"], "decoding.beams=0"),
        (["decoding.length_counts=words"], "decoding.length_counts='words': expected one of output, source_and_output"),
        (["decoding.length_penalty=inf"], "decoding.length_penalty=inf"),
        (["trainer.backbone_dropout=0.3"], "trainer.backbone_dropout=0.3: expected null"),
        (["trainer.label_smoothing=1.0"], "trainer.label_smoothing=1.0"),
        (["trainer.loss_reduction=sum"], "trainer.loss_reduction='sum'"),
        (["task.metrics=[bleu,accuracy]"], "metrics .*expected names among loss, bleu"),
        (["task=web_nlg"], "task=web_nlg has no form at scale=micro"),
        (["backbone=roberta_base"], "answered in texts, which roberta_base does not write"),
        (["method=majority"], "answered in texts, which Majority does not write"),
    ],
)
def test_wrong_settings_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        check_config(config(*words))


def test_samples_of_the_training_rows_differ_and_repeat():
    def texts(sample: int) -> Any:
        words = ["task.micro_generation.train_rows=50", f"task.micro_generation.train_sample={sample}"]
        cfg = config(*words)
        return load_task(cfg.task, cfg.scale, None)

    first, again, second = texts(0), texts(0), texts(1)
    assert len(first.texts["train"]) == 50
    assert first.texts["train"] == again.texts["train"] != second.texts["train"]
    assert first.sha256 == again.sha256 != second.sha256
    assert first.texts["test"] == second.texts["test"]


def test_the_micro_task_holds_what_it_says():
    tables = load_data_to_text()
    sources = {split: columns["meaning_representation"] for split, columns in tables.items()}
    assert {split: len(set(lines)) for split, lines in sources.items()} == INPUTS
    assert all(len(lines) == REFERENCES * INPUTS[split] for split, lines in sources.items())
    assert not set(sources["train"]) & (set(sources["validation"]) | set(sources["test"]))
    words = {word for line in sources["train"] for word in line.split()}
    assert not held_words() & words
    assert held_words() < {word for line in sources["test"] for word in line.split()}
    # What a person scores against the others: the ceiling of the task.
    references = tables["test"]["human_reference"]
    groups = [references[i : i + REFERENCES] for i in range(0, len(references), REFERENCES)]
    assert bleu([group[0] for group in groups], [group[1:] for group in groups]) == pytest.approx(0.839, abs=0.001)
