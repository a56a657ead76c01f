"""Beam search with a method attached: against every possible output, one row against many, the papers' variants."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from peft_bench.answers.decoding import clean_up, end_tokens, read, token_of, write
from peft_bench.backbones.location import MICRO_BACKBONES
from peft_bench.config.schema import DecodingConfig
from peft_methods.attach import attach
from peft_methods.lora import Lora
from peft_methods.prefix import Infix, Prefix
from peft_methods.prompt import Prompt

END = 6  # the last of seven tokens
METHODS: dict[str, Any] = {
    "lora": Lora(rank=2, alpha=4, dropout=0.0, targets=["query", "value"], init_A="kaiming_uniform"),
    "prefix": Prefix(2, None, "random", ""),
    "infix": Infix(2, None),
    "prompt": Prompt(2, None, "normal", (-0.5, 0.5), 50, []),
}


class Tokens:
    """As much of a tokenizer as decoding asks for: letters a to f, and the end."""

    eos_token_id = bos_token_id = END
    name_or_path = "letters"

    def __call__(self, text, add_special_tokens):
        return {"input_ids": ["abcdef".index(letter) for letter in text]}


@pytest.fixture
def decoding():
    def build(**changes: Any) -> DecodingConfig:
        fields: dict[str, Any] = {
            "name": "test", "beams": 400, "length_penalty": 1.0, "length_counts": "output", "no_repeat_ngram": 0,
            "ngram_counts": "output", "max_new_tokens": 3, "early_stopping": "never",
        }  # fmt: skip
        return DecodingConfig(**fields | changes)

    return build


@pytest.fixture
def pack(tiny_backbone, randomize):
    def build(*names: str, tokens: int = 7) -> Any:
        ids = {"vocab_size": tokens, "eos_token_id": END, "bos_token_id": END}
        backbone = tiny_backbone("gpt2", hidden_size=16, vocab_size=61)
        backbone.resize_token_embeddings(tokens, mean_resizing=False)
        backbone.config.eos_token_id = backbone.config.bos_token_id = ids["eos_token_id"]
        backbone.generation_config.eos_token_id = backbone.generation_config.bos_token_id = END
        attached = attach(backbone, [METHODS[name] for name in names], [None] * len(names), list(range(len(names))))
        for run in attached.runs:
            randomize(run, seed=3, std=0.5)
        return attached.eval()

    return build


def write_one(attached, own, cfg):
    """What the only run writes."""
    written = write(attached, [own], cfg, Tokens())[0]
    assert written is not None
    return written


def batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Sources of different length, padded on the right; the last token of each is its boundary."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "boundary": torch.tensor([len(row) - 1 for row in rows])}


SOURCES = [[1, 2, 3, 1, 2, END], [4, END], [5, 3, 2, END]]


def best_output(attached, source: list[int], cfg: DecodingConfig) -> list[int]:
    """The output with the highest penalized score of all there are, each scored by a forward pass of its own."""
    scored = []
    for n in range(1, cfg.max_new_tokens + 1):
        for letters in itertools.product(range(END), repeat=n - 1):
            for last in [END] if n < cfg.max_new_tokens else range(END + 1):
                output = [*letters, last]
                if len(output) <= cfg.min_new_tokens and last == END:
                    continue
                if _repeats(source, output, cfg) or {*output} & {"abcdef".index(text) for text in cfg.banned}:
                    continue
                given = batch([source + output])
                given["boundary"] = torch.tensor([len(source) - 1])
                with torch.no_grad():
                    logits = attached([given])[0][0].double()
                lines = logits[len(source) - 1 : -1].log_softmax(-1)
                total = lines[torch.arange(n), torch.tensor(output)].sum().item()
                length = n if cfg.length_counts == "output" else len(source) + n - 1
                scored.append((total / length**cfg.length_penalty, output))
    return max(scored)[1]


def _repeats(source: list[int], output: list[int], cfg: DecodingConfig) -> bool:
    text = output if cfg.ngram_counts == "output" else source + output
    n = cfg.no_repeat_ngram
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)] if n else []
    before = 0 if cfg.ngram_counts == "output" else max(0, len(source) - n + 1)
    return any(gram in grams[: before + i] for i, gram in enumerate(grams[before:]))


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.5},
        {"length_penalty": 2.5, "length_counts": "source_and_output"},
        {"length_penalty": -1.0, "length_counts": "source_and_output"},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2, "ngram_counts": "source_and_output", "length_penalty": 2.0},
        {"min_new_tokens": 2, "length_penalty": 0.0},
        {"banned": ["b", "d"]},
    ],
)
def test_a_search_over_everything_finds_the_best_output(pack, decoding, method, changes):
    attached, cfg = pack(method), decoding(**changes)
    written = write_one(attached, batch(SOURCES), cfg)
    for row, source in zip(written.tolist(), SOURCES, strict=True):
        expected = best_output(attached, source, cfg)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {END}  # padding


def test_the_two_ways_to_count_a_length_differ(pack, decoding):
    cfg = decoding(length_penalty=-1.0)
    outputs = {
        counts: write_one(pack("lora"), batch(SOURCES), dataclasses.replace(cfg, length_counts=counts))
        for counts in ("output", "source_and_output")
    }
    width = min(found.shape[1] for found in outputs.values())
    assert not outputs["output"][:, :width].equal(outputs["source_and_output"][:, :width])


@pytest.mark.parametrize("counts", ["output", "source_and_output"])
@pytest.mark.parametrize("method", list(METHODS))
def test_sixteen_at_once_write_what_each_writes_alone(pack, decoding, method, counts):
    attached = pack(method, tokens=61)
    attached.backbone.config.eos_token_id = END
    generator = torch.Generator().manual_seed(5)
    rows = [[*torch.randint(7, 61, (n,), generator=generator).tolist(), END] for n in range(1, 9) for _ in "ab"]
    cfg = decoding(
        beams=5, max_new_tokens=8, length_counts=counts, no_repeat_ngram=2, early_stopping="heuristic", banned=["a"]
    )
    together = [read(ids, cfg, Letters()) for ids in write_one(attached, batch(rows), cfg).tolist()]
    alone = [read(write_one(attached, batch([row]), cfg)[0].tolist(), cfg, Letters()) for row in rows]
    assert together == alone
    assert len(set(together)) > 3


class Letters(Tokens):
    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


def test_a_run_of_a_pack_writes_as_it_does_alone(pack, decoding):
    both, cfg = pack("lora", "prefix"), decoding(beams=4)
    written = [write(both, [batch(SOURCES) if i == k else None for i in range(2)], cfg, Tokens())[k] for k in range(2)]
    at_once = write(both, [batch(SOURCES), batch(SOURCES)], cfg, Tokens())
    lora, prefix = written
    assert lora is not None
    assert prefix is not None
    assert not lora.equal(prefix)
    assert all(one is not None and one.equal(two) for one, two in zip(at_once, (lora, prefix), strict=True))
    both.detach()
    assert write_one(pack("lora"), batch(SOURCES), cfg).equal(lora)


def test_an_output_ends_before_its_end_token_and_is_marked_without_one(decoding):
    cfg = decoding(ends=["c"])
    assert read([0, 1, END, 3], cfg, Letters()) == ("0 1", True)
    assert read([0, 2, 1, END], cfg, Letters()) == ("0", True)
    assert read([0, 1, 1], cfg, Letters()) == ("0 1 1", False)
    assert end_tokens(cfg, Letters()) == [END, 2]


def test_a_text_that_is_no_token_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(MICRO_BACKBONES / "micro_gpt2")
    with pytest.raises(ValueError, match=r"'the baker' is 2 tokens .* expected one; change or leave out decoding.ends"):
        token_of("the baker", tokenizer, "ends")


def test_clean_up_joins_what_transformers_3_joined():
    assert clean_up("It is n't kid - friendly . I 'm sure , they 've £ 20 ! 's") == (
        "It isn't kid - friendly. I'm sure, they've £ 20!'s"
    )
    assert clean_up("a ' b") == "a'b"
