"""Every published row composes with its own settings, and nothing misnamed or misspelt passes."""

import csv
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

# Learning rate, batch, epochs and length by row, task and settings, read off the papers' tables apart from conf/recipe.
# Empty: the paper sweeps it.
with (Path(__file__).parent / "published_settings.csv").open(newline="") as file:
    PUBLISHED = list(csv.DictReader(file))
SETTINGS = {(line["experiment"], line["task"], line["settings"]): line for line in PUBLISHED}
ROWS = sorted({line["experiment"] for line in PUBLISHED})
EXPERIMENTS = sorted(
    p.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix()
    for p in (CONF_DIR / "experiment").rglob("*.yaml")
    if "grid" not in p.parts  # tests/benchmarks/config/test_grid.py
)
# Learning rate, epochs and batch of the E2E rows: Li & Liang, v1 table 5 (GPT-2 large: not published, medium's), and
# Hu et al., table 11 (adapter rows: not published, LoRA's).
_PREFIX, _FINE_TUNED, _LORA = (8e-5, 5, 10), (5e-5, 5, 10), (2e-4, 5, 8)
E2E = {
    "prefix_tuning/table4_prefix": _PREFIX,
    **{f"prefix_tuning/table4_{kind}_{n}": _PREFIX for kind in ("emb", "infix") for n in (1, 10, 20)},
    "prefix_tuning/length": _PREFIX,
    "prefix_tuning/table1_large_prefix": _PREFIX,
    "prefix_tuning/table1_medium_full": _FINE_TUNED,
    "prefix_tuning/table1_large_full": _FINE_TUNED,
    "prefix_tuning/table1_medium_ft_top2": _FINE_TUNED,
    "prefix_tuning/table1_medium_adapter_3pct": (5e-5, 5, 5),
    "prefix_tuning/table1_medium_adapter_0_1pct": (8e-5, 10, 5),
    **{f"prefix_tuning/low_data_{start}": (5e-5, 100, 10) for start in ("random", "words", "full")},
    "prefix_tuning/hand_written": (1e-5, 0, 10),
    **{f"lora/table3_gpt2_medium_{method}": _LORA for method in ("lora", "adapter_h")},
    "errata/e2e_gap": _LORA,
    **{f"lora/table3_gpt2_large_{method}": _LORA for method in ("lora", "adapter_l_0_88m", "adapter_l_23m")},
}
# Of the XSUM rows: Li & Liang, v1 table 5, and fairseq's README.summarization.md.
_BART, _BART_FULL = (5e-5, 30, 14), (3e-5, 5, 64)
XSUM = {
    "prefix_tuning/table2_bart_full": _BART_FULL,
    "controls/bart_scratch": _BART_FULL,
    "prefix_tuning/table2_bart_prefix_2pct": _BART,
    "prefix_tuning/table2_bart_prefix_0_1pct": _BART,
    "prefix_tuning/xsum_length": _BART,
    "prefix_tuning/xsum_frozen": (1e-5, 0, 14),
}
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
# What google-research/prompt-tuning says of the prompts it ships: steps and batch.
RELEASED = {"sst2": (50_000, 128), "mrpc": (30_000, 32), "rte": (30_000, 32)}
SHIFTS = [f"prompt_tuning/{name}_{kind}" for name in ("domain_shift", "transfer_qqp_mrpc", "transfer_mrpc_qqp")
          for kind in ("prompt", "model")]  # fmt: skip
CONTEXTS = {
    "prompt_tuning/in_context": 6 * 5 * 3,
    "prompt_tuning/in_context_gpt2": 6 * 2 * 3,
    "prompt_tuning/task_prompt": 2 * 2 * 3,
}
LOW_DATA = {row for row in E2E if "low_data" in row}
SMALL_PROMPTS = {"small/t5_prompt", "small/t5_model"}
SMALL_E2E = {f"small/e2e_{n}" for n in ("full", "lora", "houlsby", "prefix")} | {
    f"small/e2e_{kind}_{n}" for kind in ("emb", "infix") for n in (1, 10, 20)
}
GLUE = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"}
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
    "prefix_tuning/low_data_random": 3 * 5 * 2,
    "prefix_tuning/low_data_full": 3 * 5 * 2,
    "prefix_tuning/low_data_words": 8 * 3 * 5 * 2,
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


@pytest.mark.parametrize("experiment", PROMPTS)
def test_published_settings_of_prompt_tuning(experiment: str):
    """Lester et al. 2021, sections 3 and 3.1; decay and steps of the baseline are not stated."""
    cfg = run_config(f"experiment={experiment}", "scale=paper", "task=super_glue/cb")
    tuned = experiment.endswith("model_tuning")
    trainer = cfg.trainer
    assert (trainer.optimizer, trainer.schedule, trainer.warmup_ratio) == ("adafactor", "constant", 0)
    batch = 2048 if "multitask" in experiment else 128
    assert (trainer.learning_rate, trainer.batch_size) == ((0.001, batch) if tuned else (0.3, 32))
    assert (trainer.parameter_scaling, trainer.weight_decay) == ((True, 0) if tuned else (False, 1e-5))
    assert (trainer.max_steps, trainer.evaluate_every_steps, trainer.max_length) == (30_000, 1000, 512)
    assert (trainer.selection, cfg.task.selection_metric) == ("best", "mean")
    if not tuned:
        assert (cfg.method["length"], cfg.method["init"]) == (100, "class_labels")


@pytest.mark.parametrize("task", RELEASED)
def test_released_prompts_are_trained_as_the_paper_or_as_the_released_code_says(task: str):
    chosen = ("experiment=prompt_tuning/released", "scale=paper", f"task=glue/{task}")
    paper, script = (run_config(*chosen, f"settings={settings}") for settings in ("paper", "script"))
    check_config(script)
    assert (paper.trainer.max_steps, paper.trainer.batch_size, paper.trainer.z_loss) == (30_000, 32, 0)
    assert (script.trainer.max_steps, script.trainer.batch_size, script.trainer.z_loss) == (*RELEASED[task], 1e-4)
    assert (paper.backbone.name, paper.method) == ("t5_base_lm_adapt", script.method)


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


@pytest.mark.parametrize("experiment", list(E2E))
def test_published_settings_of_e2e(experiment: str):
    cfg = run_config(f"experiment={experiment}", "scale=paper", "task=e2e")
    check_config(cfg)
    assert (cfg.trainer.learning_rate, cfg.trainer.epochs, cfg.trainer.batch_size) == E2E[experiment]
    assert cfg.task.generation is not None
    lora = experiment.startswith(("lora/", "errata/"))
    assert (cfg.decoding.beams, cfg.decoding.length_penalty) == ((10, 0.9) if lora else (5, 1.0))
    assert (cfg.trainer.label_smoothing, cfg.trainer.max_grad_norm) == ((0.1, 0) if lora else (0.0, 1.0))
    trains_a_prefix = cfg.method["_target_"].rpartition(".")[2] in ("Prefix", "Infix", "Prompt")
    assert cfg.trainer.loss_reduction == ("example_sum" if trains_a_prefix else "token_mean")
    assert cfg.trainer.backbone_dropout == (0 if trains_a_prefix or lora else None)
    if experiment.startswith("lora/"):
        for task in ("e2e", "e2e_tokenized"):
            script = run_config(f"experiment={experiment}", "scale=paper", f"task={task}", "settings=script")
            assert (script.decoding.length_penalty, script.trainer.selection) == (0.8, "last")


@pytest.mark.parametrize("experiment", list(XSUM))
def test_published_settings_of_xsum(experiment: str):
    cfg = run_config(f"experiment={experiment}", "scale=paper", "task=xsum")
    check_config(cfg)
    assert (cfg.trainer.learning_rate, cfg.trainer.epochs, cfg.trainer.batch_size) == XSUM[experiment]
    assert (cfg.backbone.name, cfg.decoding.beams, cfg.decoding.max_new_tokens) == ("bart_large", 6, 61)
    fine_tuned = XSUM[experiment] == _BART_FULL
    assert (cfg.trainer.label_smoothing, cfg.trainer.max_grad_norm) == ((0.1, 0.1) if fine_tuned else (0.0, 1.0))
    if "_2pct" in experiment:
        script = run_config(f"experiment={experiment}", "scale=paper", "task=xsum", "settings=script")
        assert (cfg.method["length"], script.method["length"]) == (100, 200)
        assert (cfg.trainer.max_length, script.trainer.max_length) == (512, 1024)


@pytest.mark.parametrize("experiment", ROWS)
def test_published_settings(experiment: str):
    """Each task of each row finds its own recipe at scale=paper, in the paper's and the script's settings."""
    assert {task.removeprefix("glue/") for task in sweep_of(experiment)["task"]} == GLUE
    for task in sorted(GLUE):
        for settings in ("paper", "script"):
            where = f"{experiment} {task} {settings}"
            if settings == "script" and (experiment, task, settings) not in SETTINGS:
                continue
            expected = SETTINGS[experiment, task, settings]
            cfg = run_config(f"experiment={experiment}", f"task=glue/{task}", "scale=paper", f"settings={settings}")
            check_config(cfg)
            assert (cfg.experiment, cfg.task.name, cfg.settings) == (experiment, task, settings), where
            for name in ("learning_rate", "batch_size", "epochs", "max_length"):
                if expected[name]:
                    assert getattr(cfg.trainer, name) == float(expected[name]), f"{where} {name}"
            assert (cfg.init_from is not None) == (expected["from_mnli"] == "yes"), where
            if expected["alpha"]:
                assert cfg.method["alpha"] == float(expected["alpha"]), where
            if cfg.init_from is not None:
                start = cfg.init_from
                assert (start.experiment, start.task, start.parent, start.head_dense) == (
                    experiment, "glue/mnli", "best", False,
                )  # fmt: skip


def test_no_recipe_file_is_misnamed():
    """Hydra skips an optional file silently: one that belongs to no row and task would never be read."""
    files = [p.relative_to(CONF_DIR / "recipe").with_suffix("").parts for p in (CONF_DIR / "recipe").rglob("*.yaml")]
    texts = {parts for parts in files if parts[-1].startswith(("e2e", "xsum"))}
    assert {("/".join(parts[:-1]), parts[-1]) for parts in texts} == {
        (f"script/{row}", task) for row in E2E if row.startswith("lora/") for task in ("e2e", "e2e_tokenized")
    } | {("script/prefix_tuning/table2_bart_prefix_2pct", "xsum")}
    released = {parts for parts in files if "released" in parts}
    assert released == {("script", "prompt_tuning", "released", "glue", task) for task in RELEASED}
    files = [parts for parts in files if parts not in texts | released]
    named = {("/".join(parts[1:-2]), parts[-1], parts[0]) for parts in files}
    assert named <= set(SETTINGS)
    assert all(parts[-2] == "glue" for parts in files)
    shared = {row for row in ROWS if "recipe" in yaml.safe_load((CONF_DIR / f"experiment/{row}.yaml").read_text())}
    assert named == {key for key in SETTINGS if key[2] == "script" or key[0] not in shared}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_at_every_scale(experiment: str):
    tasks = sweep_of(experiment)["task"]
    path = CONF_DIR / "experiment" / f"{experiment}.yaml"
    written = yaml.safe_load(path.read_text())
    assert written["experiment"] == experiment
    trains = written.get("trainer", {}).get("epochs") != 0
    assert f"experiment={experiment}" in path.read_text().split("defaults:")[0], "the header gives the exact command"
    # Tasks differ by recipe only, which the test above covers: a task per experiment, another one each time.
    index = EXPERIMENTS.index(experiment)
    # the generated language has no SuperGLUE
    micro = "glue/rte" if experiment in {*PROMPTS, *CONTEXTS, *SMALL_PROMPTS} else tasks[index % len(tasks)]
    for scale, task in (("micro", micro), ("paper", tasks[(index + 3) % len(tasks)])):
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


def test_houlsby_follows_the_paper_or_the_released_code():
    for settings, init_std in (("paper", 0.01), ("script", 0.001)):
        cfg = run_config(
            "experiment=houlsby2019/table1_adapters_64", "task=glue/mrpc", "scale=paper", f"settings={settings}"
        )
        assert (cfg.method["init_std"], cfg.method["train_layer_norms"]) == (init_std, True)
        trainer = cfg.trainer
        assert (trainer.optimizer, trainer.eps, trainer.weight_decay) == ("bert_adam", 1e-6, 0.01)
        assert (trainer.warmup_ratio, trainer.schedule, trainer.max_grad_norm) == (0.1, "bert_linear", 1.0)


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


def test_sizes_of_the_adapter_rows():
    sizes = {"adapter_p_3m": 64, "adapter_p_0_8m": 16, "adapter_h_6m": 64, "adapter_h_0_8m": 8}
    for row, size in sizes.items():
        cfg = run_config(f"experiment=lora/table2_roberta_large_{row}", "task=glue/sst2", "scale=paper")
        assert cfg.method["bottleneck_dim"] == size
        assert cfg.trainer.weight_decay == 0.0
        if "_h_" in row:
            assert cfg.method["train_layer_norms"] is False
    for row, skipped in (("adapter_d_0_9m", 0), ("adapter_d_0_3m", 8)):
        cfg = run_config(f"experiment=lora/table2_roberta_base_{row}", "scale=paper")
        assert (cfg.method["bottleneck_dim"], cfg.method["skip_layers"]) == (48, skipped)


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
