"""What a published row says of its own settings, and what it would take over from a default without a word.

At scale=paper every scientific value of trainer, method and decoding has to be written where its source stands beside
it: in the experiment's file, its recipe, or a group of conf/ that the experiment names. conf/trainer/default.yaml and
the defaults of the schema are nobody's published setting.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from .fields import SCIENCE, names
from .schema import CONF_DIR, DecodingConfig, RunConfig, TrainerConfig, generation_of

PAPERS = (
    "houlsby2019",
    "lora",
    "prefix_tuning",
    "prompt_tuning",
)  # folders of conf/experiment whose files are printed rows
OURS = ("trainer/default",)  # groups without a published source
OF_A_FIELD = ("trainer", "method", "decoding")  # groups whose files are one field of a run
OF_A_RUN = ("low_data", "start_words")  # those whose files are whole configurations
UNTRAINED = ("epochs", "max_length", "eval_max_length")  # of the trainer, all that counts where nothing is trained


def check_published(cfg: RunConfig, task: str) -> None:
    """Raises ValueError where a row at scale=paper has no recipe, or takes a scientific value from a default.

    task: what follows `task=`.
    """
    recipe = f"conf/recipe/{cfg.settings}/{cfg.experiment}/{task}.yaml"
    if cfg.recipe is None:
        raise ValueError(
            f"no published recipe for experiment={cfg.experiment} task={task} settings={cfg.settings}: expected "
            f"{recipe}, or `recipe:` in the experiment file"
        )
    if keys := inherited(cfg, task):
        raise ValueError(
            f"experiment={cfg.experiment} task={task} settings={cfg.settings} at scale=paper would take over "
            f"{', '.join(keys)} from a default that nobody published: expected in conf/experiment/{cfg.experiment}.yaml"
            f", in {recipe}, or in a file of conf/trainer, conf/method or conf/decoding that the experiment names"
        )


def inherited(cfg: RunConfig, task: str) -> list[str]:
    """Dotted keys of scientific trainer, method and decoding values that nothing published sets; [] for a row of ours.

    task: what follows `task=`, the recipe's name (glue/rte).
    """
    if cfg.experiment.partition("/")[0] not in PAPERS:
        return []
    trainer = sorted(names(TrainerConfig, SCIENCE)) if cfg.trainer.epochs else UNTRAINED
    wanted = [f"trainer.{name}" for name in trainer]
    wanted += [f"method.{name}" for name in sorted(cfg.method) if name != "_target_"]
    if generation_of(cfg.task, cfg.scale) is not None:
        wanted += [f"decoding.{name}" for name in sorted(names(DecodingConfig, SCIENCE))]
    stated = _stated(cfg.experiment, cfg.settings, task)
    return [key for key in wanted if key not in stated]


@cache
def _stated(experiment: str, settings: str, task: str) -> frozenset[str]:
    """Dotted keys that the experiment, its recipe, and the groups that it names set."""
    content = _read(CONF_DIR / "experiment" / f"{experiment}.yaml")
    keys = set(_keys(content))
    for group, name in _chosen(content):
        keys |= set(_keys(_read(CONF_DIR / group / f"{name}.yaml"))) if group in OF_A_RUN else set()
        keys |= {f"{group}.{key}" for key in _of_group(group, name)} if group in OF_A_FIELD else set()
    recipe = CONF_DIR / "recipe" / settings / experiment / f"{task}.yaml"
    return frozenset(keys | (set(_keys(_read(recipe))) if recipe.is_file() else set()))


def _chosen(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Group and name of each `override /group: name` of a file's defaults."""
    for entry in content.get("defaults", []):
        for key, name in entry.items() if isinstance(entry, dict) else ():
            if key.startswith("override /"):
                yield key.removeprefix("override /"), name


def _of_group(group: str, name: str) -> set[str]:
    if f"{group}/{name}" in OURS:
        return set()
    content = _read(CONF_DIR / group / f"{name}.yaml")
    keys = set(_keys(content))
    for parent in content.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            keys |= _of_group(group, parent)
    return keys


def _keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if key in ("defaults", "hydra"):
            continue
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


@cache
def _read(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")) or {})
