"""Stand-ins of published checkpoints and data in the hub's own layout, for `peft-bench rehearse` and tests.

    <backbones>/google-bert/bert-large-uncased/    config.json, model.safetensors, tokenizer.json, vocab.txt, ...
    <data>/glue/rte/                               {train,validation,test}-00000-of-00001.parquet

Real: the configuration class, model_type, special token ids, positions, segments, number of heads, the tensor names of
the papers' checkpoints, file formats, column names and label encodings. Not real: one layer, HEAD_SIZE per head, random
weights, a small vocabulary, made sentences.
"""

import contextlib
import gzip
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets.packaged_modules.parquet.parquet import Parquet
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from ..backbones.loading import untie_output_layer
from ..config.schema import BackboneConfig, GenerationConfig, TaskConfig
from ..pretraining.builders import SENTINELS, byte_level_bpe, unigram_pieces
from ..tasks.mrqa import DATASET as MRQA

HEAD_SIZE = 4  # width = number of heads times this
ROWS = {"train": 40, "validation": 16, "test": 8}  # by the first word of the split
TEXT_ROWS = {"train": 60, "validation": 36, "test": 8}
LONG_ROW = 3  # of every validation split: longer than any max_length, so that truncation and the last position are met
LONG_WORDS = 700  # not in training splits: with dropout, attention over 512 tokens takes most of a rehearsal

COMMIT = "0" * 39 + "1"  # of a stand-in in the hub's cache

WORDS = (
    "the a every no old quiet red small train house river doctor child garden letter city says sees finds leaves near "
    "behind without because while never often it she they who and but"
).split()


def make_backbone(root: Path, backbone: BackboneConfig, layers: int = 1) -> Path:
    """Write `<root>/<hub_id>/` for a BERT, RoBERTa, GPT-2, BART or T5 checkpoint; returns the folder.

    One that is not published has no hub_id and is written into `root` itself.
    """
    builders = {"bert": _bert, "roberta": _roberta, "gpt2": _gpt2, "bart": _bart, "t5": _t5}
    if backbone.model_type not in builders:
        raise ValueError(
            f"no stand-in for model_type={backbone.model_type!r} (known: {', '.join(builders)}); add one to "
            "benchmarks/rehearsal/standins.py"
        )
    folder = root / backbone.hub_id
    folder.mkdir(parents=True)
    if backbone.model_type == "t5":
        small = {"num_layers": layers, "num_decoder_layers": layers, "d_kv": HEAD_SIZE}
        small |= {"d_model": HEAD_SIZE * backbone.architecture["num_heads"], "d_ff": 8 * HEAD_SIZE}
    elif backbone.model_type == "gpt2":
        small = {"n_layer": layers, "n_embd": HEAD_SIZE * backbone.architecture["n_head"]}
    elif backbone.model_type == "bart":
        width = HEAD_SIZE * backbone.architecture["encoder_attention_heads"]
        sides = {"layers": layers, "ffn_dim": 4 * width}
        small = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sides.items()}
        small["d_model"] = width
    else:
        width = HEAD_SIZE * backbone.architecture["num_attention_heads"]
        small = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, model = builders[backbone.model_type](folder, {**backbone.architecture, **small})
        for parameter in model.parameters():
            # Away from 0 and 1 everywhere: a tensor that a loader leaves out is then seen in the logits.
            parameter.data += 0.02 * torch.randn_like(parameter)
    tokenizer.save_pretrained(folder)  # tokenizer.json
    positions = tokenizer.model_max_length
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": positions}) + "\n")
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    named = {_name_on_hub(name): t for name, t in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    return folder


def make_task(root: Path, task: TaskConfig) -> Path:
    """Write `<root>/<dataset>/<subset>/` with every split of a task; test labels are hidden (-1), as on the hub."""
    folder = root / task.dataset / task.subset
    folder.mkdir(parents=True, exist_ok=True)
    if task.dataset == MRQA and task.generation is not None:
        for split in task.validation_splits:
            _write_mrqa(folder / f"{split}.jsonl.gz", _question_rows(split, task.generation, "test"))
        return folder
    if task.generation is not None:
        for split in (task.train_split, *task.validation_splits, *task.test_splits):
            rows = _text_rows(task.name, task.generation, split)
            if task.generation.linearization == "squad":
                rows["title"] = [f"article {i % 8}" for i in range(len(rows["question"]))]
            Dataset.from_dict(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return folder
    label = Value("float32") if task.num_labels == 1 else ClassLabel(num_classes=task.num_labels)
    features = Features({c: Value("string") for c in task.text_columns} | {"label": label, "idx": Value("int32")})
    fields = [column.partition(".")[2] for column in task.group_columns]
    if fields:
        features["idx"] = {name: Value("int32") for name in fields}
    for split in (task.train_split, *task.validation_splits, *task.test_splits):
        hidden = split in task.test_splits
        rows = _rows(task, split, hidden)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@contextlib.contextmanager
def hub_cache(
    cache: Path, backbones: Sequence[tuple[str, BackboneConfig]], tasks: Sequence[tuple[str, TaskConfig]]
) -> Iterator[None]:
    """Inside, the libraries find copies of these stand-ins in `cache`, as if they had downloaded them before.

    backbones, tasks: each with the folder given to make_backbone or make_task.
    """
    models, data = cache / "hub", cache / "datasets"
    for root, backbone in {b.hub_id: (root, b) for root, b in backbones}.values():
        _cache_backbone(models, Path(root) / backbone.hub_id, backbone.hub_id)
    for root, task in {(t.dataset, t.subset): (root, t) for root, t in tasks}.values():
        _cache_task(data, Path(root) / task.dataset / task.subset, task)
    before = huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE
    huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE = str(models), data
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE = before


def _cache_backbone(cache: Path, folder: Path, hub_id: str) -> None:
    """Put a copy of a checkpoint folder into the cache that huggingface_hub keeps of what it has downloaded."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def _cache_task(cache: Path, folder: Path, task: TaskConfig) -> None:
    """Put a copy of a task's folder into the cache that `datasets` keeps of what it has downloaded and converted."""
    files = {path.name.partition("-")[0]: [str(path)] for path in sorted(folder.glob("*.parquet"))}
    name = task.hub_id.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as scratch:
        subset = task.subset or "default"
        builder = Parquet(cache_dir=scratch, dataset_name=name, config_name=subset, data_files=files, hash=COMMIT)
        builder.download_and_prepare()
        shutil.copytree(builder.cache_dir, cache / task.hub_id.replace("/", "___") / subset / "0.0.0" / COMMIT)


def _bert(folder: Path, sizes: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """WordPiece with the special tokens where Devlin et al. put them: 0, 100 to 103; the pretraining heads included."""
    unused = [f"[unused{i}]" for i in range(99)]
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1) if not chr(c).isupper()]
    vocabulary = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary += [word for word in WORDS if word not in letters]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)},
        do_lower_case=True,
        model_max_length=sizes["max_position_embeddings"],
    )
    config = BertConfig(**{**sizes, "vocab_size": len(vocabulary)})
    return tokenizer, BertForPreTraining(config)


def _roberta(folder: Path, sizes: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE with <s> <pad> </s> <unk> as 0 to 3 and <mask> last; two positions are never used."""
    sentences = [_sentence(random.Random(i), 12) for i in range(100)]
    vocabulary, merges = byte_level_bpe(sentences, 400, ["<s>", "<pad>", "</s>", "<unk>"])
    vocabulary["<mask>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]))
    positions = sizes["max_position_embeddings"] - sizes["pad_token_id"] - 1
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions)
    config = RobertaConfig(**{**sizes, "vocab_size": len(vocabulary)})
    return tokenizer, RobertaForMaskedLM(config)


def _gpt2(folder: Path, sizes: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE with <|endoftext|> last and no padding token; two line breaks are one token, as published."""
    sentences = [_sentence(random.Random(i), 12) + " active\n\n" for i in range(100)]  # a word to start a prefix from
    vocabulary, merges = byte_level_bpe(sentences, 400, [])
    vocabulary["<|endoftext|>"] = end = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]))
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=sizes["n_positions"])
    ids = {"vocab_size": len(vocabulary), "bos_token_id": end, "eos_token_id": end}
    return tokenizer, GPT2LMHeadModel(GPT2Config(**{**sizes, **ids}))


def _bart(folder: Path, sizes: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """RoBERTa's special tokens; the generation settings that facebook/bart-large's config.json has, and we ignore."""
    sentences = [_sentence(random.Random(i), 12) for i in range(100)]
    vocabulary, merges = byte_level_bpe(sentences, 400, ["<s>", "<pad>", "</s>", "<unk>"])
    vocabulary["<mask>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]))
    positions = sizes["max_position_embeddings"]
    tokenizer = BartTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions)
    model = BartForConditionalGeneration(BartConfig(**{**sizes, "vocab_size": len(vocabulary)}))
    model.generation_config.update(num_beams=4, early_stopping=True, no_repeat_ngram_size=3, forced_eos_token_id=2)
    return tokenizer, model


def _t5(folder: Path, sizes: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Unigram pieces with <pad>, </s> and <unk> as 0 to 2 and the sentinels last; an output layer of its own (1.1)."""
    sentences = [_sentence(random.Random(i), 12) for i in range(100)]
    tokenizer = T5Tokenizer(vocab=unigram_pieces(sentences), extra_ids=SENTINELS, model_max_length=10**6)
    fitting = {**sizes, "vocab_size": len(tokenizer), "decoder_start_token_id": sizes["pad_token_id"]}
    model = T5ForConditionalGeneration(T5Config(**fitting))
    untie_output_layer(model)
    return tokenizer, model


def _name_on_hub(name: str) -> str:
    """BERT's published files still have TensorFlow's names for LayerNorms; RoBERTa's have today's. GPT-2's are those of
    the model without its output layer, as are BART's."""
    for wrapper in ("transformer.", "model."):
        if name.startswith(wrapper):
            return name.removeprefix(wrapper)
    if not name.startswith(("bert.", "cls.")):
        return name
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _rows(task: TaskConfig, split: str, hidden: bool) -> dict[str, list[Any]]:
    generator = random.Random(f"{task.name} {split}")
    n = ROWS[split.split("_")[0]]
    low, high = task.label_range
    if hidden:
        labels: list[float] = [-1] * n
    elif task.num_labels == 1:
        labels = [low + (high - low) * i / (n - 1) for i in range(n)]
    else:
        labels = [i % task.num_labels for i in range(n)]
    lengths = [generator.randint(4, 12) for _ in range(n)]
    if split in task.validation_splits:
        lengths[LONG_ROW] = LONG_WORDS
    texts = {column: [_sentence(generator, length) for length in lengths] for column in task.text_columns}
    fields = [column.partition(".")[2] for column in task.group_columns]
    idx = [dict.fromkeys(fields, i // 3) for i in range(n)] if fields else list(range(n))
    return {**texts, "label": labels, "idx": idx}


def _text_rows(name: str, generation: GenerationConfig, split: str) -> dict[str, list[Any]]:
    """Two rows for every source, as E2E has them; one source is longer than any max_length."""
    if generation.source_columns:
        return _question_rows(name, generation, split)
    generator, n = random.Random(f"{name} {split}"), TEXT_ROWS[split.split("_")[0]]
    sources, targets = [], []
    if generation.linearization == "none" and name == "xsum":  # one row for every document
        lengths = [LONG_WORDS if i == LONG_ROW and split != "train" else 4 + i % 9 for i in range(n)]
        sources = [f"{i} {_sentence(generator, length)}" for i, length in enumerate(lengths)]
        targets = [_sentence(generator, generator.randint(4, 12)) for _ in range(n)]
        return {generation.source_column: sources, generation.target_column: targets}
    for i in range(n):
        value = _sentence(generator, LONG_WORDS if i // 2 == LONG_ROW and split != "train" else 1 + i % 7 // 2)
        value = f"{i // 2} {value}".rstrip(".")
        line = f"name[{value}], eatType[pub], near[{generator.choice(WORDS)}]"
        sources.append(line if generation.linearization == "e2e" else f"name : {value}")
        targets.append(_sentence(generator, generator.randint(4, 12)))
    return {generation.source_column: sources, generation.target_column: targets}


def _question_rows(name: str, generation: GenerationConfig, split: str) -> dict[str, list[Any]]:
    """Rows of SQuAD, ReCoRD or WSC: every column that their source lines are made of."""
    generator, n = random.Random(f"{name} {split}"), TEXT_ROWS[split]
    lengths = [LONG_WORDS if i == LONG_ROW and split != "train" else 4 + i % 9 for i in range(n)]
    if generation.linearization == "wsc":
        texts = [f"{i} she {_sentence(generator, length)}" for i, length in enumerate(lengths)]
        values: list[list[Any]] = [texts, ["she"] * n, [1] * n]
    elif generation.linearization == "record":
        texts = [_sentence(generator, length) for length in lengths]
        values = [[f"{i} @placeholder sees." for i in range(n)], [["Doctor", "Child"]] * n, texts]
    else:
        values = [[f"Who sees {i}?" for i in range(n)], [_sentence(generator, length) for length in lengths]]
    columns = dict(zip(generation.source_columns, values, strict=True))
    found = [generator.choice(("doctor", "child")) for _ in range(n)]
    targets: list[Any] = found
    if generation.linearization == "record":
        targets = [[text] for text in found]
    if generation.linearization == "squad":
        targets = [{"text": [text], "answer_start": [0]} for text in found]
    truth = {generation.truth_column: [i % 2 for i in range(n)]} if generation.truth_column else {}
    return {**columns, **truth, generation.target_column: targets}


def _write_mrqa(path: Path, rows: Mapping[str, list[Any]]) -> None:
    """The shared task's own form: a header, then a context with its questions a line."""
    lines: list[dict[str, Any]] = [{"header": {"dataset": path.name.partition(".")[0], "split": "dev"}}]
    for question, context, answers in zip(rows["question"], rows["context"], rows["answers"], strict=True):
        lines.append({"context": context, "qas": [{"question": question, "answers": answers["text"]}]})
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(line)}\n" for line in lines)


def _sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(WORDS, k=words)).capitalize() + "."
