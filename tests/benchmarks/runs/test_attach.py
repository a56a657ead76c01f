"""A pack on its backbone: where a prompt starts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig
from peft_bench.runs.run import run_pack


def config(*words: str) -> RunConfig:
    return compose_run(["backbone=t5_v1_1_small", "method=prompt", "decoding=greedy", "scale=small", *words])


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
