"""How a run is trained and on what, checked before anything is loaded."""

import math

from ..config.schema import RunConfig, TrainerConfig
from .devices import DEVICES, DTYPES, PRECISIONS
from .optimizers import OPTIMIZERS, SCHEDULES


def check_trainer(trainer: TrainerConfig) -> None:
    """Raises ValueError for a value out of range or an unknown name."""
    if trainer.epochs < 0:
        raise ValueError(f"trainer.epochs={trainer.epochs}: expected 0 (no training) or more")
    if trainer.eval_max_length is not None and trainer.eval_max_length < 0:
        raise ValueError(f"trainer.eval_max_length={trainer.eval_max_length}: expected 0 (no limit) or more, or null")
    for name in ("batch_size", "micro_batch_size", "eval_batch_size", "max_length", "max_steps"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise ValueError(f"trainer.{name}={value}: expected at least 1")
    if trainer.backbone_dropout not in (None, 0):
        raise ValueError(f"trainer.backbone_dropout={trainer.backbone_dropout}: expected null (its own rates) or 0")
    if trainer.head_dropout is not None and not 0 <= trainer.head_dropout < 1:
        raise ValueError(f"trainer.head_dropout={trainer.head_dropout}: expected 0 or more, below 1, or null")
    for name in ("learning_rate", "eps"):
        if not 0 < getattr(trainer, name) < math.inf:
            raise ValueError(f"trainer.{name}={getattr(trainer, name)}: expected a finite number above 0")
    shares = dict.fromkeys(("beta1", "beta2", "warmup_ratio", "label_smoothing"), 1.0)
    for name, highest in (shares | dict.fromkeys(("weight_decay", "max_grad_norm", "z_loss"), math.inf)).items():
        if not 0 <= getattr(trainer, name) < highest:
            raise ValueError(f"trainer.{name}={getattr(trainer, name)}: expected 0 or more, below {highest:g}")
    if trainer.parameter_scaling and trainer.optimizer != "adafactor":
        raise ValueError(
            f"trainer.parameter_scaling=true with trainer.optimizer={trainer.optimizer}: only adafactor scales its "
            "steps; change one of the two"
        )
    if trainer.warmup_steps is not None and trainer.warmup_steps < 0:
        raise ValueError(f"trainer.warmup_steps={trainer.warmup_steps}: expected 0 or more, or null")
    if trainer.evaluate_every_steps is not None and trainer.evaluate_every_steps < 1:
        raise ValueError(f"trainer.evaluate_every_steps={trainer.evaluate_every_steps}: expected at least 1, or null")
    for name, known in (
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("precision", PRECISIONS),
        ("regression_bias", ("zero", "label_mean")),
        ("loss_reduction", ("token_mean", "example_sum")),
        ("selection", ("best", "last")),
    ):
        if getattr(trainer, name) not in known:
            raise ValueError(f"trainer.{name}={getattr(trainer, name)!r}: expected one of {', '.join(known)}")


def check_devices(cfg: RunConfig) -> None:
    """Raises ValueError for an unknown device, or type of the frozen weights."""
    for key, value, known in (("device", cfg.device, DEVICES), ("backbone.dtype", cfg.backbone.dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{key}={value!r}: expected one of {', '.join(known)}")
