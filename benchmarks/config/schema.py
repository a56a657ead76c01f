"""The typed schema of a run: Python owns types and meaning, YAML owns values and sources (compose.py brings them
together). Defaults of methods and recipes live in YAML only. fields.py says what the roles are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fields import NOTE, NUMERICS, PLACE, VERSION, field

LOSS = "loss"  # a metric of written texts: nats per token of the target; the one whose lowest value is the best
CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


@dataclass
class BackboneConfig:
    """A published checkpoint. What it is counts by the bytes of its weights, which the identity has."""

    name: str = field()
    model_type: str = field()  # kinds.py
    hub_id: str = field(role=NOTE)  # on the Hugging Face hub, or the subfolder of `backbone_dir`
    revision: str = field("main")
    pooler: bool = field()  # build the pooler layer
    pretrained: bool = field(True)  # false: from random weights (a control)
    dtype: str = field("float32", since="float32")  # of the frozen weights; what trains is float32
    other_shape: bool = field(False, NOTE)  # true: may be of another shape than `architecture` (rehearsals)
    weights_sha256: str | None = field(None, NOTE)  # of the published safetensors: a local copy without it is none
    architecture: dict[str, Any] = field(role=NOTE)  # published shape: counts and rehearsals need no download


@dataclass
class TextConfig:
    """A task with labels for a backbone that writes text."""

    source: str = field()  # what it reads, with {column} for each text column
    labels: list[str] = field()  # what it writes for label 0, 1, ...; empty for a score, written with one decimal
    replace: dict[str, str] = field({}, since={})  # texts within the columns, what stands for them (MultiRC's HTML)


@dataclass
class GenerationConfig:
    """A task whose answers are texts with references, for a backbone that writes."""

    source_column: str = field("")  # what is read
    target_column: str = field()  # one or several reference texts
    source_columns: list[str] = field([], since=[])  # in place of source_column, where a line is made of several
    truth_column: str = field("", since="")  # is a row's target right? trained on are those; scores know it (WSC)
    targets: str = field("all", since="all")  # a row is trained on all its targets, or the first
    grouped: bool = field(True, since=True)  # rows with one source are one input, scored against all targets (E2E)
    linearization: str = field("none")  # how a source becomes a line (tasks/lines.py)
    text_form: str = field("official")  # or tokenized as in the papers' own files: of what is trained on
    reference_form: str = field("official")  # likewise of what is scored against
    source: str = field()  # what the model reads, with {text} and every blank; an end token follows with `separator`
    target: str = field()  # what it writes, likewise; an end token follows
    separator: bool = field(True)
    target_tokens: int | None = field(None, since=None)  # of the longest one trained on, special ones included
    train_rows: int | None = field(None)  # of the training split (null: all), drawn by train_sample
    train_sample: int = field(0)
    validation_rows: int | None = field(None)  # for the loss during training (null: all)


@dataclass
class DecodingConfig:
    """How a generation task's outputs are searched for (answers/decoding.py)."""

    name: str = field(role=NOTE)
    beams: int = field()
    length_penalty: float = field()  # the summed log-probability is divided by length ** length_penalty
    length_counts: str = field()  # output (LoRA's code, transformers 5) or source_and_output (3.2, prefix tuning's)
    no_repeat_ngram: int = field()  # n-grams of this size must not come twice (0: any may)
    ngram_counts: str = field()  # in the output (LoRA's code), or in source_and_output (transformers)
    max_new_tokens: int = field()
    early_stopping: str = field("heuristic")  # where the best running beam is worse than the worst finished one now
    # (transformers' default); never: search on to the last token; first: with as many finished outputs as beams
    min_new_tokens: int = field(0)  # end tokens are impossible before
    banned: list[str] = field([])  # texts of one token each that are never written
    ends: list[str] = field([])  # texts of one token each before which an output stops, beside the end token
    clean_up: bool = field(False)  # join clitics and full stops to the words before them (prefix tuning's code)
    batch_size: int = field(16, NUMERICS)


@dataclass
class TaskConfig:
    """A task described before any data is seen."""

    name: str = field()
    version: int = field(1, VERSION)  # raised when its results change on purpose, so that its runs are made again
    dataset: str = field()  # in local data: <data_dir>/<dataset>/<subset>/
    hub_id: str = field()  # empty: not on the hub in this layout
    hub_revision: str | None = field(None, NOTE)  # the identity has the data's own digest
    subset: str = field()  # may be empty
    text_columns: list[str] = field()  # empty where answers are texts
    label_column: str = field("label")
    num_labels: int = field()  # 1: regression; 0: answers are texts
    label_range: list[float] = field()  # lowest and highest legal label; empty where answers are texts
    train_split: str = field("train")
    validation_splits: list[str] = field()  # the first one selects checkpoints
    test_splits: list[str] = field()  # scored where the scale has labels for them, or public_test
    public_test: bool = field(False, since=False)  # the published test splits have labels
    metrics: list[str] = field()  # names in metrics/, and `mean` of the others
    selection_metric: str = field()  # one of them; `loss`: of validation, per token, the lowest is the best
    group_columns: list[str] = field([], since=[])  # or fields of one (idx.question): rows that exact_match takes
    # together (MultiRC: the answers to a question)
    target_prefix: str = field("", since="")  # before everything that is written, taken off answers (a sentinel)
    prompt_words: list[str] = field([], since=[])  # what a prompt starts from in place of labels, for free answers
    cut_from: str = field("", since="")  # a split that has all rows (empty: each is there by itself), cut into 70, 15
    cut_by: str = field("", since="")  # and 15 percent of this column's values, all rows of each (SQuAD's articles)
    # How a backbone that writes sees it: with labels, or answered in texts; on published data, in generated language.
    text: TextConfig | None = field(None)
    micro_text: TextConfig | None = field(None)
    generation: GenerationConfig | None = field(None)
    micro_generation: GenerationConfig | None = field(None)


@dataclass
class TrainerConfig:
    """How a run is optimized; the published value and its section stand beside each value in conf/recipe/."""

    learning_rate: float = field()
    epochs: int = field()  # 0: nothing is trained, for a method without parameters
    max_steps: int | None = field(None)  # cuts epochs short (null: no cut)
    batch_size: int = field()  # global: examples per optimizer step
    micro_batch_size: int | None = field(None)  # examples per forward pass of a process (null: all); they accumulate
    eval_batch_size: int = field(64, NUMERICS)
    max_length: int = field()  # in tokens, special ones included
    eval_max_length: int | None = field(None, since=None)  # of a text that an encoder reads to answer (null:
    # max_length, 0: as long as it is)
    optimizer: str = field("adamw")  # bert_adam: no bias correction; adafactor: T5X's, no betas, no eps, its weight
    # decay not times the learning rate
    parameter_scaling: bool = field(False, since=False)  # adafactor's steps are relative to the parameter's size
    beta1: float = field(0.9)
    beta2: float = field(0.999)
    eps: float = field(1e-8)
    weight_decay: float = field(0.0)
    schedule: str = field("linear")  # or constant, or bert_linear (training/optimizers.py)
    warmup_ratio: float = field(0.0)
    warmup_steps: int | None = field(None)  # wins over warmup_ratio
    max_grad_norm: float = field(1.0)  # 0: no clipping
    regression_bias: str = field("zero", since="zero")  # where the bias of a score's output layer starts: zero (the
    # published code) or label_mean (of the training labels)
    loss_reduction: str = field("token_mean", since="token_mean")  # over all tokens of a batch; example_sum: summed
    # over those of an example, mean over the batch (prefix tuning's code)
    label_smoothing: float = field(0.0, since=0.0)  # mixes in the mean over the vocabulary, where texts are written
    z_loss: float = field(0.0, since=0.0)  # times log(Z)^2 of every token written is added (T5X)
    backbone_dropout: float | None = field(None, since=None)  # null: the backbone's own rates; 0: off (both papers'
    # code on GPT-2)
    head_dropout: float | None = field(None, since=None)  # before the output layer of a task with labels (null: the
    # backbone's own rate)
    precision: str = field("fp32", NUMERICS)  # or bf16
    group_by_length: bool = field(False)
    gradient_checkpointing: bool = field(False, NUMERICS)
    evaluate_every_steps: int | None = field(None)  # null: every epoch
    selection: str = field("best")  # epoch by the task's metric, or last: both recorded, this one starts children


@dataclass
class InitFromConfig:
    """Start from a module trained on another task (LoRA, appendix D.1: RTE, MRPC and STS-B start from MNLI)."""

    experiment: str = field()  # the parent's
    task: str = field()  # likewise
    parent: str = field("same_seed")  # or best: of the highest validation score among runs of all `seeds`
    seeds: list[int] = field([0, 1, 2, 3, 4])
    head_dense: bool = field()  # carry the head's dense layer over (the paper does not say); the output layer never
    if_missing: str = field("train", NOTE)  # the parent first, in this process; error: name the exact command
    overrides: list[str] = field([])  # Hydra's, for the parent alone


@dataclass
class InContextConfig:
    """What a frozen backbone reads before a question, to answer it without being trained: the label whose words are the
    most probable is the answer."""

    name: str = field(role=NOTE)
    prompt: str = field()  # the whole text, with {source} for the question and, where there are shots, {examples}
    example: str = field("{source} {target}")  # one of them
    separator: str = field(" ")  # between two
    shots: int = field(0)  # drawn from the training split by the seed; the last ones go where max_length has no room
    likelihood: str = field("per_token")  # of a label (Brown et al. 2020, section 2.4: long ones lose nothing); sum
    of: TaskConfig | None = field(None)  # the task whose examples they are (null: the run's own), for a wrong prompt


@dataclass
class ScaleConfig:
    """Where backbones and data come from: paper and small (published), micro (the embedded ones)."""

    name: str = field()
    data: str = field(role=NOTE)  # published or micro: which of a task's forms is used
    backbones: dict[str, str] = field({}, NOTE)  # name, or else model_type -> the shipped backbone that stands in
    evaluate_test: bool = field(False, NOTE)  # test splits have labels here
    parent: str = field("best", NOTE)  # which parent `init_from` takes at this scale


@dataclass
class TrackingConfig:
    """Weights & Biases; a failure there never fails a run."""

    mode: str = field("disabled", NOTE)  # offline or online
    project: str = field("peft-bench", NOTE)
    entity: str | None = field(None, NOTE)


@dataclass
class RunConfig:
    """One run: one seed of one setting on one task."""

    backbone: BackboneConfig = field()
    method: Any = field()  # a dictionary with its class as `_target_`
    task: TaskConfig = field()
    trainer: TrainerConfig = field()
    scale: ScaleConfig = field()  # of which the name
    tracking: TrackingConfig = field(role=NOTE)
    decoding: DecodingConfig = field()  # where answers are texts
    experiment: str = field("custom")  # the printed row
    settings: str = field("paper")  # or script, where they disagree
    recipe: str | None = field(None, NOTE)  # where this row's hyperparameters are published; null fails at paper
    init_from: InitFromConfig | None = field(None)
    transfer: dict[str, TaskConfig] = field({}, since={})  # of the same kind: the trained run is scored on them as it
    # is; their splits are called <name>/<split>
    mixture: dict[str, TaskConfig] = field({}, since={})  # trained on together, each in proportion to its rows and with
    # its name in front of what is read; the run's own is one in any case, and the one that is scored
    in_context: InContextConfig | None = field(None, since=None)
    seed: int = field(0)
    data_dir: str | None = field(None, PLACE)  # local, in hub layout, instead of the hub
    backbone_dir: str | None = field(None, PLACE)  # likewise
    results_dir: str = field("results", PLACE)
    device: str = field("auto", NUMERICS)  # cpu or cuda
    threads: int | None = field(None, NUMERICS)  # null: torch's choice
    checkpoint_seconds: float = field(300.0, PLACE)  # between two writings of a run's state, from which it resumes
    force: bool = field(False, PLACE)  # repeat a run that is done


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


def is_control(cfg: RunConfig) -> bool:
    """Majority and bag of words: nothing is trained step by step."""
    return str(cfg.method["_target_"]).startswith("peft_bench.controls.")
