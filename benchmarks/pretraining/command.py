"""Pretrain a small backbone, on the micro language (shipped) or on real text, and write it as a Hugging Face folder.

    python -m peft_bench.pretraining.command --model bert    # remake one in its place (--output FOLDER: elsewhere)
    python -m peft_bench.pretraining.command --check         # remake all, compare with the shipped ones
    peft-bench pretrain model=t5_small objective=prefix_lm steps=6000 output=DIR   # every --option, as key=value
    peft-bench pretrain --model small_gpt2 --text DIR --output DIR   # on real text, for scale=small

Every architecture has the objective of its published checkpoints (micro/objectives.py). BERT also predicts whether the
second sentence follows the first (half the time it comes from another document), which is what trains its pooler;
RoBERTa does not, and ships without a pooler, as the published checkpoints do. A run may go on from another's folder
(`start`): LM adaptation is objective "prefix_lm" from the T5 that span corruption made, for three quarters of
its steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup
from transformers.activations import NewGELUActivation

from peft_methods.state import file_sha256

from ..micro.language import LANGUAGE_VERSION
from ..micro.notes import notes
from .builders import BUILDERS, DROPOUT, Sizes
from .denoising import DenoisingStream
from .folder import LOSS_TOLERANCE, compare, load_pretrained, load_tokenizer, replace_folder
from .masking import PairStream
from .objectives import (
    OBJECTIVES,
    Stream,
    check_objective,
    documents_of,
    make_stream,
    training_loss,
    unigram_loss,
    validation_loss,
)
from .real_text import collections, read_documents
from .span_corruption import SpanStream
from .state import Progress, load_state, save_state, state_path

STATE_SECONDS = 300.0  # between two writings of the state from which a run goes on
BACKBONES = Path(__file__).resolve().parents[1] / "micro" / "backbones"


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run; the defaults made the shipped BERT and RoBERTa, `SHIPPED` names the others' settings."""

    model_type: str  # "bert", "roberta", "gpt2", "t5" or "bart"
    output: Path
    objective: str = "mlm"
    sizes: Sizes = field(default_factory=Sizes)
    dropout: float = 0.0  # of the shipped configuration: models this small underfit, and it costs a third of a step
    mask_probability: float = 0.3  # Wettig et al. 2023, arXiv:2202.08005: small budgets gain from more than 15%
    next_sentence: float = 0.2  # BERT: share of the steps, the last ones, with foreign second sentences
    # Share of the steps, the first ones, on single sentences (Devlin et al., A.2: short ones first); T5: short inputs.
    single: float = 0.4
    steps: int = 16_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    seed: int = 0
    threads: int = 1
    documents: int | None = None  # of the training corpus; None: all
    notes: bool = False  # and as many of notes.py
    text: Path | None = None  # folder of real text instead of the generated language (real_text.py)
    precision: str = "fp32"  # of the forward pass: or bf16
    start: Path | None = None  # folder of a backbone of these sizes to go on from, tokenizer included; None: random
    keep: tuple[int, ...] = ()  # steps after which the model is written, too, as <output>_<step>


def _t5(name: str, width: int) -> PretrainConfig:
    sizes = Sizes(hidden_size=width)
    return PretrainConfig("t5", BACKBONES / name, "span_corruption", sizes, steps=16_000, batch_size=32, notes=True)


def _adapted(spans: PretrainConfig) -> PretrainConfig:
    """LM adaptation, which ships beside its start. 100,000 steps after 1,000,000 in Lester et al. 2021, section 3.2;
    here three quarters of the steps: a tenth teaches no opinion to a model of this size, and no prompt calls for one.
    """
    output = spans.output.with_name(f"{spans.output.name}_lm")
    return replace(spans, output=output, objective="prefix_lm", steps=ADAPTED[-1], start=spans.output)


ADAPTED = (1_200, 6_000, 12_000)  # as 10,000, 50,000 and 100,000 steps of LM adaptation
_T5 = {f"t5_{size}": _t5(f"micro_t5_{size}", width) for size, width in (("small", 32), ("base", 48), ("large", 64))}
SHIPPED = {
    "bert": PretrainConfig("bert", BACKBONES / "micro_bert"),
    "roberta": PretrainConfig("roberta", BACKBONES / "micro_roberta"),
    "gpt2": PretrainConfig(
        "gpt2",
        BACKBONES / "micro_gpt2",
        "causal_lm",
        Sizes(heads=4, positions=128),
        steps=12_000,
        batch_size=16,
        notes=True,
    ),
    "bart": PretrainConfig(
        "bart",
        BACKBONES / "micro_bart",
        "denoising",
        Sizes(heads=4, positions=128),
        steps=8_000,
        batch_size=32,
        notes=True,
    ),
    **_T5,
    **{f"{name}_lm": _adapted(spans) for name, spans in _T5.items()},
    "t5_large_lm": replace(_adapted(_T5["t5_large"]), keep=ADAPTED[:-1]),
}


# Made of real text, for scale=small: too large to ship, --text says where the text lies.
_PLACE = Path("outputs") / "backbones"
_SMALL_T5 = PretrainConfig(
    "t5", _PLACE / "small_t5", "span_corruption",
    Sizes(hidden_size=192, layers=3, heads=6, vocab_size=8192, positions=256),
    steps=4_000, batch_size=16, learning_rate=2e-3, precision="bf16",
)  # fmt: skip
OF_TEXT = {
    "small_gpt2": PretrainConfig(
        "gpt2", _PLACE / "small_gpt2", "causal_lm",
        Sizes(hidden_size=192, layers=4, heads=6, vocab_size=8192, positions=256),
        steps=3_500, batch_size=16, learning_rate=1e-3, precision="bf16",
    ),
    "small_t5": _SMALL_T5,
    # A tenth of the steps before it, as in Lester et al. 2021, section 3.2.
    "small_t5_lm": replace(
        _SMALL_T5, output=_PLACE / "small_t5_lm", objective="prefix_lm", steps=400, start=_PLACE / "small_t5"
    ),
}  # fmt: skip


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


def pretrain(cfg: PretrainConfig, force: bool = False) -> PretrainReport:
    """Train tokenizer and model and write `cfg.output`, whole or not at all; the report of what is there already.

    force: make it again, and replace what was made otherwise. Raises ValueError for the latter without it.
    """
    if cfg.model_type not in BUILDERS:
        raise ValueError(f"unknown model_type {cfg.model_type!r}; expected one of {sorted(BUILDERS)}")
    check_objective(cfg.objective, cfg.model_type)
    _check(cfg)
    if not force and (found := _found(cfg)) is not None:
        print(f"found: {cfg.output} was made with these settings; --force makes it again", flush=True)
        return found
    threads = torch.get_num_threads()
    torch.set_num_threads(cfg.threads)
    try:
        return _pretrain(cfg)
    finally:
        torch.set_num_threads(threads)


def _check(cfg: PretrainConfig) -> None:
    """Before anything is read: numbers that make no sense, folders that are no backbones, or would be lost."""
    if cfg.steps < 1:
        raise ValueError(f"steps={cfg.steps}: expected at least 1; change --steps")
    if wrong := [step for step in cfg.keep if not 0 < step < cfg.steps]:
        raise ValueError(f"keep={wrong[0]}: expected a step from 1 to {cfg.steps - 1}, before the last; change --keep")
    if cfg.start is not None and not (cfg.start / "config.json").is_file():
        raise ValueError(f"start={cfg.start}: no backbone there (no config.json); change --start or make it first")
    for target in _targets(cfg):
        if target.exists() and not (target / "pretraining.json").is_file():
            raise ValueError(
                f"output={target} is there and is no backbone made here (no pretraining.json), and would be replaced: "
                "change --output, or remove it"
            )


def _found(cfg: PretrainConfig) -> PretrainReport | None:
    """The report of the same run, if all that it writes is there. Raises ValueError where another would be replaced."""
    made = {t: json.loads((t / "pretraining.json").read_text()) for t in _targets(cfg) if t.exists()}
    defaults = _described(PretrainConfig(cfg.model_type, cfg.output))
    for target, record in made.items():
        asked = _described(cfg) | {"output": target.name}
        if differ := [key for key, value in asked.items() if record["config"].get(key, defaults[key]) != value]:
            raise ValueError(
                f"output={target} holds a backbone made with other {', '.join(differ)}, and would be replaced: change "
                "--output, or give --force"
            )
    if made.keys() != {*_targets(cfg)}:
        return None
    report = made[cfg.output]["report"]
    return PretrainReport(**{f.name: report.get(f.name) for f in fields(PretrainReport)})  # older ones lack a field


def _targets(cfg: PretrainConfig) -> list[Path]:
    """Every folder that the run writes."""
    return [cfg.output, *(_kept(cfg, step) for step in cfg.keep)]


def _kept(cfg: PretrainConfig, step: int) -> Path:
    """Where the model is written as it is after a step before the last."""
    return cfg.output.with_name(f"{cfg.output.name}_{step}")


def _pretrain(cfg: PretrainConfig) -> PretrainReport:
    torch.manual_seed(cfg.seed)
    documents = _documents(cfg, "train")[: cfg.documents]
    if cfg.notes:
        documents += [note.split("\n") for note in notes("train")[: cfg.documents]]
    tokenizer, model = _start(cfg, documents)
    stream = make_stream(
        cfg.objective,
        cfg.model_type,
        tokenizer,
        documents,
        cfg.batch_size,
        tokenizer.model_max_length,
        cfg.seed,
        cfg.mask_probability,
    )
    _fuse_gelu(model)
    groups = _decay_groups(model, cfg.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.98), fused=True)
    path, described = state_path(cfg.output), _described(cfg) | _read(cfg)
    done = load_state(path, described, model, optimizer)
    for step in range(done.step):  # what was seen already
        _ease_in(cfg, stream, step)
        stream.batch()
    for group in optimizer.param_groups:
        group["initial_lr"] = cfg.learning_rate
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(cfg.warmup * cfg.steps), cfg.steps, done.step - 1 if done.step else -1
    )
    model.train()
    title = f"pretrain {cfg.output.name}"
    bar = tqdm(total=cfg.steps, initial=done.step, desc=title, unit="step", mininterval=1.0)
    now = saved = time.perf_counter()
    while done.step < cfg.steps:
        _ease_in(cfg, stream, done.step)
        batch = stream.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
            loss = training_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        done.losses.append(loss.item())
        done.tokens += sum(int(mask.sum()) for name, mask in batch.items() if name.endswith("attention_mask"))
        done.step += 1
        done.seconds, now = done.seconds + time.perf_counter() - now, time.perf_counter()
        bar.update()
        if done.step % 100 == 0:
            bar.set_postfix(loss=f"{np.mean(done.losses[-100:]):.3f}")
        if done.step in cfg.keep and done.step < cfg.steps:
            _write(cfg, _kept(cfg, done.step), model, tokenizer, done)
            model.train()
        if now - saved > STATE_SECONDS and done.step < cfg.steps:
            save_state(path, described, model, optimizer, done)
            saved = time.perf_counter()
        now = time.perf_counter()
    bar.close()
    if not math.isfinite(done.losses[-1]):
        path.unlink(missing_ok=True)
        raise RuntimeError(f"pretraining diverged (loss {done.losses[-1]}); lower learning_rate={cfg.learning_rate}")
    report = _write(cfg, cfg.output, model, tokenizer, done)
    path.unlink(missing_ok=True)
    return report


def _described(cfg: PretrainConfig) -> dict[str, Any]:
    """The configuration as JSON holds it, with names, not where they lie on this machine."""
    places = {"output": cfg.output, "start": cfg.start, "text": cfg.text}
    names = {key: path.name if path else None for key, path in places.items()}
    described: dict[str, Any] = json.loads(json.dumps(asdict(cfg) | names))
    return described


def _read(cfg: PretrainConfig) -> dict[str, Any]:
    """What a run reads, beyond its name: its state belongs to no other weights and texts."""
    texts = collections(cfg.text) if cfg.text else []
    return {
        "start_sha256": file_sha256(cfg.start / "model.safetensors") if cfg.start else None,
        "text_sha256": {folder.name: file_sha256(folder / "train.parquet") for folder in texts},
    }


def _write(
    cfg: PretrainConfig, output: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, done: Progress
) -> PretrainReport:
    """The folder of the model as it is now, in place of the one that was there."""
    rates = {rate: getattr(model.config, rate) for rate in DROPOUT[cfg.model_type]}
    for rate in rates:
        setattr(model.config, rate, cfg.dropout)
    held_out = _documents(cfg, "validation")
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
        record = json.dumps({"config": _described(cfg) | {"output": output.name}, "report": asdict(report)}, indent=2)
        (scratch / "pretraining.json").write_text(record + "\n")
        replace_folder(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for rate, value in rates.items():
            setattr(model.config, rate, value)
    return report


def _documents(cfg: PretrainConfig, split: str) -> list[list[str]]:
    return documents_of(split) if cfg.text is None else read_documents(cfg.text, split)


def _start(cfg: PretrainConfig, documents: Sequence[Sequence[str]]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A new tokenizer and untrained model, or those that the run goes on from."""
    if cfg.start is None:
        return BUILDERS[cfg.model_type](cfg.sizes, (line for lines in documents for line in lines))
    tokenizer, model = load_tokenizer(cfg.start), load_pretrained(cfg.start)
    found, wanted = (model.config.model_type, model.config.hidden_size), (cfg.model_type, cfg.sizes.hidden_size)
    if found != wanted:
        raise ValueError(
            f"start={cfg.start} holds a {found[0]} of width {found[1]}, expected {wanted[0]} of {wanted[1]}"
        )
    return tokenizer, model


def _fuse_gelu(model: PreTrainedModel) -> None:
    """GPT-2's and T5's tanh GELU as one operation instead of eight, while they are trained: the same up to rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _ease_in(cfg: PretrainConfig, stream: Stream, step: int) -> None:
    """Masked language modelling begins with single sentences, span corruption and denoising with short inputs."""
    early = step < cfg.steps * cfg.single
    if isinstance(stream, DenoisingStream):
        stream.short = early
    if isinstance(stream, SpanStream):
        # Among three documents and three sentinels, the decoder does not find in 1,200 steps that the encoder knows
        # anything; with one of each it does in 500.
        stream.short = early
    if not isinstance(stream, PairStream):
        return
    stream.single = early
    # Only at the end: from the start, foreign pairs keep BERT from learning to look from one sentence to the other.
    if stream.next_sentence and step >= cfg.steps * (1 - cfg.next_sentence):
        stream.foreign = 0.5


def _decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Biases and LayerNorms take no weight decay, as in BERT's released optimizer."""
    kept = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": kept, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def main(argv: Sequence[str] | None = None) -> int:
    """`peft-bench pretrain`: 0 if all was made and, with --check, every backbone is within the tolerance."""
    argv = [f"--{word}" if re.match("[a-z]+=", word) else word for word in (sys.argv[1:] if argv is None else argv)]
    about = f"{__doc__.split(chr(10))[0]} Every option may be written key=value, too: objective=prefix_lm."
    parser = argparse.ArgumentParser(prog="peft-bench pretrain", description=about, allow_abbrev=False)
    parser.add_argument("--model", choices=sorted(SHIPPED | OF_TEXT), help="backbone to pretrain")
    parser.add_argument(
        "--objective",
        choices=list(OBJECTIVES),
        help="instead of the model's own; prefix_lm goes on from a T5 that span corruption made (--start)",
    )
    parser.add_argument(
        "--text", type=Path, metavar="DIR", help="real text for small_*: DIR/<collection>/train.parquet"
    )
    parser.add_argument("--output", type=Path, help="folder to write (default: the shipped one)")
    parser.add_argument("--steps", type=int, help="instead of the backbone's own number")
    parser.add_argument(
        "--keep", type=int, action="append", metavar="STEP", help="write the model as it is then, too, as <output>_STEP"
    )
    parser.add_argument("--start", type=Path, metavar="DIR", help="go on from this folder, as the T5's *_lm do")
    parser.add_argument("--seed", type=int, default=PretrainConfig.seed)
    parser.add_argument("--force", action="store_true", help="make again what is there, or replace it by another")
    parser.add_argument("--check", action="store_true", help="remake (all or --model) and compare with the shipped")
    args = parser.parse_args(argv)
    if not args.model and not args.check:
        parser.error("nothing to do: give --model or --check")
    if args.objective and not args.model:
        parser.error("--objective goes with --model")
    if args.objective:
        args.model = _of_objective(args.model, args.objective, parser)
    if (args.model in OF_TEXT) != (args.text is not None):
        parser.error(f"--text DIR goes with --model {' or '.join(OF_TEXT)}, and these need it")
    if (args.keep or args.start) and not args.model:
        parser.error("--keep and --start go with --model")
    if args.text is not None:
        return _pretrain_on_text(replace(OF_TEXT[args.model], text=args.text, seed=args.seed), args)
    passed = True
    for made in [SHIPPED[args.model]] if args.model else SHIPPED.values():
        shipped = made.output
        with tempfile.TemporaryDirectory() as scratch:
            output = args.output or (Path(scratch) / shipped.name if args.check else shipped)
            cfg = _as_asked(replace(made, output=output, seed=args.seed), args)
            if output == shipped and cfg != made:
                parser.error(
                    f"without --output the shipped {shipped.name}, which records are about, would be replaced by one "
                    "made otherwise (--steps, --seed, --start or --keep); name a folder with --output DIR"
                )
            report = pretrain(cfg, args.force)
            unigram = unigram_loss(load_tokenizer(output), cfg.objective, cfg.model_type)
            print(
                f"{output}: validation loss {report.validation_loss:.4f} nats per token (from frequencies alone: "
                f"{unigram:.2f}), {report.seconds:.0f} s"
            )
            if args.check:
                result = compare(shipped, output)
                passed &= result.passed
                verdict = "passed" if result.passed else "failed"
                print(
                    f"{shipped.name}: {verdict}: shipped {result.shipped_loss:.4f}, remade {result.remade_loss:.4f} "
                    f"(tolerance {LOSS_TOLERANCE}); same tokenizer: {result.same_tokenizer}, bits: {result.same_bits}"
                )
    return 0 if passed else 1


def _of_objective(name: str, objective: str, parser: argparse.ArgumentParser) -> str:
    """The backbone that the objective makes of this size and text: of t5_small and prefix_lm, t5_small_lm."""
    known = SHIPPED | OF_TEXT
    for other in (name, f"{name}_lm", name.removesuffix("_lm")):
        if other in known and known[other].objective == objective:
            return other
    return parser.error(f"no objective {objective} for {name}, whose objective is {known[name].objective}")


def _as_asked(made: PretrainConfig, args: argparse.Namespace) -> PretrainConfig:
    keep = made.keep if args.keep is None else tuple(args.keep)
    steps = made.steps if args.steps is None else args.steps
    return replace(made, steps=steps, keep=keep, start=args.start or made.start)


def _pretrain_on_text(made: PretrainConfig, args: argparse.Namespace) -> int:
    cfg = _as_asked(replace(made, output=args.output or made.output), args)
    report = pretrain(cfg, args.force)
    print(
        f"{cfg.output}: {report.parameters:,} parameters, {report.tokens:,} tokens, validation loss "
        f"{report.validation_loss:.4f} nats per token, {report.seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
