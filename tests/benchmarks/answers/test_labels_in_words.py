"""Which labels can be answered in words, and which text forms are refused."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from peft_bench.answers.words import WordAnswers
from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig
from peft_bench.metrics.scores import ILLEGAL
from peft_bench.runs.checks import check_config
from peft_bench.runs.run import run_pack
from peft_bench.tasks.examples import DataError


def config(*words: str) -> RunConfig:
    return compose_run(["backbone=t5_v1_1_small", "method=prompt", "decoding=greedy", "scale=small", *words])


def test_a_prefix_stands_before_every_target_and_is_taken_off_again():
    cfg = config("task=super_glue/rte", "task.target_prefix='<extra_id_0>'")
    writer = WordAnswers(cfg, cfg.task, AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_t5_small"), 0)
    assert writer.target(1) == "<extra_id_0> not_entailment"
    assert [writer.meaning(answer) for answer in ("<extra_id_0> not_entailment", "entailment", "<extra_id_0>")] == [
        1, 0, ILLEGAL,
    ]  # fmt: skip


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
