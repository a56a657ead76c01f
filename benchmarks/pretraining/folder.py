"""A shipped backbone's folder: put in place whole, read back with its pretraining heads, compared with another one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    AutoTokenizer,
    BartForConditionalGeneration,
    BertForPreTraining,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaForMaskedLM,
    T5ForConditionalGeneration,
)

from peft_methods.state import file_sha256

from ..backbones.loading import untie_output_layer
from .objectives import validation_loss

# A remade backbone's validation loss may differ by this much (nats per predicted token) from the shipped one's: other
# processors and library versions round differently, and thousands of steps amplify it. Two seeds here differ by less.
LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class Comparison:
    """A remade backbone beside the shipped one."""

    shipped_loss: float
    remade_loss: float
    same_tokenizer: bool
    same_bits: bool  # promised within one numerics class only (processor, versions, threads)

    @property
    def passed(self) -> bool:
        return self.same_tokenizer and abs(self.shipped_loss - self.remade_loss) <= LOSS_TOLERANCE


def compare(shipped: Path, remade: Path) -> Comparison:
    """Validation loss, tokenizer and bits of two backbone folders."""
    losses = []
    for folder in (shipped, remade):
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no backbone in {folder}: expected config.json; make it with --output {folder}")
        objective = json.loads((folder / "pretraining.json").read_text())["config"]["objective"]
        losses.append(validation_loss(load_pretrained(folder), load_tokenizer(folder), objective))
    same_tokenizer = (shipped / "tokenizer.json").read_bytes() == (remade / "tokenizer.json").read_bytes()
    bits = [file_sha256(folder / "model.safetensors") for folder in (shipped, remade)]
    return Comparison(losses[0], losses[1], same_tokenizer, bits[0] == bits[1])


def load_pretrained(folder: Path) -> PreTrainedModel:
    """The backbone with its pretraining heads."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    classes: dict[str, type[PreTrainedModel]] = {
        "bert": BertForPreTraining,
        "roberta": RobertaForMaskedLM,
        "gpt2": GPT2LMHeadModel,
        "t5": T5ForConditionalGeneration,
        "bart": BartForConditionalGeneration,
    }
    model = classes[model_type].from_pretrained(folder, local_files_only=True)
    untie_output_layer(model)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """As anyone loads it."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def replace_folder(new: Path, target: Path) -> None:
    """Rename `new` to `target`; what was there is gone."""
    new.chmod(0o755)  # mkdtemp's folders are private
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
