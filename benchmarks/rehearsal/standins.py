"""Stand-ins of published checkpoints in the hub's own layout, for `peft-bench rehearse` and tests.

    <backbones>/google-bert/bert-large-uncased/    config.json, model.safetensors, tokenizer.json, vocab.txt, ...
    <backbones>/facebook/bart-large/               config.json, pytorch_model.bin, tokenizer.json, vocab.json, ...

Real: the configuration class, model_type, special token ids, positions, segments, number of heads, the tensor names of
the papers' checkpoints, file formats (but for SHARDED). Not real: one layer, HEAD_SIZE per head, random weights, a
small vocabulary.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Tokenizer,
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
from ..config.schema import BackboneConfig
from ..pretraining.builders import SENTINELS, byte_level_bpe, unigram_pieces
from .standin_data import WORDS, sentence

# T5 1.1, its LM-adapted variants, BART and (not verified) DeBERTa are published as pytorch_model.bin, in one file as
# far as is known. One of them stands in as several files with an index, so that this form is walked, too.
PICKLED = ("google/t5-", "facebook/bart-", "microsoft/deberta-")
SHARDED = "google/t5-xxl-lm-adapt"
HEAD_SIZE = 4  # width = number of heads times this
Sizes = dict[str, Any]  # fields of a published configuration


def make_backbone(root: Path, backbone: BackboneConfig, layers: int = 1) -> Path:
    """Write `<root>/<hub_id>/` for a BERT, RoBERTa, DeBERTa, GPT-2, BART or T5 checkpoint; returns the folder.

    One that is not published has no hub_id and is written into `root` itself.
    """
    if backbone.model_type not in STANDINS:
        raise ValueError(
            f"no stand-in for model_type={backbone.model_type!r} (known: {', '.join(STANDINS)}); add one to "
            "benchmarks/rehearsal/standins.py"
        )
    folder = root / backbone.hub_id
    folder.mkdir(parents=True)
    sizes, build = STANDINS[backbone.model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, model = build(folder, backbone.architecture | sizes(backbone.architecture, layers))
        for parameter in model.parameters():
            # Away from 0 and 1 everywhere: a tensor that a loader leaves out is then seen in the logits.
            parameter.data += 0.02 * torch.randn_like(parameter)
    tokenizer.save_pretrained(folder)  # tokenizer.json
    positions = tokenizer.model_max_length
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": positions}) + "\n")
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    if backbone.hub_id.startswith(PICKLED):
        weights.unlink()
        _pickle(folder, model, 3 if backbone.hub_id == SHARDED else 1)
    else:
        named = {_name_on_hub(name): t for name, t in load_file(weights).items()}
        save_file(named, weights, metadata={"format": "pt"})
    return folder


def _pickle(folder: Path, model: PreTrainedModel, files: int) -> None:
    """Weights as torch.save writes them: the embedding under each of its names, BART's without its output layer."""
    # A T5's base is itself; DeBERTa's pretraining head is published with it.
    tensors = (model if isinstance(model, DebertaV2ForMaskedLM) else model.base_model).state_dict()
    if files == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names = {f"pytorch_model-{i + 1:05}-of-{files:05}.bin": [*tensors][i::files] for i in range(files)}
    for file, within in names.items():
        torch.save({name: tensors[name] for name in within}, folder / file)
    index = {name: file for file, within in names.items() for name in within}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _encoder_sizes(architecture: Sizes, layers: int) -> Sizes:
    width = HEAD_SIZE * architecture["num_attention_heads"]
    return {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}


def _gpt2_sizes(architecture: Sizes, layers: int) -> Sizes:
    return {"n_layer": layers, "n_embd": HEAD_SIZE * architecture["n_head"]}


def _bart_sizes(architecture: Sizes, layers: int) -> Sizes:
    width = HEAD_SIZE * architecture["encoder_attention_heads"]
    sides = {"layers": layers, "ffn_dim": 4 * width}
    return {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sides.items()} | {"d_model": width}


def _t5_sizes(architecture: Sizes, layers: int) -> Sizes:
    heads = architecture["num_heads"]
    small = {"num_layers": layers, "num_decoder_layers": layers, "d_kv": HEAD_SIZE}
    return small | {"d_model": HEAD_SIZE * heads, "d_ff": 8 * HEAD_SIZE}


def _sentences() -> list[str]:
    return [sentence(random.Random(i), 12) for i in range(100)]


def _byte_level(
    folder: Path, sentences: Sequence[str], first: list[str], last: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, in the files of the published checkpoints, too; first, last: special tokens."""
    vocabulary, merges = byte_level_bpe(sentences, 400, first)
    vocabulary[last] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)]))
    return vocabulary, merges


def _bert(folder: Path, sizes: Sizes) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
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


def _roberta(folder: Path, sizes: Sizes) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE with <s> <pad> </s> <unk> as 0 to 3 and <mask> last; two positions are never used."""
    vocabulary, merges = _byte_level(folder, _sentences(), ["<s>", "<pad>", "</s>", "<unk>"], "<mask>")
    positions = sizes["max_position_embeddings"] - sizes["pad_token_id"] - 1
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions)
    config = RobertaConfig(**{**sizes, "vocab_size": len(vocabulary)})
    return tokenizer, RobertaForMaskedLM(config)


def _deberta(folder: Path, sizes: Sizes) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Unigram pieces between [PAD] [CLS] [SEP] [UNK] as 0 to 3 and [MASK]; attention over relative positions alone."""
    pieces = [piece for piece in unigram_pieces(_sentences()) if not piece[0].startswith("<")]
    vocabulary = [*((word, 0.0) for word in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")), *pieces, ("[MASK]", 0.0)]
    tokenizer = DebertaV2Tokenizer(vocab=vocabulary, unk_id=3, model_max_length=sizes["max_position_embeddings"])
    config = DebertaV2Config(**{**sizes, "vocab_size": len(vocabulary)})
    return tokenizer, DebertaV2ForMaskedLM(config)


def _deberta_sizes(architecture: Sizes, layers: int) -> Sizes:
    small = _encoder_sizes(architecture, layers)
    return small | {"pooler_hidden_size": small["hidden_size"]}


def _gpt2(folder: Path, sizes: Sizes) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE with <|endoftext|> last and no padding token; two line breaks are one token, as published."""
    sentences = [f"{text} active\n\n" for text in _sentences()]  # a word to start a prefix from
    vocabulary, merges = _byte_level(folder, sentences, [], "<|endoftext|>")
    end = vocabulary["<|endoftext|>"]
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=sizes["n_positions"])
    ids = {"vocab_size": len(vocabulary), "bos_token_id": end, "eos_token_id": end}
    return tokenizer, GPT2LMHeadModel(GPT2Config(**{**sizes, **ids}))


def _bart(folder: Path, sizes: Sizes) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """RoBERTa's special tokens; the generation settings that facebook/bart-large's config.json has, and we ignore."""
    vocabulary, merges = _byte_level(folder, _sentences(), ["<s>", "<pad>", "</s>", "<unk>"], "<mask>")
    positions = sizes["max_position_embeddings"]
    tokenizer = BartTokenizer(vocab=vocabulary, merges=merges, model_max_length=positions)
    model = BartForConditionalGeneration(BartConfig(**{**sizes, "vocab_size": len(vocabulary)}))
    model.generation_config.update(num_beams=4, early_stopping=True, no_repeat_ngram_size=3, forced_eos_token_id=2)
    return tokenizer, model


def _t5(folder: Path, sizes: Sizes) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Unigram pieces with <pad>, </s> and <unk> as 0 to 2 and the sentinels last; an output layer of its own (1.1)."""
    tokenizer = T5Tokenizer(vocab=unigram_pieces(_sentences()), extra_ids=SENTINELS, model_max_length=10**6)
    fitting = {**sizes, "vocab_size": len(tokenizer), "decoder_start_token_id": sizes["pad_token_id"]}
    model = T5ForConditionalGeneration(T5Config(**fitting))
    untie_output_layer(model)
    return tokenizer, model


def _name_on_hub(name: str) -> str:
    """BERT's published files still have TensorFlow's names for LayerNorms; RoBERTa's have today's. GPT-2's are those of
    the model without its output layer."""
    if name.startswith("transformer."):
        return name.removeprefix("transformer.")
    if not name.startswith(("bert.", "cls.")):
        return name
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


Builder = Callable[[Path, Sizes], tuple[PreTrainedTokenizerBase, PreTrainedModel]]
# model_type -> what is smaller than published, of an architecture with so many layers; tokenizer and model.
STANDINS: dict[str, tuple[Callable[[Sizes, int], Sizes], Builder]] = {
    "bert": (_encoder_sizes, _bert),
    "roberta": (_encoder_sizes, _roberta),
    "deberta-v2": (_deberta_sizes, _deberta),
    "gpt2": (_gpt2_sizes, _gpt2),
    "bart": (_bart_sizes, _bart),
    "t5": (_t5_sizes, _t5),
}
