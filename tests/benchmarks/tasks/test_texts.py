"""Tasks whose answers are texts: lines, rows, references, losses, and runs from configuration to record."""

import gzip
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoTokenizer

from peft_bench.answers.job import Job
from peft_bench.answers.sequences import IGNORED
from peft_bench.answers.texts import TextWriter
from peft_bench.backbones.files import MICRO_BACKBONES
from peft_bench.cli import main
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import ScaleConfig, generation_of
from peft_bench.metrics.e2e import bleu
from peft_bench.micro.data_to_text import INPUTS, REFERENCES, held_words, load_data_to_text
from peft_bench.records.store import predictions_path, read_record, record_path
from peft_bench.runs.checks import check_config
from peft_bench.runs.run import How, run_pack
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.lines import dart_line, e2e_line, plain_texts, tokenized, web_nlg_line
from peft_bench.tasks.loading import load_task

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "e2e_nlg_tokenized").is_dir(), reason="the papers' E2E files are not here")
PUBLISHED = ScaleConfig(name="small", data="published")
MEANING = "name[Blue Spice], eatType[coffee shop], priceRange[more than £30], customer rating[5 out of 5], near[Café X]"


def config(*words: str) -> Any:
    return compose_run(["backbone=gpt2", "task=e2e", *words])


def test_lines_are_the_papers():
    line = (
        "name : Blue Spice | Type : coffee shop | price : more than £ 30 | customer rating : 5 out of 5 | near : Café X"
    )
    assert e2e_line(MEANING, tokenized) == line
    assert e2e_line(MEANING) == line.replace("£ 30", "£30")
    assert web_nlg_line(["A_B | leaderName | C", "D | x | E"]) == "| A_B : leaderName : C | D : x : E"
    assert dart_line([["A", "LEADER", "C"], ["D", "X", "E"]]) == "A : leader : C | D : x : E"
    assert plain_texts([{"source": "x", "text": " a b. "}]) == ["a b."]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It isn't family-friendly, £20-25.", "It is n't family - friendly , £ 20 - 25 ."),
        ('Jo\'s "Café" (5/5)... 1,000.50!', 'Jo \'s " Café " ( 5 / 5 ) ... 1,000.50 !'),
    ],
)
def test_tokenized_text(text, tokens):
    assert tokenized(text) == tokens
    assert tokenized(tokens) == tokens


@needs_data
@pytest.mark.parametrize(("split", "texts"), [("validation", 4602), ("test", 4652)])
def test_the_tokenized_form_is_the_papers(split, texts):
    official, papers = (
        Dataset.from_parquet(str(DATA / name / f"{split}.parquet"), keep_in_memory=True)
        for name in ("e2e_nlg", "e2e_nlg_tokenized")
    )
    lines = [e2e_line(meaning, tokenized) for meaning in official["meaning_representation"]]
    assert lines == [line.strip() for line in papers["source"]]
    equal = [tokenized(a) == b.strip() for a, b in zip(official["human_reference"], papers["target"], strict=True)]
    assert sum(equal) == texts


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


@pytest.fixture
def job(tmp_path):
    """job(*words): one row of 3 and one of 5 target tokens of the micro GPT-2."""

    def build(*words: str) -> Job:
        cfg = config(*words)
        tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_gpt2")
        generation = generation_of(cfg.task, cfg.scale)
        assert generation is not None
        writer = TextWriter(generation, tokenizer, decoder_only=True)
        labels = np.zeros(2, dtype=np.int64)
        split = writer.pairs(["the baker", "the soup was"], [" the baker", " the baker was good"], labels, 48)
        return Job(cfg, {"train": split}, writer.pad, texts=writer)

    return build


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["token_mean", "example_sum"])
def test_loss_is_what_the_papers_code_computes(job, smoothing, reduction):
    run = job(f"trainer.label_smoothing={smoothing}", f"trainer.loss_reduction={reduction}")
    rows = np.array([0, 1])
    batch = run.training_batch(rows)
    logits = torch.randn(*batch["input_ids"].shape, 1600, dtype=torch.float64)
    found = run.loss(logits, batch["labels"]) / run.weight(rows)
    by_example = []
    for b, targets in enumerate(run.train_split.target_rows(rows)):
        start = len(run.train_split.rows(rows)[b]) - 1
        lines = logits[b, start : start + len(targets)].log_softmax(-1)
        nll = -lines[torch.arange(len(targets)), torch.from_numpy(targets).long()]
        by_example.append((1 - smoothing) * nll + smoothing * -lines.mean(-1))
    expected = torch.cat(by_example).mean() if reduction == "token_mean" else sum(map(torch.sum, by_example)) / 2
    assert found.item() == pytest.approx(float(expected), abs=1e-6)
    with_z = job(f"trainer.label_smoothing={smoothing}", f"trainer.loss_reduction={reduction}", "trainer.z_loss=0.01")
    read = logits[batch["labels"] != IGNORED]
    more = 0.01 * (read.exp().sum(-1).log() ** 2).sum() / run.weight(rows)
    assert (with_z.loss(logits, batch["labels"]) / run.weight(rows)).item() == pytest.approx(float(expected + more))
    kind = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=smoothing)
    if reduction == "token_mean":
        assert found.item() == pytest.approx(kind.item(), abs=1e-6)


RUN = ("trainer.max_steps=4", "trainer.evaluate_every_steps=2", "trainer.learning_rate=1e-3", "decoding.beams=2")
SMALL = ("task.micro_generation.validation_rows=40", "decoding.max_new_tokens=8")


def test_a_pack_runs_from_configuration_to_record(tmp_path, monkeypatch):
    monkeypatch.setattr("peft_bench.micro.data_to_text.INPUTS", {"train": 30, "validation": 12, "test": 10})
    monkeypatch.setattr("peft_bench.micro.data_to_text._load", _uncached_tables())
    words = [*RUN, *SMALL, f"results_dir={tmp_path}", "task.micro_generation.train_rows=64"]
    cfgs = [config("method=lora", *words), config("method=prefix", "method.mlp_hidden=8", *words)]
    _forget_data()
    outcomes = run_pack(cfgs, How(show_progress=False))
    _forget_data()
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    for outcome in outcomes:
        record = read_record(record_path(tmp_path, "custom", outcome.run_id))
        assert record["selection"] == {"checkpoint": "best", "split": "validation", "metric": "loss"}
        assert [point["step"] for point in record["history"]] == [2, 4]
        losses = [point["scores"]["validation"]["loss"] for point in record["history"]]
        found = {(s["split"], s["checkpoint"], s["metric"]): (s["score"], s["n"]) for s in record["scores"]}
        assert found["validation", "best", "loss"][0] == pytest.approx(min(losses))  # type: ignore[type-var]
        assert found["validation", "last", "loss"][0] == pytest.approx(losses[-1])
        assert found["validation", "best", "loss"][1] == 40
        assert found["test", "best", "loss"][1] == 40
        assert found["test", "last", "bleu"][1] == 10
        has_java = shutil.which("java") is not None
        assert (found["test", "best", "meteor"][0] is not None) == has_java
        assert found["test", "best", "cut_off"][0] == pytest.approx(_cut_off(tmp_path, outcome.run_id))
        assert ("outputs_cut_off" in record["flags"]) == (found["validation", "best", "cut_off"][0] != 0)
        assert math.isfinite(record["cost"]["eval_seconds"] or math.inf)


def _cut_off(folder: Path, run_id: str) -> float:
    written = json.loads(gzip.decompress(predictions_path(folder, "custom", run_id).read_bytes()))
    assert len(written["test"]["prediction"]) == 10
    assert all(isinstance(text, str) for text in written["test"]["prediction"])
    return written["test"]["ended"].count(False) / 10


def _uncached_tables() -> Any:
    from peft_bench.micro import data_to_text

    return data_to_text._load.__wrapped__


def _forget_data() -> None:
    from peft_bench.tasks import texts

    texts._load.cache_clear()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decoding.max_new_tokens=200"], "leaves no room for a source among 128 positions"),
        (["method=prefix", "method.length=20", "method.mlp_hidden=8", "decoding.max_new_tokens=108"], "108 positions"),
        (["method=head_only"], "trains nothing .* set trainer.epochs=0 to score the frozen backbone"),
        (["trainer.epochs=0"], "trainer.epochs=0 with Lora"),
        (["decoding.ends=['the baker']"], "decoding.ends: 'the baker' is 2 tokens"),
        (["decoding.banned=['the baker']"], "decoding.banned: 'the baker' is 2 tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "backbone=gpt2", "task=e2e", "method=lora", *RUN, f"results_dir={tmp_path}", *words])
    assert re.search(message, capsys.readouterr().err)


def test_a_frozen_backbone_is_scored_without_training(tmp_path):
    cfg = config(
        "experiment=prefix_tuning/hand_written", "hand_written=bare", f"results_dir={tmp_path}",
        "decoding.beams=1", "decoding.max_new_tokens=4",
    )  # fmt: skip
    (outcome,) = run_pack([cfg], How(show_progress=False))
    record = read_record(record_path(tmp_path, "prefix_tuning/hand_written", outcome.run_id))
    assert (record["status"], record["history"], record["params"]["method"]) == ("done", [], 0)
    assert {s["metric"] for s in record["scores"]} >= {"bleu", "loss"}
    assert {s["epoch"] for s in record["scores"]} == {0.0}
