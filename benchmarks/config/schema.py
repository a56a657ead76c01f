"""The typed schema of a run: Python owns types and meaning, YAML owns values and sources (compose.py brings them
together). Defaults of methods and recipes live in YAML only.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

LOSS = "loss"  # a metric of written texts: nats per token of the target; the one whose lowest value is the best
CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


@dataclass
class BackboneConfig:
    """A published checkpoint. `architecture` holds its published shape: counts and rehearsals need no download.

    hub_id, revision: on the Hugging Face hub, or the subfolder of `backbone_dir`. pooler: build the pooler layer.
    pretrained: false starts from random weights (a control). dtype: of the frozen weights. weights_sha256: of the
    published safetensors (null: not known here); a local copy counts as published only if it has it.
    """

    name: str = MISSING
    model_type: str = MISSING
    hub_id: str = MISSING
    revision: str = "main"
    pooler: bool = MISSING
    pretrained: bool = True
    dtype: str = "float32"
    weights_sha256: str | None = None
    architecture: dict[str, Any] = MISSING


@dataclass
class TextConfig:
    """A task for a backbone that writes text. source: what it reads, with {column} for each text column.

    labels: what it writes for label 0, 1, ...; empty for a score, which is written with one decimal. replace: texts
    within the columns and what stands for them (MultiRC's HTML).
    """

    source: str = MISSING
    labels: list[str] = MISSING
    replace: dict[str, str] = field(default_factory=dict)


@dataclass
class GenerationConfig:
    """A task whose answers are texts with references, for a backbone that writes.

    source_column, target_column: what is read, and one or several reference texts; source_columns: in place of
    source_column, where a line is made of several. truth_column: whether a row's target is right; training has the rows
    where it is, and scores know it (WSC). linearization: how a source becomes a line (linearizing.py): none, e2e,
    web_nlg, dart, joined, squad, record or wsc. targets: a row is trained on all its targets or the first. text_form,
    reference_form: official, or tokenized as in the papers' own files, for what is trained on and for what is scored
    against. grouped: rows with one source are one input, scored against all their targets (E2E); else each is one.
    source, target: what the model reads and writes, with {text} and every blank; an end token follows each, a
    source only with `separator`. target_tokens: of the longest target that is trained on, special ones included (null:
    no limit); references stay whole. train_rows: of the training split (null: all), drawn by train_sample.
    validation_rows: of the validation split, for the loss during training (null: all).
    """

    source_column: str = ""
    target_column: str = MISSING
    source_columns: list[str] = field(default_factory=list)
    truth_column: str = ""
    targets: str = "all"
    grouped: bool = True
    linearization: str = "none"
    text_form: str = "official"
    reference_form: str = "official"
    source: str = MISSING
    target: str = MISSING
    separator: bool = True
    target_tokens: int | None = None
    train_rows: int | None = None
    train_sample: int = 0
    validation_rows: int | None = None


@dataclass
class DecodingConfig:
    """How a generation task's outputs are searched for (decoding.py).

    length_penalty: the summed log-probability is divided by length ** length_penalty; length_counts: of the output
    alone (LoRA's code, transformers 5) or of source and output (transformers 3.2, prefix tuning's code).
    no_repeat_ngram: n-grams that must not come twice (0: any may); ngram_counts: in the output alone (LoRA's code) or
    in source and output (transformers). early_stopping: heuristic (stop where the best running beam, at its present
    length, is worse than the worst finished one: transformers' default), never (search on to the last token) or first
    (stop with as many finished outputs as beams).
    min_new_tokens: end tokens are impossible before. banned: texts of one token
    each that are never written. ends: texts of one token each that end an output, beside the end token; the output
    stops before them. clean_up: join clitics and full stops to the words before them (prefix tuning's code).
    """

    name: str = MISSING
    beams: int = MISSING
    length_penalty: float = MISSING
    length_counts: str = MISSING
    no_repeat_ngram: int = MISSING
    ngram_counts: str = MISSING
    max_new_tokens: int = MISSING
    early_stopping: str = "heuristic"
    min_new_tokens: int = 0
    banned: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    clean_up: bool = False
    batch_size: int = 16


@dataclass
class TaskConfig:
    """A task described before any data is seen.

    hub_id, hub_revision, subset: on the hub (an empty hub_id: not there in this layout), or the folders
    `<data_dir>/<dataset>/<subset>/` (subset may be empty). num_labels: 1 means regression, 0 that answers are texts.
    label_range: lowest and highest legal label. validation_splits: the first one selects checkpoints. test_splits:
    scored where the scale has labels for them, or public_test says that the published ones have. text: null where no
    backbone can write the answer; micro_text: the same in words of the generated language. generation,
    micro_generation: of a task whose answers are texts (num_labels 0), likewise; text_columns and label_range are empty
    there, selection_metric may be `loss`, the validation loss per token, whose lowest value is the best.
    metrics: names in metrics.py, and `mean` of the others; selection_metric: one of them. group_columns: columns, or
    fields of one (idx.question), that tell which rows exact_match takes together (MultiRC: the answers to a question).
    target_prefix: a text before everything that a backbone writes, taken off its answers (a sentinel). prompt_words:
    what a prompt starts from in place of class labels, where answers are free. cut_from: a split that has all rows
    (empty: each is there by itself); training, validation and test take 70, 15 and 15 percent of the values of the
    column cut_by, with all rows of each (SQuAD's articles).
    """

    name: str = MISSING
    dataset: str = MISSING
    hub_id: str = MISSING
    hub_revision: str | None = None
    subset: str = MISSING
    text_columns: list[str] = MISSING
    label_column: str = "label"
    num_labels: int = MISSING
    label_range: list[float] = MISSING
    train_split: str = "train"
    validation_splits: list[str] = MISSING
    test_splits: list[str] = MISSING
    public_test: bool = False
    metrics: list[str] = MISSING
    selection_metric: str = MISSING
    group_columns: list[str] = field(default_factory=list)
    target_prefix: str = ""
    prompt_words: list[str] = field(default_factory=list)
    cut_from: str = ""
    cut_by: str = ""
    text: TextConfig | None = None
    micro_text: TextConfig | None = None
    generation: GenerationConfig | None = None
    micro_generation: GenerationConfig | None = None


@dataclass
class TrainerConfig:
    """How a run is optimized; the published value and its section stand beside each value in conf/recipe/.

    epochs 0: nothing is trained, for a method without parameters. batch_size: global, examples per optimizer step.
    eval_max_length: of a text that is answered by a backbone with an encoder (null: max_length, 0: as long as it is).
    micro_batch_size: examples per forward pass of one process (null: the whole batch); the rest is accumulated.
    max_steps: cuts `epochs` short (null: no cut). max_length: in tokens, special ones included. optimizer: adamw, or
    bert_adam (no bias correction), or adafactor (T5X's: no betas, no eps; its weight decay is not times the learning
    rate). parameter_scaling: adafactor's steps are relative to the parameter's size. schedule: linear or constant.
    warmup_steps wins over warmup_ratio. regression_bias: where the output layer's bias starts if num_labels is 1: zero
    (the published code) or label_mean (of the training labels). precision: fp32 or bf16. evaluate_every_steps: null
    means every epoch. selection: best (epoch by the task's selection metric) or last; both are recorded, this one
    initializes children.
    Of what is written: loss_reduction is token_mean (over all tokens of the batch) or example_sum (summed over the
    tokens of an example, mean over the batch: prefix tuning's code); label_smoothing mixes in the mean over the
    vocabulary; z_loss times log(Z)^2 of every token is added (T5X). backbone_dropout: null keeps the backbone's own
    rates, 0 switches them off (both papers' code on GPT-2).
    max_grad_norm 0: no clipping.
    """

    learning_rate: float = MISSING
    epochs: int = MISSING
    max_steps: int | None = None
    batch_size: int = MISSING
    micro_batch_size: int | None = None
    eval_batch_size: int = 64
    max_length: int = MISSING
    eval_max_length: int | None = None
    optimizer: str = "adamw"
    parameter_scaling: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    max_grad_norm: float = 1.0
    regression_bias: str = "zero"
    loss_reduction: str = "token_mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    backbone_dropout: float | None = None
    precision: str = "fp32"
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    evaluate_every_steps: int | None = None
    selection: str = "best"


@dataclass
class InitFromConfig:
    """Start from a module trained on another task (LoRA, appendix D.1: RTE, MRPC and STS-B start from MNLI).

    experiment, task: the parent's. parent: same_seed, or best (highest validation score among runs of all `seeds`).
    head_dense: carry the head's dense layer over (the paper does not say); the output layer never carries over.
    if_missing: train (the parent is trained first, in this process) or error (the exact command is named).
    overrides: Hydra overrides for the parent alone.
    """

    experiment: str = MISSING
    task: str = MISSING
    parent: str = "same_seed"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    head_dense: bool = MISSING
    if_missing: str = "train"
    overrides: list[str] = field(default_factory=list)


@dataclass
class InContextConfig:
    """What a frozen backbone reads before a question, to answer it without being trained (conf/in_context/).

    prompt: the whole text, with {source} for the question and, where there are shots, {examples}. example: one of them,
    with {source} and {target}; separator: between two. shots: how many, drawn from the training split by the run's
    seed; those for which max_length leaves no room are left out, the last ones first. The label whose words are
    the most probable is the answer; likelihood: of a label per_token (Brown et al. 2020, section 2.4: so that long ones
    lose nothing), or the sum over its tokens. of: the task whose examples they are (null: the run's own), for a wrong
    prompt.
    """

    name: str = MISSING
    prompt: str = MISSING
    example: str = "{source} {target}"
    separator: str = " "
    shots: int = 0
    likelihood: str = "per_token"
    of: TaskConfig | None = None


@dataclass
class ScaleConfig:
    """Where backbones and data come from: paper and small (published), micro (the embedded ones).

    data: published or micro. backbones: name, or else model_type, of the published backbone -> the shipped one that
    stands in for it. evaluate_test: test splits have labels here. parent: which parent `init_from` takes at this scale
    (InitFromConfig).
    """

    name: str = MISSING
    data: str = MISSING
    backbones: dict[str, str] = field(default_factory=dict)
    evaluate_test: bool = False
    parent: str = "best"


@dataclass
class TrackingConfig:
    """Weights & Biases. mode: disabled, offline or online; a failure there never fails a run."""

    mode: str = "disabled"
    project: str = "peft-bench"
    entity: str | None = None


@dataclass
class RunConfig:
    """One run: one seed of one setting on one task.

    experiment: the printed row. settings: paper or script, where they disagree. recipe: where the published
    hyperparameters of this row and task come from; null at scale=paper is an error. data_dir, backbone_dir: local
    folders in hub layout instead of the hub. device: auto, cpu or cuda. threads: null keeps torch's choice.
    checkpoint_seconds: how often the state of a run is written, from which it resumes. transfer: other tasks of the
    same kind, on which the trained run is scored as it is; their splits are called <name>/<split>. mixture: tasks that
    are trained on together (multi-task), each in proportion to its rows and with its name in front of what is read; the
    run's own is one of them in any case, and the one that is scored. in_context: instructions and examples before every
    question of a frozen backbone.
    """

    backbone: BackboneConfig = MISSING
    method: Any = MISSING
    task: TaskConfig = MISSING
    trainer: TrainerConfig = MISSING
    scale: ScaleConfig = MISSING
    tracking: TrackingConfig = MISSING
    decoding: DecodingConfig = MISSING
    experiment: str = "custom"
    settings: str = "paper"
    recipe: str | None = None
    init_from: InitFromConfig | None = None
    transfer: dict[str, TaskConfig] = field(default_factory=dict)
    mixture: dict[str, TaskConfig] = field(default_factory=dict)
    in_context: InContextConfig | None = None
    seed: int = 0
    data_dir: str | None = None
    backbone_dir: str | None = None
    results_dir: str = "results"
    device: str = "auto"
    threads: int | None = None
    checkpoint_seconds: float = 300.0
    force: bool = False


def task_of(cfg: RunConfig, split: str) -> TaskConfig:
    """The task that a split of a run's data is of: its own, or one of `transfer`."""
    name, _, _ = split.rpartition("/")
    return cfg.transfer[name] if name else cfg.task


def others_of(cfg: RunConfig) -> dict[str, TaskConfig]:
    """The tasks of a mixture beside the run's own, by name, in the order of their names."""
    own = (cfg.task.dataset, cfg.task.subset, cfg.task.name)
    return {n: t for n, t in sorted(cfg.mixture.items()) if (t.dataset, t.subset, t.name) != own}


def text_of(task: TaskConfig, scale: ScaleConfig) -> TextConfig | None:
    """How a backbone that writes sees the task at this scale."""
    return task.micro_text if scale.data == "micro" else task.text


def generation_of(task: TaskConfig, scale: ScaleConfig) -> GenerationConfig | None:
    """How a task whose answers are texts is set at this scale; None for a task with labels."""
    return task.micro_generation if scale.data == "micro" else task.generation


def writes_text(model_type: str) -> bool:
    """Backbones that answer in text, through their own output layer; the others classify, through a head."""
    return model_type in ("gpt2", "t5", "bart")


def is_control(cfg: RunConfig) -> bool:
    """Majority and bag of words: nothing is trained step by step."""
    return str(cfg.method["_target_"]).startswith("peft_bench.controls.")
