"""Pretrain a small backbone, on the micro language (shipped) or on real text, and write it as a Hugging Face folder.

    peft-bench pretrain --model bert    # remake one in its place (--output FOLDER: elsewhere)
    peft-bench pretrain --check         # remake all, compare with the shipped ones
    peft-bench pretrain model=t5_small objective=prefix_lm steps=6000 output=DIR   # every --option, as key=value
    peft-bench pretrain --model small_gpt2 --text DIR --output DIR   # on real text, for scale=small

Every architecture has the objective of its published checkpoints (objectives.py). BERT also predicts whether the
second sentence follows the first (half the time it comes from another document), which is what trains its pooler;
RoBERTa does not, and ships without a pooler, as the published checkpoints do. A run may go on from another's folder
(`start`): LM adaptation is objective "prefix_lm" from the T5 that span corruption made, for three quarters of
its steps.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .folder import LOSS_TOLERANCE, compare, load_tokenizer
from .loop import pretrain
from .objectives import OBJECTIVES, unigram_loss
from .settings import OF_TEXT, SHIPPED, PretrainConfig


def main(argv: Sequence[str]) -> int:
    """`peft-bench pretrain`: 0 if all was made and, with --check, every backbone is within the tolerance."""
    argv = [f"--{word}" if re.match("[a-z]+=", word) else word for word in argv]
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
