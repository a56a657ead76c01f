"""SuperGLUE and SQuAD as they are read; on files made here, and on real ones if there are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from peft_bench.answers.words import WordAnswers
from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig
from peft_bench.metrics.labels import exact_match
from peft_bench.metrics.scores import label_scores
from peft_bench.metrics.squad import names_referent, score_answers
from peft_bench.runs.checks import check_config
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_task

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


real = pytest.mark.skipif(not (DATA / "super_glue").is_dir(), reason="no SuperGLUE and SQuAD in ../shared/data")


LABELLED = ("boolq", "cb", "copa", "multirc", "rte", "wic")


def config(*words: str) -> RunConfig:
    return compose_run(["backbone=t5_v1_1_small", "method=prompt", "decoding=greedy", "scale=small", *words])


def write(folder: Path, **columns: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("task", [*LABELLED, "wsc", "record"])
def test_super_glue_composes_and_is_checked(task: str):
    check_config(config(f"task=super_glue/{task}"))


def test_exact_match_is_of_whole_questions(tmp_path: Path):
    idx = [{"paragraph": 0, "question": q, "answer": a} for q, a in ((0, 0), (0, 1), (1, 2), (2, 3))]
    write(
        tmp_path / "super_glue" / "multirc", question=["a?", "a?", "a?", "b?"], answer=["x", "y", "x", "y"],
        paragraph=["one<br>two <b>bold</b>"] * 4, idx=idx, label=[0, 1, 1, 0],
    )  # fmt: skip
    cfg = config("task=super_glue/multirc", f"data_dir={tmp_path}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    assert data.groups["validation"].tolist() == [0, 0, 1, 2]
    tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_t5_small")
    writer = WordAnswers(cfg, cfg.task, tokenizer, 0)
    assert writer.source(data.texts["train"][0]) == "question: a? answer: x paragraph: one two bold"
    predictions = np.array([0, 1, 0, 0])
    found = label_scores(cfg.task, predictions, data.labels["validation"], data.groups["validation"])
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert exact_match(np.array([True, False]), np.array([5, 5])) == 0
    wrong = config("task=super_glue/multirc", "task.group_columns=[idx.passage]", f"data_dir={tmp_path}")
    with pytest.raises(DataError, match=r"row 0 is .*expected a field 'passage'"):
        load_task(wrong.task, wrong.scale, wrong.data_dir)


def test_wsc_trains_on_right_referents_and_is_scored_on_all(tmp_path: Path):
    text = "Ada told Bob that she came."
    write(
        tmp_path / "super_glue" / "wsc", text=[text] * 3, span1_text=["Ada", "Bob", "Bob"], span2_text=["she"] * 3,
        span2_index=[4] * 3, label=[1, 0, 0],
    )  # fmt: skip
    cfg = config("task=super_glue/wsc", "task.subset=wsc", f"data_dir={tmp_path}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    assert data.texts["train"] == [("Ada told Bob that *she* came.", "Ada")]
    assert data.references["validation"] == [["Ada"], ["Bob"], ["Bob"]]
    assert data.truth["validation"].tolist() == [1, 0, 0]
    assert not data.groups
    for nothing in ("", " ", "the"):
        assert names_referent(nothing, "Bob") is None
    assert score_answers(["", "Bob"], [["Bob"], ["Bob"]], ["wsc_accuracy"], np.array([0, 1])) == {"wsc_accuracy": 0.5}


def test_a_question_that_comes_twice_counts_twice(tmp_path: Path):
    answers = [{"text": [text], "answer_start": [0]} for text in ("rain", "snow")]
    write(tmp_path / "squad", context=["It falls."] * 2, question=["What?"] * 2, answers=answers)
    cfg = config("task=squad", f"data_dir={tmp_path}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    assert len(data.inputs["validation"]) == 2
    assert data.references["validation"] == [["rain"], ["snow"]]
    assert cfg.task.generation is not None
    cfg.task.generation.grouped = True
    assert load_task(cfg.task, cfg.scale, cfg.data_dir).references["validation"] == [["rain", "snow"]]


def test_squad_trains_on_the_first_answer_and_is_scored_on_all(tmp_path: Path):
    answers = [{"text": ["U.S.", "America", "U.S."], "answer_start": [0, 3, 0]}]
    write(tmp_path / "squad", context=["In the U.S. it rains."], question=["Where?"], answers=answers)
    cfg = config("task=squad", f"data_dir={tmp_path}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    line = "question: Where ? context: In the U . S . it rains ."
    assert data.texts["train"] == data.texts["validation"] == [(line, "U . S .")]
    assert data.references["validation"] == [["U . S .", "America"]]
    write(tmp_path / "other" / "squad", context=["x"], question=["Where?"], answers=[{"text": [], "answer_start": []}])
    with pytest.raises(DataError, match=r"row 0: .*expected at least one answer"):
        load_task(cfg.task, cfg.scale, str(tmp_path / "other"))


@real
@pytest.mark.parametrize(
    ("task", "rows", "questions"),
    [("boolq", 3270, 0), ("cb", 56, 0), ("copa", 100, 0), ("multirc", 4848, 953), ("rte", 277, 0), ("wic", 638, 0)],
)
def test_real_super_glue_is_read_whole(task: str, rows: int, questions: int):
    words = ["task.train_split=train_fewglue32"] if task == "multirc" else []
    cfg = config(f"task=super_glue/{task}", f"data_dir={DATA}", *words)
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    assert len(data.texts["validation"]) == rows
    assert len(set(data.groups.get("validation", []))) == questions
    assert set(data.labels["validation"].tolist()) == set(range(cfg.task.num_labels))


@real
def test_real_wsc_has_its_259_right_referents():
    cfg = config("task=super_glue/wsc", "task.subset=wsc", f"data_dir={DATA}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir)
    assert len(data.texts["train"]) == 259
    assert len(data.inputs["validation"]) == len(data.truth["validation"]) >= 100
    assert all(line.count("*") == 2 for line in data.inputs["validation"])


@real
def test_real_squad_scores_its_own_answers_as_right():
    cfg = config("task=squad", "task.train_split=validation", f"data_dir={DATA}")
    references = load_task(cfg.task, cfg.scale, cfg.data_dir).references["validation"]
    answers = [texts[-1] for texts in references]
    found = score_answers(answers, references, ["squad_em", "squad_f1"])
    assert answers.count(".") == 2  # v1.1's script gives no F1 to an answer without a word: it shares none
    assert found == {"squad_em": 1.0, "squad_f1": pytest.approx(1 - 2 / len(answers), abs=1e-9)}
