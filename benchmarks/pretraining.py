"""Pretrain a small backbone on the micro language and ship it as a Hugging Face folder.

    python -m benchmarks.pretraining --model bert --output benchmarks/micro/backbones/micro_bert
    python -m benchmarks.pretraining --check         # remake both, compare with the shipped ones

Objective "mlm": masked language modelling with dynamic masking (micro/masking.py). BERT also predicts whether the
second sentence follows the first (half the time it comes from another document), which is what trains its pooler;
RoBERTa does not, and ships without a pooler, as the published checkpoints do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tqdm.auto import tqdm
from transformers import BertForPreTraining, PreTrainedModel, RobertaForMaskedLM, get_linear_schedule_with_warmup

from benchmarks.micro.builders import BUILDERS, Sizes
from benchmarks.micro.corpus import corpus
from benchmarks.micro.language import LANGUAGE_VERSION
from benchmarks.micro.masking import PairStream, mlm_loss, validation_loss

BACKBONES = Path(__file__).parent / "micro" / "backbones"
# A remade backbone's validation loss may differ by this much (nats per masked token) from the shipped one's: other
# processors and library versions round differently, and thousands of steps amplify it. Two seeds here differ by less.
LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run; the defaults made the shipped backbones."""

    model_type: str  # "bert" or "roberta"
    output: Path
    objective: str = "mlm"
    sizes: Sizes = field(default_factory=Sizes)
    dropout: float = 0.0  # of the shipped configuration: models this small underfit, and it costs a third of a step
    mask_probability: float = 0.3  # Wettig et al. 2023, arXiv:2202.08005: small budgets gain from more than 15%
    next_sentence: float = 0.2  # BERT: share of the steps, the last ones, with foreign second sentences
    single: float = (
        0.4  # share of the steps, the first ones, on single sentences (Devlin et al., A.2: short ones first)
    )
    steps: int = 16_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    seed: int = 0
    threads: int = 1
    documents: int | None = None  # of the training corpus; None: all


@dataclass(frozen=True)
class PretrainReport:
    """What pretraining.json holds beside the configuration."""

    output: str
    steps: int
    tokens: int  # seen in training, padding excluded
    train_loss: float  # mean over the last 5% of the steps, both objectives of BERT together
    validation_loss: float  # masked language modelling, nats per masked token, masks fixed by the seed
    seconds: float
    seed: int
    language_version: str
    weights_sha256: str
    versions: dict[str, str]


def pretrain(cfg: PretrainConfig) -> PretrainReport:
    """Train tokenizer and model on the micro corpus and write `cfg.output`, whole or not at all."""
    if cfg.objective != "mlm":
        raise ValueError(f"unknown objective {cfg.objective!r}; expected 'mlm' (benchmarks/pretraining.py)")
    if cfg.model_type not in BUILDERS:
        raise ValueError(f"unknown model_type {cfg.model_type!r}; expected one of {sorted(BUILDERS)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads)
    try:
        return _pretrain(cfg)
    finally:
        torch.set_num_threads(threads)


def _pretrain(cfg: PretrainConfig) -> PretrainReport:
    torch.manual_seed(cfg.seed)
    documents = [document.split("\n") for document in corpus("train")[: cfg.documents]]
    tokenizer, model = BUILDERS[cfg.model_type](cfg.sizes, (line for lines in documents for line in lines))
    next_sentence = cfg.model_type == "bert"
    stream = PairStream(tokenizer, documents, cfg.batch_size, cfg.seed, next_sentence, cfg.mask_probability)
    groups = _decay_groups(model, cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(cfg.warmup * cfg.steps), cfg.steps)

    start, losses, tokens = time.perf_counter(), [], 0
    model.train()
    bar = tqdm(range(cfg.steps), desc=f"pretrain {cfg.output.name}", unit="step", mininterval=1.0)
    for step in bar:
        stream.single = step < cfg.steps * cfg.single
        # Only at the end: from the start, foreign pairs keep BERT from learning to look from one sentence to the other.
        if next_sentence and step >= cfg.steps * (1 - cfg.next_sentence):
            stream.foreign = 0.5
        batch = stream.batch()
        loss = mlm_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        tokens += int(batch["attention_mask"].sum())
        if step % 100 == 99:
            bar.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}")
    if not math.isfinite(losses[-1]):
        raise RuntimeError(f"pretraining diverged (loss {losses[-1]}); lower learning_rate={cfg.learning_rate}")
    seconds = time.perf_counter() - start

    for rate in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(model.config, rate, cfg.dropout)
    cfg.output.parent.mkdir(parents=True, exist_ok=True)
    # In a folder beside the target and renamed: a reader sees the old backbone or the new one, never half of one.
    scratch = Path(tempfile.mkdtemp(dir=cfg.output.parent, prefix=f".{cfg.output.name}."))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        report = PretrainReport(
            output=cfg.output.name,
            steps=cfg.steps,
            tokens=tokens,
            train_loss=round(float(np.mean(losses[-max(1, cfg.steps // 20) :])), 4),
            validation_loss=round(validation_loss(model, tokenizer), 4),
            seconds=round(seconds, 1),
            seed=cfg.seed,
            language_version=LANGUAGE_VERSION,
            weights_sha256=_sha256(scratch / "model.safetensors"),
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
        )
        config = asdict(replace(cfg, output=Path(cfg.output.name))) | {"output": cfg.output.name}
        record = json.dumps({"config": config, "report": asdict(report)}, indent=2)
        (scratch / "pretraining.json").write_text(record + "\n")
        _replace_folder(scratch, cfg.output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _replace_folder(new: Path, target: Path) -> None:
    new.chmod(0o755)  # mkdtemp's folders are private
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)


def _decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Biases and LayerNorms take no weight decay, as in BERT's released optimizer."""
    kept = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kept, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


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
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        losses.append(validation_loss(load_pretrained(folder), tokenizer))
    same_tokenizer = (shipped / "tokenizer.json").read_bytes() == (remade / "tokenizer.json").read_bytes()
    bits = [_sha256(folder / "model.safetensors") for folder in (shipped, remade)]
    return Comparison(losses[0], losses[1], same_tokenizer, bits[0] == bits[1])


def load_pretrained(folder: Path) -> PreTrainedModel:
    """The backbone with its pretraining heads."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    model_class = {"bert": BertForPreTraining, "roberta": RobertaForMaskedLM}[model_type]
    return model_class.from_pretrained(folder, local_files_only=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """`peft-bench pretrain`: 0 if all was made and, with --check, every backbone is within the tolerance."""
    parser = argparse.ArgumentParser(prog="peft-bench pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=sorted(BUILDERS), help="architecture to pretrain")
    parser.add_argument("--output", type=Path, help="folder to write (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=PretrainConfig.steps)
    parser.add_argument("--seed", type=int, default=PretrainConfig.seed)
    parser.add_argument("--check", action="store_true", help="remake (all or --model) and compare with the shipped")
    args = parser.parse_args(argv)
    if not args.model and not args.check:
        parser.error("nothing to do: give --model or --check")
    passed = True
    for model_type in [args.model] if args.model else sorted(BUILDERS):
        shipped = BACKBONES / f"micro_{model_type}"
        with tempfile.TemporaryDirectory() as scratch:
            output = args.output or (Path(scratch) / shipped.name if args.check else shipped)
            cfg = PretrainConfig(model_type=model_type, output=output, steps=args.steps, seed=args.seed)
            report = pretrain(cfg)
            print(f"{output}: validation loss {report.validation_loss:.4f}, {report.seconds:.0f} s")
            if args.check:
                result = compare(shipped, output)
                passed &= result.passed
                verdict = "passed" if result.passed else "failed"
                print(
                    f"{shipped.name}: {verdict}: shipped {result.shipped_loss:.4f}, remade {result.remade_loss:.4f} "
                    f"(tolerance {LOSS_TOLERANCE}); same tokenizer: {result.same_tokenizer}, bits: {result.same_bits}"
                )
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
