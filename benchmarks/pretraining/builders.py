"""A tokenizer trained on the corpus and an untrained model with its pretraining heads, per architecture.

Two layers of width 64 (T5: 32, 48 and 64, in encoder and decoder) and a vocabulary of about a thousand pieces: about
1 MB at most, and about 10 ms for a step of 32 items.
"""

from __future__ import annotations

import io
import json
import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
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
    PretrainedConfig,
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


@dataclass(frozen=True)
class Sizes:
    """Sizes of a backbone; the defaults are those of the shipped ones."""

    hidden_size: int = 64
    layers: int = 2
    heads: int = 2  # of width 32: copying one of 150 words through width 16 takes twice the pretraining
    vocab_size: int = 1600  # at most; the corpus has fewer words
    positions: int = 64  # T5, which has no table of them: the length of an input in pretraining


FINE_TUNING_RANGE = 0.07  # 0.02 * sqrt(768 / 64): with 0.02, RoBERTa's head of two layers starts on a plateau
SENTINELS = 100  # <extra_id_0> to <extra_id_99>
# The fields of a configuration that hold dropout rates.
DROPOUT = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"),
    "t5": ("dropout_rate", "classifier_dropout"),
    "bart": ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout"),
}


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


def build_gpt2(sizes: Sizes, lines: Iterable[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE tokenizer and GPT2LMHeadModel; <|endoftext|>, the last id as published, is the only special token.

    The published GPT-2 has no pad token. This tokenizer pads with <|endoftext|>, so that items of several lengths can
    be batched: padding must be told by the attention mask, never by its id.
    """
    vocabulary, merges = byte_level_bpe(_with_space(lines), sizes.vocab_size - 1, [])
    vocabulary["<|endoftext|>"] = len(vocabulary)
    tokenizer = GPT2Tokenizer(
        vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", model_max_length=sizes.positions
    )
    config = GPT2Config(
        n_embd=sizes.hidden_size,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_positions=sizes.positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.02,
    )
    return tokenizer, _model(GPT2LMHeadModel, config, len(tokenizer))


def build_bart(sizes: Sizes, lines: Iterable[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Byte-level BPE tokenizer with RoBERTa's special tokens, and an encoder-decoder with one embedding for both ends,
    whose decoder starts from </s> and writes <s> first, as published."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary, merges = byte_level_bpe(_with_space(lines), sizes.vocab_size, special)
    mask = AddedToken("<mask>", lstrip=True)
    tokenizer = BartTokenizer(vocab=vocabulary, merges=merges, mask_token=mask, model_max_length=sizes.positions)
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", sizes.layers),
            ("attention_heads", sizes.heads),
            ("ffn_dim", 4 * sizes.hidden_size),
        )
    }
    config = BartConfig(
        **sides,
        d_model=sizes.hidden_size,
        max_position_embeddings=sizes.positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        init_std=0.02,
    )
    return tokenizer, _model(BartForConditionalGeneration, config, len(tokenizer))


def build_t5(sizes: Sizes, lines: Iterable[str]) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Unigram tokenizer and a T5 1.1: gated GELU, an output embedding of its own, outputs not scaled before it."""
    pieces = t5_pieces(list(lines), sizes.vocab_size)
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=SENTINELS, model_max_length=sizes.positions)
    config = T5Config(
        d_model=sizes.hidden_size,
        d_kv=32,  # the same for all sizes, as published (64 there)
        d_ff=5 * sizes.hidden_size // 2,  # published: 2 to 2.75 times d_model
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # here this only says that outputs are not scaled
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = _model(T5ForConditionalGeneration, config, len(tokenizer))
    untie_output_layer(model)
    return tokenizer, model


def t5_pieces(lines: Sequence[str], vocab_size: int) -> list[tuple[str, float]]:
    """Whole words where the vocabulary has room for all of them (the generated language), learned pieces otherwise."""
    pieces = unigram_pieces(lines)
    return pieces if len(pieces) <= vocab_size else learned_pieces(lines, vocab_size)


def learned_pieces(lines: Iterable[str], vocab_size: int) -> list[tuple[str, float]]:
    """Pieces of a Unigram model that SentencePiece learns, as T5's was; ids in T5's order, sentinels last."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=vocab_size - SENTINELS,
        character_coverage=0.9999,
        normalization_rule_name="identity",  # the tokenizer that transformers builds of the pieces normalizes nothing
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
    )
    learned = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(learned.id_to_piece(i), learned.get_score(i)) for i in range(learned.get_piece_size())]
    return [*pieces, *_sentinels()]


def _sentinels() -> list[tuple[str, float]]:
    return [(f"<extra_id_{index}>", 0.0) for index in reversed(range(SENTINELS))]  # <extra_id_0> is the last id


def unigram_pieces(lines: Iterable[str]) -> list[tuple[str, float]]:
    """Pieces of a Unigram model with their log probabilities, in T5's order of ids: pad, end, unknown, ..., sentinels.

    The corpus's words with the sign for a space before them, by frequency, and every printable character, less likely
    than any word: a word of another language is spelled out, never unknown. UnigramTrainer is not used: its pieces
    differ every time, and of this corpus it splits a third of the words ("was" into "wa" and "s").
    """
    counts = Counter(piece for line in lines for piece in _spaced_words(line))
    total = sum(counts.values())
    words = sorted(((piece, math.log(n / total)) for piece, n in counts.items()), key=lambda item: (-item[1], item[0]))
    rarest = words[-1][1]
    spelled = [(piece, rarest - 1.0) for piece in ("▁", *sorted(set(string.printable) - set(string.whitespace)))]
    known = {piece for piece, _ in words}
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [*special, *words, *(item for item in spelled if item[0] not in known), *_sentinels()]


def _spaced_words(line: str) -> list[str]:
    """Words and punctuation of a line, "▁" before those that a space, or the line's start, stands before."""
    spans = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(line)
    return [word if start and line[start - 1] != " " else f"▁{word}" for word, (start, _) in spans]


def _with_space(lines: Iterable[str]) -> Iterable[str]:
    """Each line as it stands at a document's start and, after a space, within one."""
    for line in lines:
        yield line
        yield f" {line}"


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
    for rate in DROPOUT[config.model_type]:
        setattr(config, rate, 0.0)
    model = model_class(config)
    if config.model_type == "bart":
        model.config.init_std = FINE_TUNING_RANGE
    elif config.model_type != "t5":  # which draws every matrix by its width
        model.config.initializer_range = FINE_TUNING_RANGE
    return model


BUILDERS = {"bert": build_bert, "roberta": build_roberta, "gpt2": build_gpt2, "t5": build_t5, "bart": build_bart}
