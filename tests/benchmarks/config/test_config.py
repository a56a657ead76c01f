"""Every published row composes with its own settings, and nothing misnamed or misspelt passes."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from peft_bench.backbones.checks import check_architecture
from peft_bench.config.compose import compose_cfg, register, typed
from peft_bench.config.schema import CONF_DIR, BackboneConfig, RunConfig
from peft_bench.config.science import YOUNG_FIELDS_OF_METHODS
from peft_bench.runs.checks import check_config

EXPERIMENTS = sorted(
    p.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix()
    for p in (CONF_DIR / "experiment").rglob("*.yaml")
    if "grid" not in p.parts  # tests/benchmarks/config/test_grid.py
)
ROWS = [f"houlsby2019/table1_{name}" for name in ("full", "adapters_64", "adapters_8_256")]
ROWS += [f"lora/table2_roberta_base_{name}" for name in ("full", "bitfit", "adapter_d_0_3m", "adapter_d_0_9m", "lora")]
ROWS += [f"lora/table2_roberta_large_{name}" for name in ("full", "lora", "lora_dagger")]
ROWS += [f"lora/table2_roberta_large_adapter_{name}" for name in ("p_3m", "p_0_8m", "h_6m", "h_0_8m")]
ROWS += ["lora/table2_deberta_xxl_full", "lora/table2_deberta_xxl_lora"]
LOW_DATA = [f"prefix_tuning/low_data_{start}" for start in ("random", "words", "full")]
E2E = [
    *LOW_DATA,
    "prefix_tuning/table4_prefix",
    *(f"prefix_tuning/table4_{kind}_{n}" for kind in ("emb", "infix") for n in (1, 10, 20)),
    "prefix_tuning/length",
    "prefix_tuning/table1_large_prefix",
    "prefix_tuning/table1_large_full",
    *(f"prefix_tuning/table1_medium_{name}" for name in ("full", "ft_top2", "adapter_3pct", "adapter_0_1pct")),
    "prefix_tuning/hand_written",
    *(f"lora/table3_gpt2_medium_{method}" for method in ("lora", "adapter_h")),
    *(f"lora/table3_gpt2_large_{method}" for method in ("lora", "adapter_l_0_88m", "adapter_l_23m")),
    "errata/e2e_gap",
]
XSUM = [f"prefix_tuning/table2_bart_{name}" for name in ("full", "prefix_2pct", "prefix_0_1pct")]
XSUM += ["controls/bart_scratch", "prefix_tuning/xsum_length", "prefix_tuning/xsum_frozen"]
# Of Lester et al. 2021: eight tasks x grid x seeds.
PROMPTS = {
    "prompt_tuning/table3": 8 * 5,
    "prompt_tuning/size": 8 * 5 * 3,
    "prompt_tuning/model_tuning": 8 * 5 * 3,
    "prompt_tuning/multitask_model_tuning": 8 * 5 * 3,
    "prompt_tuning/length": 8 * 6 * 5 * 3,
    "prompt_tuning/init": 8 * 3 * 5 * 3,
    "prompt_tuning/pretraining": 8 * 10 * 3,
    "prompt_tuning/lm_steps": 8 * 4 * 3,
    "prompt_tuning/optimizer": 8 * 2 * 4 * 3,
    "prompt_tuning/released": 3 * 3,
}
SHIFTS = [f"prompt_tuning/{name}_{kind}" for name in ("domain_shift", "transfer_qqp_mrpc", "transfer_mrpc_qqp")
          for kind in ("prompt", "model")]  # fmt: skip
CONTEXTS = {
    "prompt_tuning/in_context": 6 * 5 * 3,
    "prompt_tuning/in_context_gpt2": 6 * 2 * 3,
    "prompt_tuning/task_prompt": 2 * 2 * 3,
}
SMALL_PROMPTS = {"small/t5_prompt", "small/t5_model"}
SMALL_E2E = {f"small/e2e_{n}" for n in ("full", "lora", "houlsby", "prefix")} | {
    f"small/e2e_{kind}_{n}" for kind in ("emb", "infix") for n in (1, 10, 20)
}
RUNS = {  # in the sweep of each experiment file: tasks x grid x seeds
    "houlsby2019/table1_full": 8 * 4 * 5,
    "houlsby2019/table1_adapters_64": 8 * 3 * 2 * 5,
    "houlsby2019/table1_adapters_8_256": 8 * 3 * 3 * 2 * 5,  # "90 runs" per task
    "controls/majority": 8,
    "controls/bag_of_words": 8,
    "small/minilm_lora": 2,
    "small/minilm_full": 2,
    "small/minilm_head_only": 2,
    "controls/gpt2_scratch": 3,
    **dict.fromkeys([*E2E, *XSUM], 3),
    "prefix_tuning/xsum_length": 8 * 3,
    "prefix_tuning/xsum_frozen": 1,
    "prefix_tuning/length": 5 * 3,
    "errata/e2e_gap": 2 * 2 * 2 * 3,
    "prefix_tuning/hand_written": 5,
    "prefix_tuning/low_data_random": 4 * 5 * 2,
    "prefix_tuning/low_data_full": 4 * 5 * 2,
    "prefix_tuning/low_data_words": 8 * 4 * 5 * 2,
    **dict.fromkeys(SMALL_E2E, 1),
    **dict.fromkeys(SMALL_PROMPTS, 6),
    **PROMPTS,
    **dict.fromkeys(SHIFTS, 3),
    **CONTEXTS,
}
LORA_RTE = ("experiment=lora/table2_roberta_base_lora", "task=glue/rte", "scale=paper")


@pytest.fixture(scope="module", autouse=True)
def _schema() -> None:
    register()


def composed(overrides: Sequence[str], conf: Path = CONF_DIR) -> DictConfig:
    with initialize_config_dir(str(conf), version_base=None):
        return compose("config", list(overrides))


def run_config(*overrides: str, conf: Path = CONF_DIR) -> RunConfig:
    return typed(composed(overrides, conf))


@cache
def sweep_of(experiment: str) -> dict[str, list[str]]:
    """Override -> its values, as Hydra expands hydra.sweeper.params of an experiment file."""
    text = yaml.safe_load((CONF_DIR / "experiment" / f"{experiment}.yaml").read_text())
    params = text["hydra"]["sweeper"]["params"]
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    sweep = {}
    for override in parsed:
        values = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
        sweep[override.key_or_group] = [str(value) for value in values]
    return sweep


def test_every_printed_row_has_an_experiment_file():
    assert (
        set(EXPERIMENTS)
        == {*ROWS}
        | {f"controls/{name}" for name in ("majority", "bag_of_words")}
        | {f"controls/{backbone}_{name}" for backbone in ("bert", "roberta") for name in ("head_only", "scratch")}
        | {f"small/minilm_{name}" for name in ("lora", "full", "head_only")}
        | {*E2E, *XSUM, *PROMPTS, *SHIFTS, *CONTEXTS, "controls/gpt2_scratch"}
        | SMALL_E2E
        | SMALL_PROMPTS
    )


def test_what_is_scored_beside_the_task_follows_from_experiment_and_scale():
    """Tables 1 and 2 of Lester et al. 2021; the generated language has one other domain."""
    paper = run_config("experiment=prompt_tuning/domain_shift_model", "scale=paper")
    assert list(paper.transfer) == ["relation_extraction", "textbookqa", "bioasq", "race", "duorc", "drop"]
    assert (paper.task.selection_metric, paper.backbone.name) == ("squad_f1", "t5_v1_1_xxl")
    assert list(run_config("experiment=prompt_tuning/domain_shift_model").transfer) == ["squad_sea"]
    multitask = "experiment=prompt_tuning/multitask_model_tuning"
    tasks = ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"]
    assert list(run_config(multitask, "scale=paper").mixture) == tasks
    assert list(run_config(multitask).mixture) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    qqp = run_config("experiment=prompt_tuning/transfer_qqp_mrpc_prompt", "scale=paper")
    assert (qqp.task.name, list(qqp.transfer)) == ("qqp", ["mrpc"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_at_every_scale(experiment: str):
    tasks = sweep_of(experiment)["task"]
    path = CONF_DIR / "experiment" / f"{experiment}.yaml"
    written = yaml.safe_load(path.read_text())
    assert written["experiment"] == experiment
    trains = written.get("trainer", {}).get("epochs") != 0
    assert f"experiment={experiment}" in path.read_text().split("defaults:")[0], "the header gives the exact command"
    # Tasks differ by recipe only, which test_published_fields.py covers: a task per experiment, another one each time.
    index = EXPERIMENTS.index(experiment)
    # the generated language has no SuperGLUE
    micro = "glue/rte" if experiment in {*PROMPTS, *CONTEXTS, *SMALL_PROMPTS} else tasks[index % len(tasks)]
    scales = [("micro", micro), ("paper", tasks[(index + 3) % len(tasks)])]
    for scale, task in scales[1:] if "deberta" in experiment else scales:  # which no micro backbone stands in for
        cfg = run_config(f"experiment={experiment}", f"task={task}", f"scale={scale}")
        assert (cfg.experiment, cfg.scale.name) == (experiment, scale)
        assert cfg.backbone.model_type in cfg.scale.backbones or scale == "paper"
        assert bool(cfg.trainer.epochs) == trains, "what trains nothing does so at every scale: conf/at/"
        check_config(cfg)


def test_every_task_composes_at_micro():
    for task in sorted((CONF_DIR / "task" / "glue").glob("*.yaml")):
        cfg = run_config("experiment=houlsby2019/table1_adapters_64", f"task=glue/{task.stem}")
        assert (cfg.task.name, cfg.scale.name) == (task.stem, "micro")
        assert cfg.task.selection_metric in cfg.task.metrics


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_sweep_expands_to_the_published_number_of_runs(experiment: str):
    sweep = sweep_of(experiment)
    assert math.prod(len(values) for values in sweep.values()) == RUNS.get(experiment, 8 * 5)
    prompts = PROMPTS | CONTEXTS
    three = RUNS.get(experiment) in (3, 15, 24) or (experiment in prompts and not experiment.endswith("table3"))
    seeds = 3 if three else 2 if experiment in LOW_DATA else 5
    assert sweep["seed"] == (["0"] if RUNS.get(experiment) in (1, 2, 5, 6, 8) else [str(n) for n in range(seeds)])


def test_swept_grid_reaches_the_run():
    """The sweep's keys and values are legal overrides, and they win over the experiment file."""
    experiment = "houlsby2019/table1_adapters_8_256"
    last = [f"{key}={values[-1]}" for key, values in sweep_of(experiment).items()]
    cfg = run_config(f"experiment={experiment}", "scale=paper", *last)
    assert (cfg.method["bottleneck_dim"], cfg.trainer.learning_rate, cfg.trainer.epochs) == (256, 3e-3, 20)
    assert (cfg.task.name, cfg.seed) == ("rte", 4)


def test_scale_wins_over_experiment():
    experiment = "experiment=houlsby2019/table1_adapters_64"
    for overrides in ([experiment, "scale=micro"], ["scale=micro", experiment], [experiment]):
        cfg = run_config(*overrides)
        assert (cfg.scale.name, cfg.scale.data, cfg.scale.backbones["bert"]) == ("micro", "micro", "micro_bert")
        assert cfg.trainer.max_length < 128
    paper = run_config(experiment, "scale=paper")
    assert (paper.scale.data, paper.scale.backbones) == ("published", {})
    assert (paper.backbone.name, paper.trainer.max_length, paper.trainer.max_steps) == ("bert_large_uncased", 128, None)


def test_the_head_of_config_yaml_names_the_files_of_the_readmes_first_command():
    words = ["experiment=lora/table2_roberta_base_lora", "task=glue/rte"]
    assert f"peft-bench run {' '.join(words)}" in (CONF_DIR.parent / "README.md").read_text()
    chosen = compose_cfg(words, hydra=True).hydra.runtime.choices.items()
    files = {f"{group.partition('@')[0]}/{name}" for group, name in chosen if not group.startswith("hydra/")}
    composed = {name for name in files if (CONF_DIR / f"{name}.yaml").is_file()}
    head = (CONF_DIR / "config.yaml").read_text().partition("defaults:")[0]
    named = {word for word in head.replace("(", " ").split() if (CONF_DIR / f"{word}.yaml").is_file()}
    assert named == composed


def test_a_quick_run_is_small_and_apart_whatever_else_is_chosen():
    for words in (LORA_RTE, ("experiment=prompt_tuning/domain_shift_prompt", "task=squad")):
        quick, whole = run_config(*words, "debug=quick"), run_config(*words)
        assert (quick.trainer.max_steps, quick.trainer.batch_size, quick.results_dir) == (2, 4, "outputs/debug")
        assert (quick.method, quick.task, quick.decoding) == (whole.method, whole.task, whole.decoding)


def test_script_settings_without_a_script_are_refused():
    cfg = run_config("experiment=lora/table2_roberta_base_bitfit", "scale=paper", "settings=script")
    with pytest.raises(ValueError, match="no published recipe for experiment=lora/table2_roberta_base_bitfit"):
        check_config(cfg)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of conf/ to spoil."""
    return Path(shutil.copytree(CONF_DIR, tmp_path / "conf"))


def test_a_renamed_recipe_file_is_noticed(conf: Path):
    recipe = conf / "recipe/paper/lora/table2_roberta_base_lora/glue/rte.yaml"
    check_config(run_config(*LORA_RTE, conf=conf))
    recipe.rename(recipe.with_name("rtee.yaml"))
    with pytest.raises(ValueError, match=r"no published recipe .* task=glue/rte settings=paper"):
        check_config(run_config(*LORA_RTE, conf=conf))


@pytest.mark.parametrize(
    "override",
    [
        "sed=1",
        "trainer.learning_rat=1e-3",
        "method.rnk=4",
        "backbone.architecture.hiden_size=64",
        "task.metric=[f1]",
        "scale.nam=x",
        "init_from.parnt=best",
        "method=lorra",
        "experiment=lora/table2_roberta_bas_lora",
        "trainer.epochs=three",
    ],
)
def test_a_misspelt_override_fails(override: str):
    with pytest.raises((HydraException, OmegaConfBaseException)):
        composed([*LORA_RTE, override])


@pytest.mark.parametrize(
    "spoil",
    [
        "config.yaml",
        "backbone/roberta_base.yaml",
        "method/lora.yaml",
        "task/glue/rte.yaml",
        "trainer/default.yaml",
        "tracking/disabled.yaml",
        "experiment/lora/table2_roberta_base_lora.yaml",
        "settings/paper.yaml",
        "recipe/paper/lora/table2_roberta_base_lora/glue/rte.yaml",
        "scale/paper.yaml",
    ],
)
def test_a_misspelt_key_in_a_file_fails(conf: Path, spoil: str):
    path = conf / spoil
    path.write_text(path.read_text() + "\nmisspelt_key: 1\n")
    with pytest.raises((HydraException, OmegaConfBaseException), match="misspelt_key"):
        composed(LORA_RTE, conf)


@pytest.mark.parametrize(
    ("spoil", "right", "wrong"),
    [
        ("recipe/paper/lora/table2_roberta_base_lora/glue/rte.yaml", "learning_rate:", "learning_rat:"),
        ("recipe/paper/lora/table2_roberta_base_lora/glue/rte.yaml", "head_dense:", "head_dens:"),
        ("experiment/lora/table2_roberta_base_lora.yaml", "weight_decay:", "weight_decy:"),
        ("method/lora.yaml", "alpha:", "alfa:"),
    ],
)
def test_a_misspelt_nested_key_in_a_file_fails(conf: Path, spoil: str, right: str, wrong: str):
    path = conf / spoil
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong))
    with pytest.raises((HydraException, OmegaConfBaseException)):
        composed(LORA_RTE, conf)


def methods() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    for path in sorted((CONF_DIR / "method").glob("*.yaml")):
        target = run_config(f"method={path.stem}").method["_target_"]
        module, _, name = target.rpartition(".")
        yield path.stem, getattr(import_module(module), name), yaml.safe_load(path.read_text())


def test_method_files_hold_every_field_and_the_dataclasses_no_default_but_of_young_ones():
    """That one is what records and files from before the field meant (science.py, peft_methods/state.py)."""
    found = list(methods())
    assert len(found) == len(list((CONF_DIR / "method").glob("*.yaml"))) >= 9
    for name, method, text in found:
        declared = dataclasses.fields(method)  # type: ignore[arg-type]
        assert set(text) - {"defaults", "_target_"} == {f.name for f in declared}, name
        for f in declared:
            old = YOUNG_FIELDS_OF_METHODS.get(text["_target_"], {}).get(f.name, dataclasses.MISSING)
            assert f.default is old, f"{name}.{f.name}: the value belongs into conf/method/"
            assert f.default_factory is dataclasses.MISSING, f"{name}.{f.name}"


def test_architectures_are_spelt_as_transformers_spells_them():
    """A configuration class accepts any key, so a misspelt one would silently leave a default."""
    for path in (CONF_DIR / "backbone").glob("*.yaml"):
        backbone = yaml.safe_load(path.read_text())
        check_architecture(BackboneConfig(**backbone))
