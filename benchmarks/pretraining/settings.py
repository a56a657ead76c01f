"""What is pretrained, and how: one configuration a backbone; those that are shipped, and those of real text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..backbones.files import MICRO_BACKBONES
from .builders import BUILDERS, Sizes
from .objectives import check_objective, documents_of
from .real_text import read_documents


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
    output, sizes = MICRO_BACKBONES / name, Sizes(hidden_size=width)
    return PretrainConfig("t5", output, "span_corruption", sizes, steps=16_000, batch_size=32, notes=True)


def _adapted(spans: PretrainConfig) -> PretrainConfig:
    """LM adaptation, which ships beside its start. 100,000 steps after 1,000,000 in Lester et al. 2021, section 3.2;
    here three quarters of the steps: a tenth teaches no opinion to a model of this size, and no prompt calls for one.
    """
    output = spans.output.with_name(f"{spans.output.name}_lm")
    return replace(spans, output=output, objective="prefix_lm", steps=ADAPTED[-1], start=spans.output)


ADAPTED = (1_200, 6_000, 12_000)  # as 10,000, 50,000 and 100,000 steps of LM adaptation
_T5 = {f"t5_{size}": _t5(f"micro_t5_{size}", width) for size, width in (("small", 32), ("base", 48), ("large", 64))}
SHIPPED = {
    "bert": PretrainConfig("bert", MICRO_BACKBONES / "micro_bert"),
    "roberta": PretrainConfig("roberta", MICRO_BACKBONES / "micro_roberta"),
    "gpt2": PretrainConfig(
        "gpt2",
        MICRO_BACKBONES / "micro_gpt2",
        "causal_lm",
        Sizes(heads=4, positions=128),
        steps=12_000,
        batch_size=16,
        notes=True,
    ),
    "bart": PretrainConfig(
        "bart",
        MICRO_BACKBONES / "micro_bart",
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


def check_settings(cfg: PretrainConfig) -> None:
    """Before anything is read. Raises ValueError for names that are not known, numbers that make no sense, folders that
    are no backbones, or would be lost."""
    if cfg.model_type not in BUILDERS:
        raise ValueError(f"unknown model_type {cfg.model_type!r}; expected one of {sorted(BUILDERS)}")
    check_objective(cfg.objective, cfg.model_type)
    if cfg.steps < 1:
        raise ValueError(f"steps={cfg.steps}: expected at least 1; change --steps")
    if wrong := [step for step in cfg.keep if not 0 < step < cfg.steps]:
        raise ValueError(f"keep={wrong[0]}: expected a step from 1 to {cfg.steps - 1}, before the last; change --keep")
    if cfg.start is not None and not (cfg.start / "config.json").is_file():
        raise ValueError(f"start={cfg.start}: no backbone there (no config.json); change --start or make it first")
    for target in targets(cfg):
        if target.exists() and not (target / "pretraining.json").is_file():
            raise ValueError(
                f"output={target} is there and is no backbone made here (no pretraining.json), and would be replaced: "
                "change --output, or remove it"
            )


def targets(cfg: PretrainConfig) -> list[Path]:
    """Every folder that the run writes."""
    return [cfg.output, *(kept_path(cfg, step) for step in cfg.keep)]


def kept_path(cfg: PretrainConfig, step: int) -> Path:
    """Where the model is written as it is after a step before the last."""
    return cfg.output.with_name(f"{cfg.output.name}_{step}")


def described(cfg: PretrainConfig) -> dict[str, Any]:
    """The configuration as JSON holds it, with names, not where they lie on this machine."""
    places = {"output": cfg.output, "start": cfg.start, "text": cfg.text}
    names = {key: path.name if path else None for key, path in places.items()}
    described: dict[str, Any] = json.loads(json.dumps(asdict(cfg) | names))
    return described


def documents(cfg: PretrainConfig, split: str) -> list[list[str]]:
    """The lines of each document of a split: of the generated language, or of real text."""
    return documents_of(split) if cfg.text is None else read_documents(cfg.text, split)
