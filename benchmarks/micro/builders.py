"""A tokenizer trained on the corpus and an untrained model with its pretraining heads, per architecture.

Two layers of width 64 and a vocabulary of about a thousand pieces: under 1 MB, and about 10 ms for a step of 32 items.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a backbone; the defaults are those of the shipped ones."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2  # of width 32: copying one of 150 words through width 16 takes twice the pretraining
    vocab_size: int = 1600  # at most; the corpus has fewer words
    positions: int = 64


FINE_TUNING_RANGE = 0.07  # 0.02 * sqrt(768 / 64): with 0.02, RoBERTa's head of two layers starts on a plateau


def build_bert(sizes: Sizes, lines: Iterable[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """WordPiece tokenizer and BertForPreTraining with a pooler.

    Its vocabulary is the corpus's words and all letters, sorted: WordPieceTrainer breaks ties differently every time.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word for line in lines for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(line)}
    letters = set(string.ascii_lowercase + string.digits)
    pieces = [*special, *sorted(words | letters), *sorted(f"##{letter}" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=sizes.positions)
    config = BertConfig(**_common(sizes), type_vocab_size=2, pad_token_id=tokenizer.pad_token_id)
    return tokenizer, _model(BertForPreTraining, config, len(tokenizer))


def build_roberta(sizes: Sizes, lines: Iterable[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE tokenizer and RobertaForMaskedLM; positions start at pad + 1, so there are two more of them."""
    vocabulary, merges = byte_level_bpe(lines, sizes.vocab_size, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = RobertaTokenizer(
        vocab=vocabulary,
        merges=merges,
        mask_token=AddedToken("<mask>", lstrip=True),  # the published one swallows the space before it, too
        model_max_length=sizes.positions,
    )
    config = RobertaConfig(
        **_common(sizes) | {"max_position_embeddings": sizes.positions + 2},
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, _model(RobertaForMaskedLM, config, len(tokenizer))


def byte_level_bpe(
    lines: Iterable[str], vocab_size: int, special: list[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary (the special tokens first) and merges of a byte-level BPE learned from `lines`."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(lines, trainer)
    learned = json.loads(trained.to_str())["model"]
    return learned["vocab"], [(left, right) for left, right in learned["merges"]]


def _common(sizes: Sizes) -> dict[str, int | float]:
    return {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": 4 * sizes.hidden_size,
        "max_position_embeddings": sizes.positions,
        "initializer_range": 0.02,
    }


def _model(model_class: type[PreTrainedModel], config: PretrainedConfig, vocabulary: int) -> PreTrainedModel:
    """Without dropout: a model this small underfits its corpus, and dropout would only slow it down.

    What fine-tuning draws (heads, random starts) is as wide for width 64 as 0.02 is for the published 768.
    """
    config.vocab_size = vocabulary
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = model_class(config)
    model.config.initializer_range = FINE_TUNING_RANGE
    return model


BUILDERS = {"bert": build_bert, "roberta": build_roberta}
