"""SuperGLUE, SQuAD and MRQA as T5 reads, writes and scores them; on files made here, and on real ones if there are."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

from peft_bench.answers.words import ILLEGAL, Writer
from peft_bench.backbones.files import MICRO_BACKBONES
from peft_bench.backbones.loading import load_backbone
from peft_bench.config.compose import compose_run
from peft_bench.config.recorded import run_config
from peft_bench.config.schema import RunConfig
from peft_bench.metrics.labels import exact_match
from peft_bench.metrics.squad import names_referent, score_answers
from peft_bench.records.store import read_record, record_path
from peft_bench.runs.attach import attach_pack
from peft_bench.runs.checks import check_config
from peft_bench.runs.parents import prepare_all
from peft_bench.runs.run import run_pack
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.lines import record_line, spaced, squad_line, wsc_line
from peft_bench.tasks.loading import load_run_data, load_task
from peft_bench.training.evaluation import scores

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


def test_lines_are_those_of_t5():
    assert spaced('He said "U.S.-made".') == 'He said " U . S . - made " .'
    assert squad_line(("Who came?", "Ada  came.")) == "question: Who came ? context: Ada came ."
    news = "First\n@highlight\nAda came\n@highlight\nBob left."
    assert record_line(("@placeholder came", ["Ada", "Bob"], news)) == (
        "query: @placeholder came entities: Ada, Bob passage: First. Ada came. Bob left."
    )
    ended = record_line(("q", ["Ada"], "First.\n@highlight\nAda came"))
    assert ended.endswith("passage: First. Ada came")
    assert wsc_line(("Ada told Bob that she came.", "she", 4)) == "Ada told Bob that *she* came."
    assert wsc_line(('"Good for him," he said.', "him", 2)) == '"Good for *him* ," he said.'
    assert wsc_line(("they want to use it , but", "it", 3)) == "they want to use *it* , but"
    with pytest.raises(ValueError, match="no 'she' at word 1"):
        wsc_line(("Ada told Bob that she came.", "she", 1))


def test_referents_are_compared_as_t5_compares_them():
    assert names_referent("The fuzzy bunny", "bunny") is True
    assert names_referent("bunny", "their fuzzy bunny") is True
    assert names_referent("Bob", "Bob's hat") is False
    assert names_referent("the a", "Bob") is None
    found = score_answers(["bunny", "Bob", "the", "Ada"], [["bunny"], ["Ada"], ["Ada"], ["Ada"]], ["wsc_accuracy"],
                          np.array([1, 0, 0, 0]))  # fmt: skip
    assert found == {"wsc_accuracy": 0.5}  # named and right, not named and wrong; no answer; named and wrong


def test_squad_scores_equal_the_official_rule():
    """v1.1's evaluation script written out for three questions: best over the answers, articles and marks left out."""
    outputs = ["the Denver Broncos!", "in 1915", "nobody"]
    references = [["Denver Broncos", "Broncos"], ["1915", "the year 1915"], ["Ada"]]
    found = score_answers(outputs, references, ["squad_em", "squad_f1"])
    assert found["squad_em"] == pytest.approx(1 / 3)
    assert found["squad_f1"] == pytest.approx((1 + 2 * 0.5 * 1 / 1.5 + 0) / 3)
    with pytest.raises(ValueError, match="3 outputs for 2"):
        score_answers(outputs, references[:2], ["squad_em"])


def test_macro_f1_counts_illegal_answers_as_missed():
    task = config("task=super_glue/cb").task
    labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, ILLEGAL, 1, 0, 2])
    found = scores(task, predictions, labels)
    f1 = [2 / (2 + 1 + 1), 2 / (2 + 0 + 1), 1.0]  # 2 TP / (2 TP + FP + FN) of each class
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predictions, labels=range(3), average="macro"))
    assert found["mean"] == pytest.approx((found["macro_f1"] + 0.6) / 2)


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
    writer = Writer(cfg.task, cfg.task.text, tokenizer, False)
    assert writer.source(data.texts["train"][0]) == "question: a? answer: x paragraph: one two bold"
    predictions = np.array([0, 1, 0, 0])
    found = scores(cfg.task, predictions, data.labels["validation"], data.groups["validation"])
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert exact_match(np.array([True, False]), np.array([5, 5])) == 0
    wrong = config("task=super_glue/multirc", "task.group_columns=[idx.passage]", f"data_dir={tmp_path}")
    with pytest.raises(DataError, match=r"row 0 is .*expected a field 'passage'"):
        load_task(wrong.task, wrong.scale, wrong.data_dir)


def test_a_prefix_stands_before_every_target_and_is_taken_off_again():
    cfg = config("task=super_glue/rte", "task.target_prefix='<extra_id_0>'")
    writer = Writer(cfg.task, cfg.task.text, AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_t5_small"), False)
    assert writer.target(1) == "<extra_id_0> not_entailment"
    assert [writer.meaning(answer) for answer in ("<extra_id_0> not_entailment", "entailment", "<extra_id_0>")] == [
        1, 0, ILLEGAL,
    ]  # fmt: skip


def test_a_prompt_starts_from_the_labels_of_its_task(tmp_path: Path):
    """One label a row, the mean of its pieces; ReCoRD's and WSC's words are the paper's (footnote 7)."""
    words = ("task=glue/rte", "scale=micro", "method.init=class_labels", "method.length=3", "trainer.max_steps=1",
             "trainer.max_length=48", "trainer.learning_rate=1e-30", "trainer.optimizer=adafactor")  # fmt: skip
    (outcome,) = run_pack([config(*words, f"results_dir={tmp_path}")])
    tensors = load_file(next((tmp_path / "trained").rglob(f"{outcome.run_id}.safetensors")))
    (rows,) = (tensor for name, tensor in tensors.items() if name.endswith("rows"))
    weights = load_file(MICRO_BACKBONES / "micro_t5_small" / "model.safetensors")["shared.weight"]
    tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_t5_small")
    for row, label in zip(rows, ("good", "bad"), strict=False):
        ids = tokenizer.encode(label, add_special_tokens=False)
        torch.testing.assert_close(row, weights[ids].mean(0))
    assert config("task=super_glue/wsc").task.prompt_words == ["commonsense", "pronoun", "resolution"]
    with pytest.raises(ValueError, match="class_labels with task=squad, which has no labels"):
        run_pack([config("task=squad", *words[1:], f"results_dir={tmp_path}")])


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
    assert data.groups["validation"].tolist() == [1, 0, 0]
    for nothing in ("", " ", "the"):
        assert names_referent(nothing, "Bob") is None
    assert score_answers(["", "Bob"], [["Bob"], ["Bob"]], ["wsc_accuracy"], np.array([0, 1])) == {"wsc_accuracy": 0.5}


@pytest.mark.parametrize(
    ("labels", "prefix", "message"),
    [
        ("[' good',good]", "", "' good' of label 0 is read back as label 1"),
        ("['good ',bad]", "", "'good ' of label 0 is read back as no label"),
        ("['</s>',good]", "", "'</s>' of label 0 is read back as no label"),
        ("[bad,good]", "</s>", "'bad' of label 0 is read back as no label"),
        ("['',good]", "", "makes no token of ''"),
        ("[bad,good]", "<extra_id_999>", "has no <extra_id_999>; expected one of its sentinels"),
        (f"[bad,{' '.join(['good'] * 64)}]", "", "good good...' of label 1 has 64 tokens, expected at most 47"),
    ],
)
def test_labels_that_could_never_be_answered_are_refused(labels: str, prefix: str, message: str):
    words = (f"task.micro_text.labels={labels}", f"task.target_prefix={prefix!r}", "method.init=uniform")
    with pytest.raises(DataError, match=message):
        run_pack([config("task=glue/sst2", "scale=micro", *words, "results_dir=/nowhere/else")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((("transfer.qqp.micro_text.source", "{foo}"),), r"transfer.qqp.micro_text.source='\{foo\}': expected the col"),
        ((("transfer.qqp.micro_text.labels", ["good"]),), r"transfer.qqp.micro_text.labels=\['good'\]: expected 2"),
        ((("task.micro_text.source", "nothing"),), r"task.micro_text.source='nothing': .*\(no \{sentence1\}\)"),
        ((("task.micro_text.source", "{sentence1.x} {sentence2}"),), "has no attribute 'x'"),
    ],
)
def test_texts_of_every_task_are_checked(words: Any, message: str):
    cfg = compose_run(["experiment=prompt_tuning/transfer_mrpc_qqp_prompt"])
    for key, value in words:
        part: Any = cfg
        *path, last = key.split(".")
        for name in path:
            part = part[name] if isinstance(part, dict) else getattr(part, name)
        setattr(part, last, value)
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_decoding_without_room_for_any_answer_is_refused(tmp_path: Path):
    words = ("task=squad", "scale=micro", "method.init=uniform", "decoding.max_new_tokens=1", "trainer.max_length=64")
    with pytest.raises(DataError, match=r"decoding\.max_new_tokens=1 has no room for any answer of validation"):
        run_pack([config(*words, f"results_dir={tmp_path}")])


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


def mrqa(path: Path, *lines: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_every_question_of_an_mrqa_file_is_a_row(tmp_path: Path):
    asked = [
        {"qid": "1", "question": "Who?", "answers": ["Ada"]},
        {"qid": "2", "question": "When?", "answers": ["now"]},
    ]
    mrqa(
        tmp_path / "mrqa" / "BioASQ.jsonl.gz", {"header": {"dataset": "BioASQ"}}, {"context": "Ada, now.", "qas": asked}
    )
    cfg = config("task=mrqa/bioasq", f"data_dir={tmp_path}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir, trains=False)
    assert data.inputs["BioASQ"] == [f"question: {q} ? context: Ada , now ." for q in ("Who", "When")]
    assert data.references["BioASQ"] == [["Ada"], ["now"]]
    (tmp_path / "other" / "mrqa").mkdir(parents=True)
    (tmp_path / "other" / "mrqa" / "BioASQ.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"BioASQ.jsonl.gz, line 0: BadGzipFile"):
        load_task(cfg.task, cfg.scale, str(tmp_path / "other"), trains=False)
    mrqa(tmp_path / "wrong" / "mrqa" / "BioASQ.jsonl.gz", {"header": {"dataset": "DuoRC.ParaphraseRC"}})
    with pytest.raises(DataError, match=r"says that this is DuoRC.ParaphraseRC, its name that it is BioASQ"):
        load_task(cfg.task, cfg.scale, str(tmp_path / "wrong"), trains=False)
    for place, lines in (
        ("no answer", [{"context": "Ada.", "qas": [{"question": "Who?", "answers": []}]}]),
        ("no question in all of the file", []),
    ):
        mrqa(tmp_path / place / "mrqa" / "BioASQ.jsonl.gz", {"header": {"dataset": "BioASQ"}}, *lines)
        with pytest.raises(DataError, match=f"{place}|answers .* are no list of texts"):
            load_task(cfg.task, cfg.scale, str(tmp_path / place), trains=False)
    with pytest.raises(DataError, match=r"no file .*DROP.jsonl.gz \(found: BioASQ"):
        load_task(config("task=mrqa/drop").task, cfg.scale, str(tmp_path), trains=False)


def test_a_run_is_scored_on_the_tasks_it_transfers_to(tmp_path: Path):
    """Trained on questions about the town, scored on those about the sea; and from duplicates to paraphrases."""
    short = (
        "scale=micro", "trainer.max_steps=4", "trainer.evaluate_every_steps=2", "trainer.max_length=64",
        "method.length=3", "trainer.optimizer=adafactor", "trainer.learning_rate=0.3", f"results_dir={tmp_path}",
    )  # fmt: skip
    squad = config("task=squad", *short)
    sea = compose_run(["task=squad_sea"]).task
    squad.transfer = {"sea": sea}
    mrpc = config("task=glue/qqp", *short)
    mrpc.transfer = {"mrpc": compose_run(["task=glue/mrpc"]).task}
    for cfg, split, metric, n in ((squad, "sea/validation", "squad_f1", 1000), (mrpc, "mrpc/test", "f1", 2000)):
        (outcome,) = run_pack([cfg])
        record = read_record(record_path(tmp_path, "custom", outcome.run_id))
        found = {(s["split"], s["metric"]): s["n"] for s in record["scores"]}
        assert found[split, metric] == n
        assert f"{split.split('/')[0]}/train" not in record["data"]["rows"]
        assert run_config(record["config"]).transfer == cfg.transfer
        alone = load_task(cfg.task, cfg.scale, None)
        assert load_run_data(cfg).sha256 != alone.sha256
    mrpc.transfer = {"squad": squad.task}
    with pytest.raises(ValueError, match=r"transfer.squad is squad with num_labels=0, the run is trained on qqp"):
        check_config(mrpc)


def test_a_mixture_is_trained_on_together_and_one_task_of_it_is_scored(tmp_path: Path):
    """Each row once, its task's name in front; labels, scores and texts in one mixture."""
    short = (
        "scale=micro", "trainer.max_steps=2", "trainer.evaluate_every_steps=2", "trainer.max_length=64",
        "task.test_splits=[]", "method=full", "trainer.optimizer=adafactor", "trainer.parameter_scaling=true",
        "backbone=t5_v1_1_small",
        f"results_dir={tmp_path}",
    )  # fmt: skip
    cfg = config("task=glue/sst2", *short)
    others = {name: config(f"task={choice}").task for name, choice in (("stsb", "glue/stsb"), ("squad", "squad"))}
    cfg.mixture = others | {"sst2": cfg.task}
    check_config(cfg)
    (p,) = prepare_all([cfg])
    backbone = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0)
    pack = attach_pack([p], backbone)
    pack.attached.detach()
    (job,) = pack.jobs
    rows = [
        len(load_task(task, cfg.scale, None).texts["train"]) for task in (cfg.task, others["squad"], others["stsb"])
    ]
    assert len(job.train_split) == sum(rows)

    def shown(row: int) -> tuple[str, str]:
        ids = (job.train_split.rows(np.array([row]))[0], job.train_split.target_rows(np.array([row]))[0])
        source, target = (backbone.tokenizer.decode(each, skip_special_tokens=True) for each in ids)
        return source, target

    first = np.cumsum([0, *rows[:-1]])
    for row, name in zip(first, ("sst2", "squad", "stsb"), strict=True):
        source, target = shown(int(row))
        assert source.startswith(f"{name} ")
        assert target
    assert shown(int(first[2]))[1].replace(".", "").isdigit()
    assert backbone.tokenizer.decode(job.data["validation"].rows(np.array([0]))[0]).startswith("sst2 ")
    assert {name.partition("/")[0] for name in job.data} == {"train", "validation"}
    (outcome,) = run_pack([cfg])
    record = read_record(record_path(tmp_path, "custom", outcome.run_id))
    assert record["data"]["rows"] == {"train": 2400, "validation": 500} | {
        f"{name}/train": n for name, n in zip(("squad", "stsb"), rows[1:], strict=True)
    }
    assert {score["split"] for score in record["scores"]} == {"validation"}
    assert run_config(record["config"]).mixture == cfg.mixture
    alone = config("task=glue/sst2", *short)
    assert prepare_all([alone])[0].run_id != outcome.run_id
    boolq = config("task=super_glue/boolq").task
    refused: list[tuple[dict[str, Any], str]] = [
        ({"transfer": {"cola": config("task=glue/cola").task}}, "no task to transfer to"),
        ({"mixture": {"a/b": others["stsb"]}}, "no slash in the name"),
        ({"mixture": {"boolq": boolq}}, "has no text form at scale=micro"),
    ]
    for change, message in refused:
        with pytest.raises(ValueError, match=message):
            check_config(dataclasses.replace(cfg, **change))


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
    assert len(data.inputs["validation"]) == len(data.groups["validation"]) >= 100
    assert all(line.count("*") == 2 for line in data.inputs["validation"])


@real
def test_real_squad_scores_its_own_answers_as_right():
    cfg = config("task=squad", "task.train_split=validation", f"data_dir={DATA}")
    references = load_task(cfg.task, cfg.scale, cfg.data_dir).references["validation"]
    found = score_answers([texts[-1] for texts in references], references, ["squad_em", "squad_f1"])
    assert found == {"squad_em": 1.0, "squad_f1": 1.0}
