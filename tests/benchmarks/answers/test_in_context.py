"""Prompts in words: what a frozen backbone reads, how much of it fits, and which label is the most probable."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peft_bench.answers.in_context import InContext, check_in_context, draw
from peft_bench.backbones.files import MICRO_BACKBONES as BACKBONES
from peft_bench.config.compose import compose_job, register
from peft_bench.config.schema import InContextConfig
from peft_bench.pretraining.folder import load_tokenizer
from peft_bench.records.store import read_predictions, read_record, record_path
from peft_bench.runs.run import How, run_pack
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_run_data

EXAMPLES = [("the soup was lovely", "good"), ("the film was dull", "bad"), ("the song was fine", "good")]
CFG = InContextConfig(
    name="told", prompt="note: {examples}{source} seemed", example="{source} seemed {target}.", separator=" ", shots=3
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BACKBONES / "micro_t5_large_lm")


def test_the_whole_prompt(tokenizer):
    text = InContext(CFG, EXAMPLES).read("the pie was great", tokenizer, 200)
    assert text == (
        "note: the soup was lovely seemed good. the film was dull seemed bad. the song was fine seemed good. "
        "the pie was great seemed"
    )


def test_examples_that_do_not_fit_are_left_out_and_then_the_question_is_cut(tokenizer):
    told = InContext(CFG, EXAMPLES)
    whole = len(tokenizer(told.read("the pie was great", tokenizer, 200), add_special_tokens=False).input_ids)
    assert told.fewer == 0
    shorter = told.read("the pie was great", tokenizer, whole - 1)
    assert "the film was dull" in shorter
    assert "the song" not in shorter
    assert (told.fewer, told.cut) == (1, 0)
    cut = told.read("the pie was great", tokenizer, 6)
    assert len(tokenizer(cut, add_special_tokens=False).input_ids) <= 6
    assert cut.startswith("note: the")
    assert cut.endswith("seemed")
    assert "great" not in cut
    assert (told.fewer, told.cut) == (2, 1)
    with pytest.raises(DataError, match=r"in_context=told: the prompt alone has \d+ tokens more than the 2 there are"):
        told.read("the pie was great", tokenizer, 2)


def test_as_many_examples_as_there_is_room_for(tokenizer):
    many = [EXAMPLES[i % len(EXAMPLES)] for i in range(12)]
    texts = [InContext(CFG, many[:shots]).read("the pie was great", tokenizer, 1000) for shots in range(13)]
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    for room in range(lengths[0], lengths[-1] + 1):
        best = max(shots for shots, length in enumerate(lengths) if length <= room)
        told = InContext(CFG, many)
        assert told.read("the pie was great", tokenizer, room) == texts[best]
        assert (told.fewer, told.cut) == (int(best < 12), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{source}"}, r"in_context.prompt='\{source\}': expected \{source\} and \{examples\} in it"),
        ({"prompt": "{examples} seemed"}, r"no \{source\}\); change conf/in_context/told.yaml"),
        ({"example": "{source} {word}"}, r"in_context.example=.* no other braces \(KeyError: 'word'\)"),
        ({"example": "{source}"}, r"no \{target\}"),
        ({"prompt": "{examples}{source"}, "ValueError: expected '}'"),
        ({"shots": -1}, "in_context.shots=-1: expected 0 or more"),
        ({"likelihood": "mean"}, "in_context.likelihood=mean: expected one of per_token, sum"),
    ],
)
def test_a_prompt_without_its_placeholder_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_in_context(InContextConfig(**{**vars(CFG), **change}))
    check_in_context(InContextConfig(name="cloze", prompt="{source} was"))  # without shots, no place for them


WORDS = ["experiment=prompt_tuning/in_context", "in_context=micro_few_shot", "threads=1"]


def test_only_frozen_backbones_that_write_and_tasks_with_labels():
    register()
    for more in (["task=squad"], ["task=glue/stsb"], ["task=glue/sst2", "backbone=roberta_base"],
                 ["task=glue/sst2", "method=prompt", "method.init=uniform", "trainer.epochs=1"]):  # fmt: skip
        with pytest.raises(ValueError, match="expected a task with labels, a backbone that writes, and no training"):
            run_pack([compose_job([*WORDS, *more, "results_dir=/nowhere/else"])], How(show_progress=False))


def test_draws_differ_by_seed_and_never_repeat_a_row():
    drawn = [draw(50, 8, seed) for seed in range(3)]
    assert all(len({*rows}) == 8 for rows in drawn)
    assert drawn[0] != drawn[1] != drawn[2]
    assert draw(50, 8, 0) == drawn[0]
    with pytest.raises(DataError, match=r"in_context\.shots=9 with 8 training rows"):
        draw(8, 9, 0)


def test_the_data_of_the_other_task_belong_to_the_runs_data():
    register()
    own, other = (
        compose_job(["experiment=prompt_tuning/task_prompt", "task=glue/sst2", f"in_context=micro_{name}"])
        for name in ("sst2", "mnli")
    )
    plain = compose_job(["experiment=prompt_tuning/in_context", "task=glue/sst2", "in_context=micro_few_shot"])
    assert len({load_run_data(cfg).sha256 for cfg in (own, other, plain)}) == 3


@pytest.mark.parametrize(("experiment", "model"), [("in_context", "t5_large_lm"), ("in_context_gpt2", "gpt2")])
@pytest.mark.parametrize("likelihood", ["per_token", "sum"])
def test_the_most_probable_label_is_transformers_own(tmp_path, experiment, model, likelihood):
    """The log-probabilities of a label's tokens, by the model itself, one question at a time: their mean or sum."""
    register()
    words = [f"experiment=prompt_tuning/{experiment}", "in_context=micro_cloze", "task=glue/rte", "threads=1"]
    words += [f"in_context.likelihood={likelihood}", "task.micro_text.labels=[far from good,bad]"]
    cfg = compose_job([*words, f"results_dir={tmp_path}"])
    (outcome,) = run_pack([cfg], How(show_progress=False))
    assert outcome.status == "done"
    found = read_predictions(tmp_path, outcome.experiment, outcome.run_id)["validation"]["prediction"]
    tokenizer = load_tokenizer(BACKBONES / f"micro_{model}")
    decodes = model == "gpt2"
    network = (AutoModelForCausalLM if decodes else AutoModelForSeq2SeqLM).from_pretrained(BACKBONES / f"micro_{model}")
    network.eval()
    assert cfg.task.micro_text is not None and cfg.in_context is not None  # noqa: PT018
    labels, source = cfg.task.micro_text.labels, cfg.task.micro_text.source
    rows = load_run_data(cfg).own.texts["validation"][:40]
    expected, chosen = [], []
    for row in rows:
        text = cfg.in_context.prompt.format(
            source=source.format(**dict(zip(cfg.task.text_columns, row, strict=True))), examples=""
        )
        read = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * (not decodes)
        sums = []
        for label in labels:
            target = tokenizer(f" {label}" if decodes else label, add_special_tokens=False).input_ids
            with torch.no_grad():
                if decodes:
                    logits = network(torch.tensor([read + target])).logits[0, len(read) - 1 : -1]
                else:
                    start = torch.tensor([[tokenizer.pad_token_id, *target[:-1]]])
                    logits = network(torch.tensor([read]), decoder_input_ids=start).logits[0]
            each = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
            sums.append((each.sum() if likelihood == "sum" else each.mean()).item())
        expected.append(sums)
        chosen.append(int(np.argmax(sums)))
    assert chosen == found[: len(rows)]
    assert len({tuple(np.round(sums, 3)) for sums in expected}) > 10
    scores = read_record(record_path(tmp_path, cfg.experiment, outcome.run_id))["scores"]
    assert "illegal" not in {score["metric"] for score in scores}  # it chooses among the labels


def test_no_more_than_the_backbone_was_pretrained_to_read(tmp_path):
    register()
    words = ["experiment=prompt_tuning/in_context", "in_context=micro_few_shot", "task=glue/sst2", "threads=1"]
    cfg = compose_job([*words, f"results_dir={tmp_path}", "trainer.max_length=65"])
    with pytest.raises(DataError, match=r"micro_few_shot: trainer.max_length=65, expected at most 64, what .* was"):
        run_pack([cfg], How(show_progress=False))
    cfg = compose_job([*words, f"results_dir={tmp_path}", "trainer.max_length=40"])
    (outcome,) = run_pack([cfg], How(show_progress=False))
    flags = read_record(record_path(tmp_path, cfg.experiment, outcome.run_id))["flags"]
    assert "fewer_examples" in flags
