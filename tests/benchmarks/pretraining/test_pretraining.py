"""Shipped backbones load as hub folders do; pretraining learns, repeats bit for bit, and writes whole folders."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from peft_bench.backbones.files import MICRO_BACKBONES
from peft_bench.micro.language import LANGUAGE_VERSION
from peft_bench.micro.tasks import TASKS, load_micro
from peft_bench.pretraining import command, settings
from peft_bench.pretraining.builders import Sizes
from peft_bench.pretraining.command import main
from peft_bench.pretraining.folder import compare, load_pretrained, made_before
from peft_bench.pretraining.loop import pretrain
from peft_bench.pretraining.masking import PairStream
from peft_bench.pretraining.objectives import validation_loss
from peft_bench.pretraining.real_text import read_documents
from peft_bench.pretraining.settings import OF_TEXT, PretrainConfig

SHIPPED = {"bert": MICRO_BACKBONES / "micro_bert", "roberta": MICRO_BACKBONES / "micro_roberta"}
OBJECTIVE = {"bert": "mlm", "roberta": "mlm", "gpt2": "causal_lm", "t5": "span_corruption"}
SIZES = Sizes(hidden_size=16, layers=1, heads=2)
TINY = PretrainConfig("bert", Path("unset"), sizes=SIZES, steps=20, batch_size=16, documents=400)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.parametrize("model_type", SHIPPED)
def test_shipped_backbone_loads_offline(model_type, offline):
    folder = SHIPPED[model_type]
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert model.config.model_type == model_type
    # the published RoBERTa has no trained pooler either; everything else comes from the file
    assert all(name.startswith("pooler.") for name in loading["missing_keys"])
    assert model_type == "roberta" or not loading["missing_keys"]
    tokens = AutoTokenizer.from_pretrained(folder)(["the baker bought the hammer."], return_tensors="pt")
    assert model.eval()(**tokens).last_hidden_state.isfinite().all()
    AutoModelForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize("model_type", SHIPPED)
def test_shipped_backbone_is_small_and_says_where_it_comes_from(model_type):
    folder = SHIPPED[model_type]
    assert all(file.stat().st_size <= 2_000_000 for file in folder.iterdir())
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["report"]["language_version"] == LANGUAGE_VERSION
    assert record["config"] | {"documents": None} == record["config"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 2)
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.0
    # as wide for this width as BERT's and RoBERTa's 0.02 is for theirs
    assert config["initializer_range"] == pytest.approx(0.02 * (768 / config["hidden_size"]) ** 0.5, abs=0.001)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss = validation_loss(load_pretrained(folder), tokenizer, "mlm")
    assert loss == pytest.approx(record["report"]["validation_loss"], abs=0.01)
    assert loss < 2.0  # a uniform guess costs log(1200) = 7.1


@pytest.mark.parametrize("model_type", SHIPPED)
def test_tokenizer_round_trip(model_type):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED[model_type])
    lengths = []
    for task in TASKS:
        columns = load_micro(task)["train"]
        items = list(zip(*(columns[name][:100] for name in TASKS[task].columns), strict=True))
        for item in items:
            ids = tokenizer(*item)["input_ids"]
            lengths.append(len(ids))
            assert tokenizer.unk_token_id not in ids
            plain = " ".join(item) if model_type == "bert" else "".join(item)
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == plain.replace(" ", "")
    assert max(lengths) <= 48


def test_pair_format():
    bert, roberta = (AutoTokenizer.from_pretrained(SHIPPED[name]) for name in ("bert", "roberta"))
    encoded = bert("the baker", "the soup")
    assert bert.convert_ids_to_tokens(encoded["input_ids"]) == [
        "[CLS]",
        "the",
        "baker",
        "[SEP]",
        "the",
        "soup",
        "[SEP]",
    ]
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    tokens = roberta.convert_ids_to_tokens(roberta("the baker", "the soup")["input_ids"])
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    assert tokens.count("</s>") == 3


@pytest.mark.parametrize("model_type", OBJECTIVE)
def test_twenty_steps_lower_the_loss_and_repeat(model_type, tmp_path):
    cfg = replace(TINY, model_type=model_type, objective=OBJECTIVE[model_type])
    first = pretrain(replace(cfg, output=tmp_path / "first"))
    again = pretrain(replace(cfg, output=tmp_path / "again"))
    none = pretrain(replace(cfg, output=tmp_path / "none", steps=1, learning_rate=1e-9))
    assert first.validation_loss < none.validation_loss - 0.3
    comparison = compare(tmp_path / "first", tmp_path / "again")
    assert comparison.passed
    assert comparison.same_bits
    assert first.weights_sha256 == again.weights_sha256
    assert not compare(tmp_path / "first", tmp_path / "none").passed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "none"]


def test_an_interrupted_run_leaves_the_old_backbone(tmp_path, monkeypatch):
    output = tmp_path / "backbone"
    pretrain(replace(TINY, output=output, steps=2))
    before = (output / "model.safetensors").read_bytes()
    monkeypatch.setattr("peft_bench.pretraining.folder.validation_loss", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(replace(TINY, output=output, steps=3), force=True)
    assert (output / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_what_is_there_is_found_and_never_replaced_by_another(tmp_path, capsys):
    cfg = replace(TINY, output=tmp_path / "backbone", steps=4, keep=(2,))
    made = pretrain(cfg)
    weights = cfg.output / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert pretrain(cfg) == made
    assert "was made with these settings; --force makes it again" in capsys.readouterr().out
    for other in (replace(cfg, steps=5), replace(cfg, seed=1), replace(cfg, objective="causal_lm", model_type="gpt2")):
        with pytest.raises(ValueError, match=r"backbone made with other .*, and would be replaced: change --output"):
            pretrain(other)
    assert weights.stat().st_mtime_ns == before
    shutil.rmtree(tmp_path / "backbone_2")  # one of its checkpoints is gone: made again
    assert pretrain(cfg).weights_sha256 == made.weights_sha256
    assert weights.stat().st_mtime_ns > before
    assert pretrain(replace(cfg, steps=5, keep=()), force=True).steps == 5
    assert all(made_before(shipped) for shipped in settings.SHIPPED.values())


def test_masking_is_80_10_10():
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["bert"])
    lines = load_micro("sst2")["train"]["sentence"]
    documents = [lines[i : i + 2] for i in range(0, len(lines), 2)]
    stream = PairStream(tokenizer, documents, 600, seed=0, next_sentence=True)
    stream.foreign = 0.5
    plain = PairStream(tokenizer, documents, 600, seed=0, next_sentence=True, mask_probability=0.0)
    plain.foreign = 0.5
    batch, special = stream.batch(), torch.tensor(tokenizer.all_special_ids)
    chosen = batch["labels"] != -100
    ids, labels = batch["input_ids"][chosen], batch["labels"][chosen]
    real = int((~torch.isin(plain.batch()["input_ids"], special)).sum())
    assert chosen.sum() / real == pytest.approx(0.30, abs=0.03)  # Wettig et al. 2023
    assert (ids == tokenizer.mask_token_id).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (ids == labels).float().mean() == pytest.approx(0.1, abs=0.03)
    assert not torch.isin(labels, special).any()
    assert batch["follows"].float().mean() == pytest.approx(0.5, abs=0.08)


def test_bad_settings_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="no objective 'electra' for bert; expected 'mlm'"):
        pretrain(replace(TINY, output=tmp_path / "x", objective="electra"))
    with pytest.raises(ValueError, match="unknown model_type 'gpt5'; expected one of"):
        pretrain(replace(TINY, output=tmp_path / "x", model_type="gpt5"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "made_2").write_text("a file")
    for change, message in (
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"keep": (TINY.steps,)}, f"keep={TINY.steps}: expected a step from 1 to {TINY.steps - 1}"),
        ({"keep": (0,)}, "keep=0: expected a step"),
        ({"start": tmp_path / "none"}, "start=.*none: no backbone there"),
        ({"output": tmp_path / "mine"}, "output=.*mine is there and is no backbone made here .*would be replaced"),
        ({"output": tmp_path / "made", "keep": (2,)}, "output=.*made_2 is there and is no backbone made here"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(replace(TINY, **({"output": tmp_path / "x"} | change)))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "x").exists()
    with pytest.raises(SystemExit):
        main([])
    assert "--model" in capsys.readouterr().err


def test_real_text_makes_a_backbone(tmp_path):
    for split, n in (("train", 50), ("validation", 25)):
        rows = {"text": [f"Paragraph {i} of a story about {i % 7} dogs.\n" for i in range(n)], "source": ["a"] * n}
        (tmp_path / "text" / "stories").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows).to_parquet(str(tmp_path / "text" / "stories" / f"{split}.parquet"))
    documents = read_documents(tmp_path / "text", "train")
    assert [len(lines) for lines in documents] == [20, 20, 10]
    assert documents[0][0] == "Paragraph 0 of a story about 0 dogs."
    sizes = Sizes(hidden_size=16, layers=1, heads=2, vocab_size=300, positions=32)
    made = replace(OF_TEXT["small_gpt2"], output=tmp_path / "made", text=tmp_path / "text", sizes=sizes, steps=3)
    report = pretrain(replace(made, batch_size=2))
    written = json.loads((tmp_path / "made" / "pretraining.json").read_text())
    assert written["config"]["text"] == "text"
    assert written["report"]["language_version"] is None
    assert report.parameters == sum(p.numel() for p in load_pretrained(tmp_path / "made").parameters())
    assert report.tokens == 3 * 2 * 32
    with pytest.raises(ValueError, match=r"no text in .*: expected <collection>/train.parquet"):
        read_documents(tmp_path, "train")


def test_real_text_goes_with_its_backbone_only(capsys):
    for words in (["--model", "small_gpt2"], ["--model", "gpt2", "--text", "x"]):
        with pytest.raises(SystemExit):
            main(words)
        assert (
            "--text DIR goes with --model small_gpt2 or small_t5 or small_t5_lm, and these need it"
            in capsys.readouterr().err
        )


def test_an_objective_names_the_backbone_that_it_makes(tmp_path, capsys, monkeypatch):
    made = []

    def stop(cfg: PretrainConfig, force: bool) -> None:
        made.append(cfg)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "pretrain", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["model=t5_small", "objective=prefix_lm", "steps=7", "keep=3", f"output={tmp_path}"])
    assert (made[0].objective, made[0].steps, made[0].keep) == ("prefix_lm", 7, (3,))
    assert (made[0].start, made[0].output) == (settings.SHIPPED["t5_small"].output, tmp_path)
    for words in (["--model", "bert", "objective=prefix_lm"], ["objective=prefix_lm"], ["model=bart", "objective=x"]):
        with pytest.raises(SystemExit):
            main(words)
    said = capsys.readouterr().err
    with pytest.raises(SystemExit):  # the records are about the shipped one
        main(["model=t5_small", "steps=7"])
    assert "the shipped micro_t5_small, which records are about, would be replaced" in capsys.readouterr().err
    assert len(made) == 1
    assert "no objective prefix_lm for bert, whose objective is mlm" in said
    assert "invalid choice: 'x' (choose from" in said
