"""A backbone's folder: written whole with its report, read with its pretraining heads, compared with another."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
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
from ..micro.language import LANGUAGE_VERSION
from .builders import DROPOUT
from .objectives import validation_loss
from .resume import Progress
from .settings import PretrainConfig, described, documents, targets

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
    untie_output_layer(model, model.get_input_embeddings().weight)
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


@dataclass(frozen=True)
class PretrainReport:
    """What pretraining.json holds beside the configuration."""

    output: str
    steps: int
    parameters: int  # tied ones once
    tokens: int  # seen in training by encoder and decoder, padding excluded
    train_loss: float  # mean over the last 5% of the steps, both objectives of BERT together
    validation_loss: float  # nats per predicted token, noise fixed by the seed; BERT's without "does it follow?"
    seconds: float
    seed: int
    language_version: str | None  # None: real text
    weights_sha256: str
    versions: dict[str, str]


def made_before(cfg: PretrainConfig) -> PretrainReport | None:
    """The report of the same run, if all that it writes is there. Raises ValueError where another would be replaced."""
    made = {t: json.loads((t / "pretraining.json").read_text()) for t in targets(cfg) if t.exists()}
    defaults = described(PretrainConfig(cfg.model_type, cfg.output))
    for target, record in made.items():
        asked = described(cfg) | {"output": target.name}
        if differ := [key for key, value in asked.items() if record["config"].get(key, defaults[key]) != value]:
            raise ValueError(
                f"output={target} holds a backbone made with other {', '.join(differ)}, and would be replaced: change "
                "--output, or give --force"
            )
    if made.keys() != {*targets(cfg)}:
        return None
    report = made[cfg.output]["report"]
    return PretrainReport(**{f.name: report.get(f.name) for f in fields(PretrainReport)})  # older ones lack a field


def write_folder(
    cfg: PretrainConfig, output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, done: Progress
) -> PretrainReport:
    """The folder of the model as it is now, in place of the one that was there."""
    rates = {rate: getattr(model.config, rate) for rate in DROPOUT[cfg.model_type]}
    for rate in rates:
        setattr(model.config, rate, cfg.dropout)
    held_out = documents(cfg, "validation")
    output.parent.mkdir(parents=True, exist_ok=True)
    # In a folder beside the target and renamed: a reader sees the old backbone or the new one, never half of one.
    scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        report = PretrainReport(
            output=output.name,
            steps=done.step,
            tokens=done.tokens,
            train_loss=round(float(np.mean(done.losses[-max(1, done.step // 20) :])), 4),
            parameters=sum(p.numel() for p in model.parameters()),
            validation_loss=round(validation_loss(model, tokenizer, cfg.objective, documents=held_out), 4),
            seconds=round(done.seconds, 1),
            seed=cfg.seed,
            language_version=None if cfg.text else LANGUAGE_VERSION,
            weights_sha256=file_sha256(scratch / "model.safetensors"),
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
        )
        record = json.dumps({"config": described(cfg) | {"output": output.name}, "report": asdict(report)}, indent=2)
        (scratch / "pretraining.json").write_text(record + "\n")
        replace_folder(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for rate, value in rates.items():
            setattr(model.config, rate, value)
    return report
