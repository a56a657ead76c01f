"""Tasks as text: what a backbone reads, what it should write, what its answer means, and runs that train on it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from peft_bench.answers import of
from peft_bench.answers.words import WordAnswers
from peft_bench.backbones.loading import Backbone, load_backbone
from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.backbones.origin import Origin
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig, TextConfig, text_of
from peft_bench.metrics.scores import ILLEGAL
from peft_bench.records.store import read_record, record_path
from peft_bench.runs.checks import check_config
from peft_bench.runs.identity import identity, run_id
from peft_bench.runs.run import How, run_pack
from peft_bench.tasks.examples import DataError, TaskData
from peft_bench.tasks.loading import load_task
from peft_methods.attach import attach
from peft_methods.baselines import Full

BACKBONES = {"t5": "t5_v1_1_small", "gpt2": "gpt2"}


def config(model_type: str, *words: str) -> RunConfig:
    return compose_run([f"backbone={BACKBONES[model_type]}", "task=glue/rte", *words])


def writer_of(model_type: str, task: str = "rte", max_length: int = 48) -> WordAnswers:
    cfg = config(model_type, f"task=glue/{task}", f"trainer.max_length={max_length}")
    folder = MICRO_BACKBONES / cfg.scale.backbones[model_type]
    return WordAnswers(cfg, cfg.task, AutoTokenizer.from_pretrained(folder), None if model_type == "gpt2" else 0)


def toy(task: str = "rte") -> TaskData:
    texts: list[tuple[str, ...]] = [
        ("the baker liked the hammer.", "the hammer was good."),
        ("the baker slept.", "did the baker sleep?"),
    ]
    labels = np.array([1.26, 4.9]) if task == "stsb" else np.array([0, 1])
    return TaskData({"train": texts}, {"train": labels}, "toy", "0")


def test_t5_reads_the_source_and_writes_the_target():
    writer = writer_of("t5")
    split = writer.tokenize(toy())["train"].examples
    batch = writer.training_batch(split, np.array([0, 1]))
    decode = writer.tokenizer.batch_decode
    assert decode(batch["input_ids"])[0] == "the baker liked the hammer. the hammer was good.</s>"
    assert decode(batch["decoder_input_ids"]) == ["<pad> good", "<pad> bad"]
    assert decode(batch["labels"]) == ["good</s>", "bad</s>"]
    assert batch["attention_mask"].sum(1).tolist() == split.lengths.tolist()
    question = writer.question_batch(split, np.array([1]))
    assert decode(question["input_ids"]) == ["the baker slept. did the baker sleep?</s>"]
    assert set(question) == {"input_ids", "attention_mask"}


def test_gpt2_writes_on_behind_the_source():
    writer = writer_of("gpt2")
    split = writer.tokenize(toy())["train"].examples
    batch = writer.training_batch(split, np.array([0, 1]))
    text = writer.tokenizer.decode(batch["input_ids"][1][batch["attention_mask"][1].bool()])
    assert text == "the baker slept. did the baker sleep?<|endoftext|> bad"
    for row, ids, labels in zip(range(2), batch["input_ids"], batch["labels"], strict=True):
        predicted = labels != -100
        first = int(batch["boundary"][row])
        assert writer.tokenizer.decode(labels[predicted]) == [" good<|endoftext|>", " bad<|endoftext|>"][row]
        assert predicted.nonzero()[:, 0].tolist() == [first, first + 1]  # at the separator and at the word
        assert ids[first] == writer.end
    assert writer.tokenizer.decode(writer.question_batch(split, np.array([1]))["input_ids"][0]).endswith(
        "<|endoftext|>"
    )


@pytest.mark.parametrize("model_type", BACKBONES)
def test_the_loss_is_that_of_transformers(model_type: str):
    """Its own `labels` argument shifts, masks and averages by itself."""
    cfg = config(model_type)
    backbone = load_backbone(cfg.backbone, cfg.scale, None, torch.device("cpu"), 0)
    writer = writer_of(model_type)
    examples, rows = writer.tokenize(toy())["train"].examples, np.array([0, 1])
    batch = writer.training_batch(examples, rows)
    labels = batch.pop("labels")
    attached = attach(backbone.model, [Full()])
    (logits,) = attached([batch])
    assert logits is not None
    ours = writer.loss(logits, labels) / writer.weight(examples, rows)
    attached.detach()
    if model_type == "t5":
        theirs = backbone.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
    else:
        both = zip(examples.rows(rows), examples.target_rows(rows), strict=True)
        whole = [torch.from_numpy(np.concatenate(pair)).long() for pair in both]
        sources = examples.lengths
        inputs = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=writer.pad)
        wanted = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=-100)
        for row, length in enumerate(sources):
            wanted[row, :length] = -100
        mask = (torch.arange(inputs.shape[1]) < torch.tensor([len(w) for w in whole])[:, None]).long()
        theirs = backbone.model(input_ids=inputs, attention_mask=mask, labels=wanted).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_an_answer_means():
    writer = writer_of("t5")
    assert [writer.meaning(answer) for answer in ("good", " bad", "goods", "", "good bad")] == [0, 1, -1, -1, -1]
    score = writer_of("t5", "stsb")
    assert [score.meaning(answer) for answer in ("3.8", " 0", "5.2", "-1", "nan", "good")] == [3.8, 0, -1, -1, -1, -1]
    assert [score.target(label) for label in (1.26, 1.1, 4.91, 5.0)] == ["1.2", "1.2", "5.0", "5.0"]


@pytest.mark.parametrize("model_type", BACKBONES)
def test_an_answer_ends_where_it_ends(model_type: str):
    writer = writer_of(model_type)
    (good,) = writer.tokenizer.encode(" good", add_special_tokens=False)
    end = writer.end
    written = torch.tensor([[good, end, good], [good, good, end], [good, good, good], [end, good, good]])
    assert writer.read(written).tolist() == [0, ILLEGAL, ILLEGAL, ILLEGAL]


def test_a_source_that_is_too_long_loses_its_end():
    for model_type in BACKBONES:
        writer = writer_of(model_type, max_length=8)
        split = writer.tokenize(toy())["train"].examples
        batch = writer.training_batch(split, np.array([0, 1]))
        assert batch["input_ids"].shape[1] == 8 - (model_type == "gpt2")  # its last token is only predicted
        assert split.input_ids[split.offsets[1:] - 1].tolist() == [writer.end] * 2
    with pytest.raises(DataError, match=r"max_length=3, expected \d to 128"):
        writer_of("gpt2", max_length=3).tokenize(toy())


BAD_TEXTS: list[tuple[TextConfig | None, str]] = [
    (None, "has no task.micro_text"),
    (TextConfig("{sentence1} {sentence3}", ["good", "bad"]), "expected the columns sentence1, sentence2"),
    (TextConfig("{sentence1}", ["good"]), "expected 2 different words"),
    (TextConfig("{sentence1}", ["good", "good"]), "expected 2 different words"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS)
def test_bad_text_forms_are_refused(text: TextConfig | None, message: str):
    cfg = config("t5")
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, micro_text=text)))


def test_a_word_of_nothing_is_refused():
    cfg = config("t5", "trainer.max_length=48")
    task = dataclasses.replace(cfg.task, micro_text=TextConfig("{sentence1}", ["good", ""]))
    writer = WordAnswers(cfg, task, writer_of("t5").tokenizer, 0)
    with pytest.raises(DataError, match="makes no token of ''"):
        writer.tokenize(toy())


def test_every_task_is_written_differently_for_every_label():
    for task in ("cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte"):
        for model_type in BACKBONES:
            cfg = config(model_type, f"task=glue/{task}")
            check_config(cfg)
            writer = writer_of(model_type, task, max_length=64)
            data = load_task(cfg.task, cfg.scale, None)
            few = TaskData({"train": data.texts["train"][:50]}, {"train": data.labels["train"][:50]}, "", "")
            split = writer.tokenize(few)["train"].examples
            tokens = torch.from_numpy(np.stack(split.target_rows(np.arange(50))).astype(np.int64))
            assert writer.read(tokens).tolist() == data.labels["train"][:50].tolist()
            assert len(split.target_rows(np.arange(1))[0]) == 2  # one word of the language, and the end


def test_identities_of_classifiers_do_not_know_of_text_forms():
    def identity_of(cfg: RunConfig) -> str:
        return run_id(identity(cfg, "data", []))

    def rewritten(cfg: RunConfig, name: str) -> RunConfig:
        changed: Any = {name: TextConfig("{sentence1}", ["fine", "bad"])}
        return dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, **changed))

    classifier, t5 = compose_run(["task=glue/rte"]), config("t5")
    assert identity_of(rewritten(classifier, "micro_text")) == identity_of(classifier)
    assert identity_of(rewritten(t5, "micro_text")) != identity_of(t5) == identity_of(rewritten(t5, "text"))
    assert text_of(t5.task, t5.scale) == t5.task.micro_text


SMALL = (
    "trainer.max_steps=20",
    "trainer.evaluate_every_steps=10",
    "trainer.batch_size=8",
    "trainer.eval_batch_size=500",
)


@pytest.mark.parametrize("model_type", BACKBONES)
def test_a_pack_that_writes_trains_as_its_runs_alone(model_type: str, tmp_path: Path):
    words = ("method=lora", "task=glue/sst2", "trainer.learning_rate=0.01", *SMALL)
    cfgs = [config(model_type, *words, f"seed={seed}") for seed in (0, 1)]
    records = []
    for folder, packs in (("pack", [cfgs]), ("alone", [[cfg] for cfg in cfgs])):
        placed = [[dataclasses.replace(cfg, results_dir=str(tmp_path / folder)) for cfg in pack] for pack in packs]
        outcomes = [outcome for pack in placed for outcome in run_pack(pack, How(show_progress=False))]
        assert {outcome.status for outcome in outcomes} == {"done"}
        records.append([read_record(record_path(str(tmp_path / folder), "custom", o.run_id)) for o in outcomes])
    for packed, alone in zip(*records, strict=True):
        assert packed["run_id"] == alone["run_id"]
        assert packed["params"]["head"] == 0
        for a, b in zip(packed["history"], alone["history"], strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert packed["history"][-1]["train_loss"] < packed["history"][0]["train_loss"]


def test_prompts_prefixes_and_infixes_write(tmp_path: Path):
    """Rows of their own in the input, and the places of source and target."""
    for model_type, methods in (("t5", ("prompt", "prefix")), ("gpt2", ("prompt", "prefix", "infix", "adapter_l"))):
        for method in methods:
            length = [] if method == "adapter_l" else ["method.length=3"]
            words = (f"method={method}", *length, "task=glue/cola", "trainer.learning_rate=0.01", *SMALL)
            cfg = config(model_type, *words, f"results_dir={tmp_path}")
            (outcome,) = run_pack([cfg], How(show_progress=False))
            assert outcome.status == "done", outcome.message
            assert "did_not_move" not in outcome.message


def test_a_method_without_anything_to_train_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="HeadOnly trains nothing but a head, and t5_v1_1_small answers in text"):
        run_pack([config("t5", "method=head_only", f"results_dir={tmp_path}")], How(show_progress=False))


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("task", ["glue/sst2", "xsum"])
def test_a_decoder_begins_in_training_as_its_configuration_says(task: str, start: int):
    """Also where the tokenizer has a begin token, as RoBERTa's with T5: the loss is transformers' own."""
    tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_bart")
    ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": start}
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes, **ids)).eval()
    cfg = config("t5", f"task={task}", "decoding=greedy")
    answers = of(cfg, cfg.task, Backbone(model, tokenizer, "mine", "mine", Origin(False), "0"))
    tokens = answers.tokenize(load_task(cfg.task, cfg.scale, None))["validation"].examples
    batch = answers.training_batch(tokens, np.arange(3))
    assert batch["decoder_input_ids"][:, 0].tolist() == [start] * 3
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    ours = answers.loss(logits, labels) / answers.weight(tokens, np.arange(3))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    if isinstance(answers, WordAnswers):  # a label is read behind the begin token
        assert (labels[:, 0] == tokenizer.bos_token_id).all()
        assert answers.read(labels).tolist() == tokens.labels[:3].tolist()
