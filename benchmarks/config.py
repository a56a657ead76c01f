"""The typed schema of a run, registered with Hydra: Python owns types and meaning, YAML owns values and sources.

`register()` stores the schema; conf/config.yaml starts from it, so a misspelt key fails at composition. Every file of
conf/method/ inherits the schema node of its dataclass (`/schema/method@_here_: lora`) for the same reason. Defaults of
methods and recipes live in YAML only.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


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
class TaskConfig:
    """A task described before any data is seen.

    hub_id, subset: on the hub, or the folders `<data_dir>/<dataset>/<subset>/`. num_labels: 1 means regression.
    label_range: lowest and highest legal label. validation_splits: the first one selects checkpoints. test_splits:
    scored only where the scale has labels for them. metrics: names in metrics.py; selection_metric: one of them.
    """

    name: str = MISSING
    dataset: str = MISSING
    hub_id: str = MISSING
    subset: str = MISSING
    text_columns: list[str] = MISSING
    label_column: str = "label"
    num_labels: int = MISSING
    label_range: list[float] = MISSING
    train_split: str = "train"
    validation_splits: list[str] = MISSING
    test_splits: list[str] = MISSING
    metrics: list[str] = MISSING
    selection_metric: str = MISSING


@dataclass
class TrainerConfig:
    """How a run is optimized; the published value and its section stand beside each value in conf/recipe/.

    batch_size: global, examples per optimizer step. micro_batch_size: examples per forward pass of one process (null:
    the whole batch); the rest is accumulated. max_steps: cuts `epochs` short (null: no cut). max_length: in tokens,
    special ones included. optimizer: adamw, or bert_adam (no bias correction). schedule: linear or constant.
    warmup_steps wins over warmup_ratio. regression_bias: where the output layer's bias starts if num_labels is 1: zero
    (the published code) or label_mean (of the training labels). precision: fp32 or bf16. evaluate_every_steps: null
    means every epoch. selection: best (epoch by the task's selection metric) or last; both are recorded, this one
    initializes children.
    """

    learning_rate: float = MISSING
    epochs: int = MISSING
    max_steps: int | None = None
    batch_size: int = MISSING
    micro_batch_size: int | None = None
    eval_batch_size: int = 64
    max_length: int = MISSING
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "linear"
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    max_grad_norm: float = 1.0
    regression_bias: str = "zero"
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
class ScaleConfig:
    """Where backbones and data come from: paper and small (published), micro (the embedded ones).

    data: published or micro. backbones: model_type -> shipped backbone that stands in for the published one.
    evaluate_test: test splits have labels here. parent: which parent `init_from` takes at this scale (InitFromConfig).
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
    """

    backbone: BackboneConfig = MISSING
    method: Any = MISSING
    task: TaskConfig = MISSING
    trainer: TrainerConfig = MISSING
    scale: ScaleConfig = MISSING
    tracking: TrackingConfig = MISSING
    experiment: str = "custom"
    settings: str = "paper"
    recipe: str | None = None
    init_from: InitFromConfig | None = None
    seed: int = 0
    data_dir: str | None = None
    backbone_dir: str | None = None
    results_dir: str = "results"
    device: str = "auto"
    threads: int | None = None
    force: bool = False


def register() -> None:
    """Store the schema in Hydra's ConfigStore; safe to call twice."""
    from benchmarks.controls import BagOfWords, Majority
    from peft_methods.baselines import Full, HeadOnly
    from peft_methods.bitfit import BitFit
    from peft_methods.bottleneck import Houlsby, Pfeiffer
    from peft_methods.lora import Lora

    store = ConfigStore.instance()
    store.store(group="schema", name="run", node=RunConfig, package="_global_")
    for method in (Full, HeadOnly, BitFit, Houlsby, Pfeiffer, Lora, Majority, BagOfWords):
        store.store(group="schema/method", name=method.__name__.lower(), node=_method_schema(method))


def typed(cfg: DictConfig) -> RunConfig:
    """The composed configuration as a RunConfig; `method` stays a plain dictionary with its `_target_`."""
    if added := _not_in_schema(cfg, ""):
        raise ValueError(f"{', '.join(added)}: no such key, and a + before it does not make it one; leave it out")
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise TypeError(f"expected a configuration composed from conf/config.yaml, got {type(run).__name__}")
    if dataclasses.is_dataclass(run.method):
        run.method = dataclasses.asdict(run.method)  # type: ignore[arg-type]
    return run


def _not_in_schema(cfg: DictConfig, prefix: str) -> list[str]:
    """Keys that `+key=` has added: OmegaConf would drop them without a word."""
    schema = OmegaConf.get_type(cfg)
    keys = [str(key) for key in cfg]
    known = [f.name for f in dataclasses.fields(schema)] if dataclasses.is_dataclass(schema) else keys
    wrong = [f"{prefix}{key}" for key in keys if key not in known]
    for key in keys:
        if not OmegaConf.is_missing(cfg, key) and isinstance(part := cfg[key], DictConfig):
            wrong += _not_in_schema(part, f"{prefix}{key}.")
    return wrong


def choices(group: str) -> list[str]:
    """The names of a group of conf/: what may follow `<group>=`."""
    folder = CONF_DIR / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def explain(error: Exception) -> str:
    """Why a configuration could not be composed, as one sentence: Hydra's message with what exists instead."""
    both = [str(reason).partition("Config search path:")[0] for reason in (error, error.__cause__) if reason]
    text = " ".join(" ".join(both).split())
    if missing := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = missing.groups()
        known = ", ".join(choices(group)) or f"no such group: {', '.join(sorted(p.name for p in CONF_DIR.iterdir()))}"
        return f"{group}={name}: no file conf/{group}/{name}.yaml; expected one of {known}"
    if wrong := re.search(r"Key '(\w+)' (?:not in '(\w+)'|is not in struct).* full_key: (\S+)", text):
        key, schema, path = wrong.groups()
        known_class = globals().get(schema or "")
        names = [f.name for f in dataclasses.fields(known_class)] if dataclasses.is_dataclass(known_class) else []
        expected = (
            f"; expected one of {', '.join(names)}" if names else " (peft-bench run --cfg job shows those there are)"
        )
        return f"{path}: there is no key {key!r}" + expected
    if grammar := re.search(r"(.*?) See https://hydra.cc", text):
        return f"{grammar[1]}; expected key=value, in quotes where a shell would read its brackets or commas"
    return re.sub(r" (full_key|reference_type|object_type)[:=] ?\S*", "", text)


def is_control(cfg: RunConfig) -> bool:
    """Majority and bag of words: nothing is trained step by step."""
    return str(cfg.method["_target_"]).startswith("benchmarks.controls.")


def _method_schema(method: type) -> type:
    """The method's dataclass with every field required and its `_target_`, as Hydra's structured configs need it."""
    fields: list[Any] = [("_target_", str, field(default=f"{method.__module__}.{method.__qualname__}"))]
    for f in dataclasses.fields(method):
        annotation = list[str] if "Sequence[str]" in str(f.type) else f.type
        fields.append((f.name, annotation, field(default=MISSING)))
    return dataclasses.make_dataclass(f"{method.__name__}Schema", fields)
