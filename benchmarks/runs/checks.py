"""Everything about a configuration that can be refused before data, weights or time are spent on it."""

import math

from ..answers.in_context import check_in_context
from ..backbones.checks import check_architecture
from ..config.compose import task_choice
from ..config.kinds import kind_of, writes_text
from ..config.schema import (
    LOSS,
    RunConfig,
    ScaleConfig,
    TaskConfig,
    TrainerConfig,
    generation_of,
    is_control,
    text_of,
)
from ..metrics.e2e import TEXT_METRICS
from ..metrics.labels import EXACT_MATCH, MEAN, METRICS
from ..metrics.rouge import ROUGE
from ..metrics.squad import ANSWER_METRICS
from ..training.devices import DEVICES, DTYPES, PRECISIONS


def check_config(cfg: RunConfig) -> None:
    """Raises ValueError: what was given, what is expected, where to change it."""
    if cfg.scale.name == "paper" and cfg.experiment != "custom" and cfg.recipe is None:
        raise ValueError(
            f"no published recipe for experiment={cfg.experiment} task={task_choice(cfg.task.dataset, cfg.task.name)} "
            f"settings={cfg.settings}: expected conf/recipe/{cfg.settings}/{cfg.experiment}/"
            f"{task_choice(cfg.task.dataset, cfg.task.name)}.yaml, or `recipe:` in the experiment file"
        )
    for name, used in (("data_dir", cfg.scale.data == "published"), ("backbone_dir", not cfg.scale.backbones)):
        if getattr(cfg, name) is not None and not used:
            raise ValueError(
                f"{name}={getattr(cfg, name)}: scale={cfg.scale.name} has data and backbones of its own; "
                "choose scale=small or scale=paper, or leave it out"
            )
    _check_trainer(cfg.trainer)
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
        _check_metrics(task, cfg.scale)
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
    reads_pairs = not (is_control(cfg) or writes_text(cfg.backbone.model_type))
    if reads_pairs and len(cfg.task.text_columns) > 2:
        raise ValueError(
            f"task={cfg.task.name} has {len(cfg.task.text_columns)} texts a row, of which {cfg.backbone.name} reads "
            "two at most; choose a backbone that reads and writes text (backbone=t5_v1_1_small)"
        )
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed={cfg.seed}: expected 0 to {2**32 - 1}")
    for key, value, known in (("device", cfg.device, DEVICES), ("backbone.dtype", cfg.backbone.dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{key}={value!r}: expected one of {', '.join(known)}")
    if not cfg.results_dir:
        raise ValueError("results_dir is empty: name a folder, or leave it out for results/")
    generates = generation_of(cfg.task, cfg.scale) is not None
    if cfg.task.num_labels < (0 if generates else 1) or not cfg.task.validation_splits:
        raise ValueError(
            f"task {cfg.task.name}: num_labels={cfg.task.num_labels}, validation_splits={cfg.task.validation_splits}; "
            "expected at least one of each (no label only where answers are texts); change conf/task/"
        )
    if generates:
        _check_generation(cfg)
    elif writes_text(cfg.backbone.model_type):
        _check_text(cfg, "task", cfg.task)
        for name, task in cfg.transfer.items():
            _check_text(cfg, f"transfer.{name}", task)
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
            _check_text(cfg, f"mixture.{name}", task)


def _check_metrics(task: TaskConfig, scale: ScaleConfig) -> None:
    texts = generation_of(task, scale) is not None
    known = [LOSS, *TEXT_METRICS, *ROUGE, *ANSWER_METRICS] if texts else [*METRICS, EXACT_MATCH]
    unknown = [metric for metric in task.metrics if metric not in (*known, MEAN)]
    if unknown or task.selection_metric not in task.metrics:
        raise ValueError(
            f"task {task.name}: metrics {task.metrics}, selection_metric {task.selection_metric!r}; expected names "
            f"among {', '.join((*known, MEAN))}, the selection metric one of the task's; change conf/task/"
        )
    if (EXACT_MATCH in task.metrics) != bool(task.group_columns):
        raise ValueError(
            f"task {task.name}: metrics {task.metrics}, group_columns {task.group_columns}; expected {EXACT_MATCH} "
            "with columns that make groups, or neither; change conf/task/"
        )
    if MEAN in task.metrics and len(task.metrics) < 2:
        raise ValueError(f"task {task.name}: metrics {task.metrics}; expected others to take the mean of")


def _check_generation(cfg: RunConfig) -> None:
    if is_control(cfg) or not writes_text(cfg.backbone.model_type):
        what = cfg.method["_target_"].rpartition(".")[2] if is_control(cfg) else cfg.backbone.name
        raise ValueError(
            f"task={cfg.task.name} is answered in texts, which {what} does not write; choose a backbone that does "
            "(backbone=gpt2)"
        )
    decoding = cfg.decoding
    for name in ("beams", "max_new_tokens", "batch_size"):
        if getattr(decoding, name) < 1:
            raise ValueError(f"decoding.{name}={getattr(decoding, name)}: expected at least 1")
    for name in ("no_repeat_ngram", "min_new_tokens"):
        if getattr(decoding, name) < 0:
            raise ValueError(f"decoding.{name}={getattr(decoding, name)}: expected 0 or more")
    if decoding.min_new_tokens > decoding.max_new_tokens:
        raise ValueError(
            f"decoding.min_new_tokens={decoding.min_new_tokens} is more than decoding.max_new_tokens="
            f"{decoding.max_new_tokens}: expected at most as many"
        )
    if not math.isfinite(decoding.length_penalty):
        raise ValueError(f"decoding.length_penalty={decoding.length_penalty}: expected a finite number")
    counts = ("output", "source_and_output")
    for name, known in (
        ("length_counts", counts),
        ("ngram_counts", counts),
        ("early_stopping", ("heuristic", "never", "first")),
    ):
        if getattr(decoding, name) not in known:
            raise ValueError(f"decoding.{name}={getattr(decoding, name)!r}: expected one of {', '.join(known)}")
    apart = not kind_of(cfg.backbone.model_type).decoder_only
    if apart and "source_and_output" in (decoding.length_counts, decoding.ngram_counts):
        raise ValueError(
            f"decoding={decoding.name} counts source and output as one sequence, which they are not in "
            f"{cfg.backbone.name}: set decoding.length_counts=output decoding.ngram_counts=output, or another decoding="
        )


def _check_text(cfg: RunConfig, where: str, task: TaskConfig) -> None:
    text = text_of(task, cfg.scale)
    key = f"{where}.micro_text" if cfg.scale.data == "micro" else f"{where}.text"
    if text is None:
        raise ValueError(
            f"task {task.name} has no {key}, and {cfg.backbone.name} answers in text; choose a task that has one "
            "(task=glue/sst2), or add it in conf/task/"
        )
    expected = "no" if task.num_labels == 1 else task.num_labels
    if len(text.labels) != (task.num_labels if task.num_labels > 1 else 0) or len(set(text.labels)) < len(text.labels):
        raise ValueError(f"{key}.labels={text.labels}: expected {expected} different words; change conf/task/")
    try:
        text.source.format(**dict.fromkeys(task.text_columns, ""))
        missing = [column for column in task.text_columns if f"{{{column}}}" not in text.source]
        problem = f"no {{{missing[0]}}}" if missing else ""
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise ValueError(
            f"{key}.source={text.source!r}: expected the columns {', '.join(task.text_columns)} in braces ({problem}); "
            "change conf/task/"
        )


def _check_trainer(trainer: TrainerConfig) -> None:
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
        ("optimizer", ("adamw", "bert_adam", "adafactor")),
        ("schedule", ("linear", "constant")),
        ("precision", PRECISIONS),
        ("regression_bias", ("zero", "label_mean")),
        ("loss_reduction", ("token_mean", "example_sum")),
        ("selection", ("best", "last")),
    ):
        if getattr(trainer, name) not in known:
            raise ValueError(f"trainer.{name}={getattr(trainer, name)!r}: expected one of {', '.join(known)}")


def check_pack(cfgs: list[RunConfig]) -> None:
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
