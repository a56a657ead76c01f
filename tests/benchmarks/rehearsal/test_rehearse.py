"""Stand-ins, the guard against network use, and a rehearsal of two experiments (`make rehearse` plays them all)."""

import json
import socket

import pytest
import torch
import yaml
from huggingface_hub import scan_cache_dir
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

import peft_bench.runs.run
from peft_bench.answers.tokens import tokenize
from peft_bench.backbones import location
from peft_bench.backbones.loading import load_backbone
from peft_bench.backbones.location import folder_of
from peft_bench.backbones.weight_files import commit_of, published_hashes, weight_files
from peft_bench.config.compose import backbone_choice
from peft_bench.config.pins import data_revision_of, revision_of
from peft_bench.config.schema import CONF_DIR, BackboneConfig, ScaleConfig, TaskConfig
from peft_bench.rehearsal.acts import STEPS, compose_act, plan, share_of
from peft_bench.rehearsal.command import main
from peft_bench.rehearsal.hub_cache import COMMIT, fill_cache, hub_cache
from peft_bench.rehearsal.offline import no_network
from peft_bench.rehearsal.standin_data import ROWS, make_task
from peft_bench.rehearsal.standins import make_backbone
from peft_bench.tasks import labelled
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_task

BACKBONES = ["bert_base_uncased", "bert_large_uncased", "roberta_base", "roberta_large"]
TASKS = sorted(file.stem for file in (CONF_DIR / "task" / "glue").glob("*.yaml"))
PUBLISHED = ScaleConfig(name="paper", data="published")


def backbone_config(name):
    return BackboneConfig(**yaml.safe_load((CONF_DIR / f"backbone/{name}.yaml").read_text()))


def task_config(name):
    return TaskConfig(**yaml.safe_load((CONF_DIR / f"task/glue/{name}.yaml").read_text()))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_is_the_published_one_but_small(tmp_path, name):
    published = backbone_config(name)
    folder = make_backbone(tmp_path, published)
    assert folder == tmp_path / published.hub_id
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.model_type == published.model_type
    small = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"}
    for key in published.architecture.keys() - small:
        assert getattr(config, key) == published.architecture[key], key
    assert config.num_hidden_layers == 1
    assert config.hidden_size % config.num_attention_heads == 0
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.model_max_length == 512
    ids = [tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id]
    pair = tokenizer.convert_ids_to_tokens(tokenizer("The house", "A child?")["input_ids"])
    if published.model_type == "bert":
        assert ids == [101, 0, 102, 100]
        assert pair == ["[CLS]", "the", "house", "[SEP]", "a", "child", "?", "[SEP]"]
        assert (folder / "vocab.txt").read_text().splitlines()[103] == "[MASK]"
    else:
        assert ids == [0, 1, 2, 3]
        assert tokenizer.mask_token_id == config.vocab_size - 1
        assert pair[0] == "<s>"
        assert pair[pair.index("</s>") + 1] == "</s>"
        assert "".join(pair).replace("Ġ", " ") == "<s>The house</s></s>A child?</s>"
        assert json.loads((folder / "vocab.json").read_text())["<pad>"] == 1
        assert (folder / "merges.txt").read_text().startswith("#version")


@pytest.mark.parametrize("name", ["bert_base_uncased", "roberta_base"])
def test_every_weight_of_the_file_is_read(tmp_path, name):
    published = backbone_config(name)
    folder = make_backbone(tmp_path, published, layers=2)
    file = load_file(folder / "model.safetensors")
    assert any("LayerNorm.gamma" in name for name in file) == (published.model_type == "bert")
    model = AutoModel.from_pretrained(folder, add_pooling_layer=published.pooler)
    for parameter_name, parameter in model.named_parameters():
        stored = f"{published.model_type}.{parameter_name}"
        if stored not in file:
            stored = stored.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
        assert torch.equal(parameter, file[stored]), stored


# The forms that published weights have; t5_xxl_lm_adapt stands for what is in several files.
FORMS_OF = {
    "roberta_base": ["model.safetensors"],
    "gpt2": ["model.safetensors"],
    "bart_large": ["pytorch_model.bin"],
    "t5_v1_1_base": ["pytorch_model.bin"],
    "t5_large_lm_adapt": ["pytorch_model.bin"],
    "t5_xxl_lm_adapt": [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)],
    "small_t5": ["model.safetensors"],  # ours
}


@pytest.mark.parametrize("name", FORMS_OF)
def test_weights_in_each_form_load_from_a_folder_and_from_the_hubs_cache(tmp_path, name):
    """The cache is laid out as the hub's library does it: its scan of a cache finds nothing to warn of."""
    backbone, cpu = backbone_choice(name), torch.device("cpu")
    backbone.other_shape, backbone.hub_id = True, backbone.hub_id or "ours/small"
    folder = make_backbone(tmp_path, backbone)
    assert [path.name for path in weight_files(folder)] == FORMS_OF[name]
    fill_cache(tmp_path / "cache", [(str(tmp_path), backbone)], [])
    (repository,) = scan_cache_dir(tmp_path / "cache" / "hub").repos
    pinned = (revision := revision_of(backbone)) != "main"
    assert (repository.repo_id, [*repository.refs]) == (backbone.hub_id, [] if pinned else ["main"])
    assert not scan_cache_dir(tmp_path / "cache" / "hub").warnings
    location._published_folder.cache_clear()  # what was found in the cache of another test
    with no_network() as attempts, hub_cache(tmp_path / "cache"):
        from_hub = load_backbone(backbone, PUBLISHED, None, cpu, 0)
        snapshot = folder_of(backbone, PUBLISHED, None)
    location._published_folder.cache_clear()
    assert attempts == []
    assert all(path.is_symlink() for path in snapshot.iterdir())
    assert (commit_of(snapshot), commit_of(folder)) == (revision if pinned else COMMIT, None)
    assert published_hashes(snapshot) == published_hashes(folder)
    from_folder = load_backbone(backbone, PUBLISHED, str(tmp_path), cpu, 0)
    assert from_hub.sha256 == from_folder.sha256
    state = from_folder.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in from_hub.model.state_dict().items())


def test_no_standin_for_other_architectures(tmp_path):
    other = backbone_config("roberta_base")
    other.model_type = "xlnet"
    with pytest.raises(ValueError, match=r"no stand-in for model_type='xlnet' \(known: bert, .*t5\)"):
        make_backbone(tmp_path, other)


@pytest.mark.parametrize("name", TASKS)
def test_data_from_a_folder_and_from_the_hub_are_the_same(tmp_path, name):
    task = task_config(name)
    make_task(tmp_path, task)
    fill_cache(tmp_path / "cache", [], [(str(tmp_path), task)])
    with no_network() as attempts, hub_cache(tmp_path / "cache"):
        from_folder = load_task(task, PUBLISHED, str(tmp_path))
        labelled._load.cache_clear()  # what was loaded from the hub of another test
        from_hub = load_task(task, PUBLISHED, None)
    assert from_hub.sha256 == from_folder.sha256
    assert (from_hub.commit, from_folder.commit) == (data_revision_of(task), None)
    assert len(from_folder.texts[task.train_split]) == ROWS["train"]
    assert from_folder.texts.keys() == {task.train_split, *task.validation_splits}
    assert attempts == []
    with pytest.raises(DataError, match="the hub's mark for a hidden label"):
        load_task(task, ScaleConfig(name="paper", data="published", evaluate_test=True), str(tmp_path))


def test_data_of_another_commit_than_the_pinned_one_are_refused(tmp_path, monkeypatch):
    """Offline `datasets` takes whatever commit its cache has."""
    task = task_config("rte")
    make_task(tmp_path, task)
    with monkeypatch.context() as other:
        other.setattr("peft_bench.rehearsal.hub_cache.data_revision_of", lambda task: COMMIT)
        fill_cache(tmp_path / "cache", [], [(str(tmp_path), task)])
    with no_network(), hub_cache(tmp_path / "cache"):
        labelled._load.cache_clear()
        with pytest.raises(DataError, match=rf"at the commit {COMMIT}, expected bcdcba7.*task\.hub_revision={COMMIT}"):
            load_task(task, PUBLISHED, None)
        task.hub_revision = COMMIT
        assert load_task(task, PUBLISHED, None).commit == COMMIT


def test_some_row_fills_all_positions(tmp_path):
    task = task_config("rte")
    make_task(tmp_path, task)
    tokenizer = AutoTokenizer.from_pretrained(make_backbone(tmp_path, backbone_config("roberta_base")))
    splits = tokenize(load_task(task, PUBLISHED, str(tmp_path)), tokenizer, 512, False)
    assert splits["validation"].lengths.max() == 512


# Of the experiments on the tasks of prompt_tuning/table3, which sees every one.
ON_ONE_TASK = {
    f"prompt_tuning/{name}"
    for name in ("size", "model_tuning", "lm_steps", "in_context_gpt2", "multitask_model_tuning", "length", "init")
} | {f"prompt_tuning/{name}" for name in ("pretraining", "optimizer", "in_context")}


def test_the_plan_leaves_no_experiment_and_no_task_out():
    folder, scripts = CONF_DIR / "experiment", CONF_DIR / "recipe" / "script"
    expected = {}
    for file in folder.rglob("*.yaml"):
        experiment = file.relative_to(folder).with_suffix("").as_posix()
        tasks = _swept(experiment)[: 1 if experiment.startswith("grid/") else None]
        tasks = ["super_glue/cb"] if experiment in ON_ONE_TASK else tasks
        expected[experiment, "paper"] = {f"task={task}" for task in tasks}
    for file in scripts.rglob("*.yaml"):
        of_glue = file.parent.name == "glue"
        experiment = file.parents[int(of_glue)].relative_to(scripts).as_posix()
        named = {task.rpartition("/")[2]: f"task={task}" for task in _swept(experiment)}
        if file.stem in named:  # the papers' own E2E files are no task of a sweep
            expected.setdefault((experiment, "script"), set()).add(named[file.stem])
    acts = plan()
    words = {(act.experiment, act.settings): {word for job in act.jobs for word in job} for act in acts}
    assert {key: {w for w in words[key] if w.startswith("task=")} for key in words} == expected
    sizes = {w for w in words["houlsby2019/table1_adapters_8_256", "paper"] if not w.startswith("task=")}
    assert {w for w in sizes if w.startswith("method.")} == {f"method.bottleneck_dim={m}" for m in (8, 64, 256)}
    assert len([w for w in sizes if w.startswith(("trainer.", "seed="))]) == 3  # one rate, one epoch count, one seed


def test_experiments_of_our_own_keep_their_scale_and_every_backbone_is_seen_once() -> None:
    scales = {name: share_of(name).scale for name in ("small/t5_prompt", "grid/generation/gpt2_lora", "lora/table3")}
    assert list(scales.values()) == ["small", "micro", "paper"]
    swept = {act.experiment: {w for job in act.jobs for w in job if w.startswith("backbone=")} for act in plan()}
    ablations = {name: len(swept[name]) for name in ON_ONE_TASK}
    assert {name for name, number in ablations.items() if number > 1} == {
        f"prompt_tuning/{name}" for name in ("size", "model_tuning", "lm_steps", "in_context_gpt2")
    }
    params = yaml.safe_load((CONF_DIR / "experiment/prompt_tuning/pretraining.yaml").read_text())["hydra"]["sweeper"]
    everyone = {f"backbone={name}" for name in params["params"]["backbone"].split(",")}
    assert everyone <= set().union(*swept.values())


def test_no_stand_in_hides_another(tmp_path):
    """A checkpoint in backbone_dir itself, as unpublished ones lie, is taken before one in a folder below it."""
    acts = plan(["prompt_tuning/lm_steps", "prompt_tuning/in_context_gpt2"])
    backbones = {(c.backbone_dir, c.backbone.name, c.backbone.hub_id) for a in acts for c in compose_act(a, tmp_path)}
    unpublished = {folder for folder, _, hub_id in backbones if not hub_id}
    assert len(unpublished) == 2
    assert all([folder for folder, _, _ in backbones].count(root) == 1 for root in unpublished)


def _swept(experiment: str) -> list[str]:
    text = yaml.safe_load((CONF_DIR / "experiment" / f"{experiment}.yaml").read_text())
    return str(text["hydra"]["sweeper"]["params"]["task"]).split(",")


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match="no experiment matches nothing/"):
        plan(["nothing/*"])


def test_guard_stops_and_lists_what_reaches_out(tmp_path):
    here = socket.socket()
    here.bind(("127.0.0.1", 0))  # not listening
    with no_network() as attempts:
        with pytest.raises(OSError, match="no network is allowed here"):
            socket.create_connection(("huggingface.co", 443))
        with pytest.raises(OSError, match="no network is allowed here"):
            socket.socket().connect(here.getsockname())
        with pytest.raises(FileNotFoundError):  # a local socket is no network
            socket.socket(socket.AF_UNIX).connect(str(tmp_path / "nobody"))
    assert len(attempts) == 2
    assert "huggingface.co" in attempts[0]
    with pytest.raises(ConnectionRefusedError):
        socket.socket().connect(here.getsockname())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_experiments(capsys, tmp_path, workers):
    chosen = ["controls/majority", "houlsby2019/table1_adapters_64", "--task", "mrpc", "--workers", workers]
    status = main([*chosen, "--keep", str(tmp_path / "kept")])
    lines = capsys.readouterr().out
    assert status == 0, lines
    # Majority; adapters with the paper's and the script's settings; again as from the hub; report; network.
    assert "6 passed, 0 failed" in lines
    records = sorted((tmp_path / "kept" / "results" / "records").rglob("*[0-9a-f].json"))
    assert len(records) == 4
    record = json.loads(records[-1].read_text())
    assert (record["scale"], record["config"]["trainer"]["max_steps"]) == ("paper", STEPS)


def test_failures_are_counted(capsys, monkeypatch):
    def reaches_out(cfg, how=None):
        socket.create_connection(("huggingface.co", 443))

    monkeypatch.setattr(peft_bench.runs.run, "run", reaches_out)
    assert main(["controls/majority", "--task", "rte"]) == 1
    lines = capsys.readouterr().out
    assert "0 passed   1 failed" in lines
    assert "no network: asked for huggingface.co" in lines
    assert "report: peft-bench report exits with 2" in lines  # there are no results
    assert lines.splitlines()[-1].startswith("0 passed, 3 failed")
