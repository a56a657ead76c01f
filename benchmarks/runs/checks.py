"""Everything about a configuration that can be refused before data, weights or time are spent on it."""

import math
from collections.abc import Sequence

from ..answers.checks import check_generation, check_text
from ..answers.in_context import check_in_context
from ..backbones.checks import check_architecture
from ..config.compose import task_choice
from ..config.kinds import writes_text
from ..config.published import check_published
from ..config.schema import RunConfig, generation_of, is_control, text_of
from ..metrics.checks import check_metrics
from ..training.checks import check_devices, check_trainer


def check_config(cfg: RunConfig) -> None:
    """Raises ValueError: what was given, what is expected, where to change it."""
    if cfg.scale.name == "paper" and cfg.experiment != "custom":
        check_published(cfg, task_choice(cfg.task.dataset, cfg.task.name))
    for name, used in (("data_dir", cfg.scale.data == "published"), ("backbone_dir", not cfg.scale.backbones)):
        if getattr(cfg, name) is not None and not used:
            raise ValueError(
                f"{name}={getattr(cfg, name)}: scale={cfg.scale.name} has data and backbones of its own; "
                "choose scale=small or scale=paper, or leave it out"
            )
    check_trainer(cfg.trainer)
    check_architecture(cfg.backbone)
    for key, value in cfg.method.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"method.{key}={value}: expected a finite number")
    if cfg.task.num_labels == 0 and generation_of(cfg.task, cfg.scale) is None:
        raise ValueError(
            f"task={cfg.task.name} has no form at scale={cfg.scale.name}: choose scale=small or scale=paper, "
            "task=e2e or task=xsum"
        )
    for task in (cfg.task, *cfg.transfer.values()):
        check_metrics(task, cfg.scale)
    for name, task in cfg.transfer.items():
        kinds = [(t.num_labels, generation_of(t, cfg.scale) is None) for t in (task, cfg.task)]
        if kinds[0] != kinds[1] or "/" in name:
            raise ValueError(
                f"transfer.{name} is {task.name} with num_labels={task.num_labels}, the run is trained on "
                f"{cfg.task.name} with {cfg.task.num_labels}: expected one kind of task at scale={cfg.scale.name}, and "
                "no slash in the name; change transfer"
            )
    if cfg.mixture:
        _check_mixture(cfg)
    if cfg.in_context is not None:
        check_in_context(cfg.in_context)
        if cfg.task.num_labels < 2 or not writes_text(cfg.backbone.model_type) or cfg.trainer.epochs:
            raise ValueError(
                f"in_context={cfg.in_context.name} with task={cfg.task.name}, backbone={cfg.backbone.name} and "
                f"trainer.epochs={cfg.trainer.epochs:g}: expected a task with labels, a backbone that writes, and no "
                "training (method=head_only trainer.epochs=0)"
            )
        if cfg.transfer:
            raise ValueError(
                f"in_context={cfg.in_context.name} with transfer={[*cfg.transfer]}: nothing is trained that could "
                "transfer; score each task in a run of its own"
            )
    reads_pairs = not (is_control(cfg) or writes_text(cfg.backbone.model_type))
    if reads_pairs and len(cfg.task.text_columns) > 2:
        raise ValueError(
            f"task={cfg.task.name} has {len(cfg.task.text_columns)} texts a row, of which {cfg.backbone.name} reads "
            "two at most; choose a backbone that reads and writes text (backbone=t5_v1_1_small)"
        )
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed={cfg.seed}: expected 0 to {2**32 - 1}")
    check_devices(cfg)
    if not cfg.results_dir:
        raise ValueError("results_dir is empty: name a folder, or leave it out for results/")
    generates = generation_of(cfg.task, cfg.scale) is not None
    if cfg.task.num_labels < (0 if generates else 1) or not cfg.task.validation_splits:
        raise ValueError(
            f"task {cfg.task.name}: num_labels={cfg.task.num_labels}, validation_splits={cfg.task.validation_splits}; "
            "expected at least one of each (no label only where answers are texts); change conf/task/"
        )
    if generates:
        check_generation(cfg)
    elif writes_text(cfg.backbone.model_type):
        check_text(cfg, "task", cfg.task)
        for name, task in cfg.transfer.items():
            check_text(cfg, f"transfer.{name}", task)
    if cfg.threads is not None and cfg.threads < 1:
        raise ValueError(f"threads={cfg.threads}: expected at least 1, or null for torch's choice")


def _check_mixture(cfg: RunConfig) -> None:
    if cfg.transfer or not writes_text(cfg.backbone.model_type) or not cfg.trainer.epochs:
        raise ValueError(
            f"mixture={[*cfg.mixture]} with backbone={cfg.backbone.name}, transfer={[*cfg.transfer]} and trainer.epochs"
            f"={cfg.trainer.epochs:g}: expected a backbone that writes, no task to transfer to, and training"
        )
    for name, task in cfg.mixture.items():
        labelled = generation_of(task, cfg.scale) is None
        if "/" in name or (labelled and text_of(task, cfg.scale) is None):
            raise ValueError(
                f"mixture.{name} is {task.name}, which has no text form at scale={cfg.scale.name}: expected tasks that "
                "are written, and no slash in the name; change mixture"
            )
        if labelled:
            check_text(cfg, f"mixture.{name}", task)


def check_pack(cfgs: Sequence[RunConfig]) -> None:
    """The runs of a pack share backbone, scale, precision and checkpointing; everything else may differ."""
    if len({is_control(cfg) for cfg in cfgs}) > 1:
        raise ValueError("a pack holds controls without a backbone or runs with one, not both: split the pack")
    if any(not cfg.backbone.pretrained for cfg in cfgs) and len({cfg.seed for cfg in cfgs}) > 1:
        raise ValueError("a pack shares one backbone, and a random start draws it from the seed: split the pack")
    for name in ("backbone", "scale", "backbone_dir", "device", "threads", "results_dir"):
        if len({repr(getattr(cfg, name)) for cfg in cfgs}) > 1:
            raise ValueError(f"a pack shares one {name}, these runs differ in it: split the pack")
    for name in ("precision", "gradient_checkpointing"):
        if len({getattr(cfg.trainer, name) for cfg in cfgs}) > 1:
            raise ValueError(f"a pack shares one trainer.{name}, these runs differ in it: split the pack")


def check_length(cfg: RunConfig, positions: int | None) -> None:
    """The backbone's position table bounds the tokens of an example; a prompt takes its share of it."""
    if positions is not None and cfg.trainer.max_length > positions:
        raise ValueError(
            f"trainer.max_length={cfg.trainer.max_length}: the backbone has positions for {positions} tokens, the "
            "method's own left out; lower it, or method.length"
        )
