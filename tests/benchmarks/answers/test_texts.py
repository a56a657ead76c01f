"""Tasks whose answers are texts: losses, room, and runs from configuration to record."""

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
from transformers import AutoTokenizer

from peft_bench.answers.sequences import IGNORED
from peft_bench.answers.texts import TextAnswers
from peft_bench.answers.tokens import Tokens
from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.cli import main
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig
from peft_bench.records.store import predictions_path, read_record, record_path
from peft_bench.runs.run import How, run_pack
from peft_bench.tasks.examples import DataError


def config(*words: str) -> RunConfig:
    return compose_run(["backbone=gpt2", "task=e2e", *words])


def test_decoding_without_room_for_any_answer_is_refused(tmp_path: Path):
    words = ("backbone=t5_v1_1_small", "method=prompt", "decoding=greedy", "task=squad", "method.init=uniform",
             "decoding.max_new_tokens=1", "trainer.max_length=64")  # fmt: skip
    with pytest.raises(DataError, match=r"decoding\.max_new_tokens=1 has no room for any answer of validation"):
        run_pack([config(*words, f"results_dir={tmp_path}")])


@pytest.fixture
def toy(tmp_path):
    """toy(*words): one row of 3 and one of 5 target tokens of the micro GPT-2."""

    def build(*words: str) -> tuple[TextAnswers, Tokens]:
        cfg = config(*words)
        tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_gpt2")
        writer = TextAnswers(cfg, cfg.task, tokenizer, decoder_start=None)
        labels = np.zeros(2, dtype=np.int64)
        return writer, writer.pairs(["the baker", "the soup was"], [" the baker", " the baker was good"], labels, 48)

    return build


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["token_mean", "example_sum"])
def test_loss_is_what_the_papers_code_computes(toy, smoothing, reduction):
    writer, pairs = toy(f"trainer.label_smoothing={smoothing}", f"trainer.loss_reduction={reduction}")
    rows = np.array([0, 1])
    batch = writer.training_batch(pairs, rows)
    logits = torch.randn(*batch["input_ids"].shape, 1600, dtype=torch.float64)
    found = writer.loss(logits, batch["labels"]) / writer.weight(pairs, rows)
    by_example = []
    for b, targets in enumerate(pairs.target_rows(rows)):
        start = len(pairs.rows(rows)[b]) - 1
        lines = logits[b, start : start + len(targets)].log_softmax(-1)
        nll = -lines[torch.arange(len(targets)), torch.from_numpy(targets).long()]
        by_example.append((1 - smoothing) * nll + smoothing * -lines.mean(-1))
    expected = torch.cat(by_example).mean() if reduction == "token_mean" else sum(map(torch.sum, by_example)) / 2
    assert found.item() == pytest.approx(float(expected), abs=1e-6)
    with_z, _ = toy(
        f"trainer.label_smoothing={smoothing}", f"trainer.loss_reduction={reduction}", "trainer.z_loss=0.01"
    )
    read = logits[batch["labels"] != IGNORED]
    more = 0.01 * (read.exp().sum(-1).log() ** 2).sum() / writer.weight(pairs, rows)
    assert (with_z.loss(logits, batch["labels"]) / writer.weight(pairs, rows)).item() == pytest.approx(
        float(expected + more)
    )
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
