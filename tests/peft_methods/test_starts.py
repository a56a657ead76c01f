"""Starts of prefixes and prompts: from words, from the vocabulary, from class labels, from a range."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from peft_methods.attach import attach
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from tests.conftest import ALL_ARCHITECTURES, DECODERS, ENCODER_DECODERS, VOCABULARY
from tests.peft_methods.oracle import layers_of, path_of, plain, real

HAVE_KEYS = tuple(a for a in ALL_ARCHITECTURES if a != "deberta_v2")
WORDS = "the red pianist sings"
IDS = [10, 11, 12, 13, 14]  # pianist is two pieces: pian, ##ist
PIECES = {"[UNK]": 3, "the": 10, "red": 11, "pian": 12, "##ist": 13, "sings": 14, "good": 20, "bad": 21, "##ly": 22}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer; what is in none of its words is unknown, white space is nothing."""
    inside = Tokenizer(models.WordPiece(PIECES, unk_token="[UNK]"))
    inside.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inside, unk_token="[UNK]")


def prompt(length: int, init: str, **changes: Any) -> Prompt:
    settings: dict[str, Any] = {"init_range": (-0.5, 0.5), "population": 50, "labels": ()} | changes
    return Prompt(length, None, init, **settings)


def rows_of(backbone: Any, method: Prompt, seed: int = 0, tokenizer: Any = None) -> Tensor:
    attached = attach(backbone, [method], seeds=[seed], tokenizer=tokenizer)
    rows = attached.run(0).trained()["sites.embeddings.rows"].detach().clone()
    attached.detach()
    return rows


def rotated(keys: Tensor, heads: int) -> Tensor:
    """(T, heads * d): at position t components j and j + d/2 of every head turn by the angle t / 10000^(2j/d)."""
    first, second = keys.unflatten(1, (heads, 2, -1)).unbind(2)  # (T, heads, d/2) each
    half = first.shape[-1]
    angles = torch.arange(len(keys))[:, None, None] / 10_000 ** (torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=2).flatten(1)


class TestPrefixFromWords:
    @pytest.mark.parametrize("architecture", HAVE_KEYS)
    def test_keys_and_values_are_what_the_model_computes(self, architecture, tiny_backbone, tokenizer):
        """Every projection's output by hand from the hidden states that transformers reports; Llama's keys rotated."""
        backbone = tiny_backbone(architecture, torch.float64).train()
        attached = attach(backbone, [Prefix(5, None, "words", WORDS)], tokenizer=tokenizer)
        trained = attached.run(0).trained()
        plain_model = tiny_backbone(architecture, torch.float64)
        ids = torch.tensor([IDS])
        inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if architecture in ENCODER_DECODERS else {})
        outputs = plain_model(**inputs, output_hidden_states=True)
        compared = 0
        for layer_name in layers_of(architecture, plain_model):
            stack, _, i = layer_name.rpartition("layer.")
            states = "hidden_states" if not stack else f"{stack.removesuffix('.')}_hidden_states"
            hidden = outputs[states][int(i)]
            if architecture in (*DECODERS, "t5", "t5_gated"):
                hidden = plain_model.get_submodule(path_of(architecture, f"{layer_name}.attention_norm"))(hidden)
            seen = {"": (hidden, "self_kv")}
            if stack == "decoder.":
                seen["cross_"] = (outputs.encoder_last_hidden_state, "cross_kv")
            for prefix, (x, kind) in seen.items():
                for which in ("key", "value"):
                    y = plain_model.get_submodule(path_of(architecture, f"{layer_name}.{prefix}{which}"))(x)[0]
                    if architecture == "gpt2":
                        y = y.chunk(3, dim=-1)[1 if which == "key" else 2]
                    if architecture == "llama" and which == "key":
                        y = rotated(y, heads=2)
                    ours = trained[f"sites.{layer_name}.{kind}.{which}s"]
                    torch.testing.assert_close(ours, y, rtol=0, atol=1e-6)  # kept in float32 on the way
                    compared += 1
        assert compared == len(trained)

    @pytest.mark.parametrize("architecture", DECODERS)
    def test_a_decoder_reads_the_prefix_as_its_left_context(self, architecture, tiny_backbone, tiny_batch, tokenizer):
        """Positions count the prefix, and no word of it sees the text: exactly the model that reads the words."""
        backbone, batch = tiny_backbone(architecture), tiny_batch(architecture, rows=4, width=9)
        attached = attach(tiny_backbone(architecture), [Prefix(5, None, "words", WORDS)], tokenizer=tokenizer)
        with torch.no_grad():
            ours = real(attached([batch])[0], batch)
            expected = self._with_words(backbone, batch)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        assert (ours - real(plain(backbone, batch), batch)).abs().max() > 0.05, "the words change nothing"

    @pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
    def test_the_mlp_is_fitted_to_the_words(self, architecture, tiny_backbone, tiny_batch, tokenizer):
        """Close, not equal: 500 steps at 1e-4 move a weight by 0.05 at most. With 256 hidden units that is enough for 5
        rows: they come within a tenth of their size (seen: 0.2 to 4 %), from a start as far off as they are large."""
        backbone = tiny_backbone(architecture)
        exact = attach(backbone, [Prefix(5, None, "words", WORDS)], tokenizer=tokenizer).run(0).stored()
        attached = attach(tiny_backbone(architecture), [Prefix(5, 256, "words", WORDS)], tokenizer=tokenizer)
        start = attach(tiny_backbone(architecture), [Prefix(5, 256, "random", "")]).run(0)
        fitted, trained = attached.run(0).stored(), attached.run(0).trained()
        assert fitted.keys() == exact.keys()
        for name, rows in exact.items():
            assert (fitted[name] - rows).norm() < 0.1 * rows.norm(), name
            assert (start.stored()[name] - rows).norm() > 0.5 * rows.norm(), name
        embeddings = {name: p for name, p in start.trained().items() if name.endswith("mlp.embedding")}
        assert all(torch.equal(trained[name], p) for name, p in embeddings.items()), "embeddings are not fitted"
        assert all(p.grad is None for p in trained.values())

    def test_gpt2_with_a_fitted_mlp_is_close_to_having_read_the_words(self, tiny_backbone, tiny_batch, tokenizer):
        """Logits within a twentieth of what the words change in them: the rows are within 2 %."""
        backbone, batch = tiny_backbone("gpt2"), tiny_batch("gpt2", rows=4, width=9)
        attached = attach(tiny_backbone("gpt2"), [Prefix(5, 256, "words", WORDS)], tokenizer=tokenizer)
        with torch.no_grad():
            ours, read = real(attached([batch])[0], batch), self._with_words(backbone, batch)
            change = (read - real(plain(backbone, batch), batch)).abs().max()
        assert (ours - read).abs().max() < 0.05 * change

    def _with_words(self, backbone: Any, batch: dict[str, Tensor]) -> Tensor:
        words = torch.tensor(IDS).expand(len(batch["input_ids"]), -1)
        longer = {
            "input_ids": torch.cat([words, batch["input_ids"]], dim=1),
            "attention_mask": F.pad(batch["attention_mask"], (5, 0), value=1),
        }
        return real(plain(backbone, longer)[:, 5:], batch)

    @pytest.mark.parametrize("mlp_hidden", [None, 6])
    def test_words_must_fill_the_prefix(self, mlp_hidden, tiny_backbone, tokenizer):
        with pytest.raises(ValueError, match=rf"words='{WORDS}' has 5 tokens, length=4: .*method.length to 5"):
            attach(tiny_backbone("gpt2"), [Prefix(4, mlp_hidden, "words", WORDS)], tokenizer=tokenizer)

    @pytest.mark.parametrize("words", ["the blue pianist", " ", ""])
    def test_unknown_words_are_named(self, words, tiny_backbone, tokenizer):
        with pytest.raises(ValueError, match=f"{words!r} is not in the vocabulary of bert"):
            attach(tiny_backbone("bert"), [Prefix(3, None, "words", words)], tokenizer=tokenizer)

    def test_words_need_a_tokenizer(self, tiny_backbone):
        with pytest.raises(ValueError, match=rf"a start from the words '{WORDS}' needs the tokenizer"):
            attach(tiny_backbone("gpt2"), [Prefix(5, None, "words", WORDS)])


class TestPrompt:
    @pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (0.0, 0.5)], ids=["paper", "code"])
    def test_uniform_stays_in_its_range_and_fills_it(self, low, high, tiny_backbone):
        rows = rows_of(tiny_backbone("t5"), prompt(200, "uniform", init_range=(low, high)))
        assert rows.shape == (200, 16)
        assert low <= rows.min() < low + 0.01
        assert high - 0.01 < rows.max() <= high
        # 3,200 draws: the mean's own standard deviation is 0.005 of the range
        assert rows.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))

    def test_normal(self, tiny_backbone):
        rows = rows_of(tiny_backbone("t5"), prompt(200, "normal"))
        assert rows.mean().item() == pytest.approx(0, abs=0.08)
        assert rows.std().item() == pytest.approx(1, abs=0.06)

    @pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
    def test_sampled_rows_are_the_vocabularys_without_repetition(self, architecture, tiny_backbone):
        backbone = tiny_backbone(architecture)
        for length, population in ((8, 12), (12, 12), (23, 10**6)):
            rows = rows_of(backbone, prompt(length, "sampled_vocabulary", population=population), seed=length)
            ids = ids_of(backbone, rows)
            assert len(set(ids)) == length
            assert max(ids) < min(population, VOCABULARY)
            assert ids != sorted(ids), "not sampled, taken in order"
        assert sorted(ids_of(backbone, rows_of(backbone, prompt(12, "sampled_vocabulary", population=12)))) == [
            *range(12)
        ]

    @pytest.mark.parametrize("init", ["sampled_vocabulary", "class_labels"])
    def test_too_small_a_population_is_refused(self, init, tiny_backbone, tokenizer):
        with pytest.raises(ValueError, match="length=8 is more than the 7 entries that rows are sampled from"):
            attach(tiny_backbone("t5"), [prompt(8, init, population=7, labels=("good",))], tokenizer=tokenizer)

    @pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
    def test_labels_are_averaged_over_their_pieces_and_the_rest_is_sampled(
        self, architecture, tiny_backbone, tokenizer
    ):
        backbone = tiny_backbone(architecture)
        table = backbone.get_input_embeddings().weight
        method = prompt(8, "class_labels", population=9, labels=("good", "badly", "red pianist"))
        rows = rows_of(backbone, method, tokenizer=tokenizer)
        torch.testing.assert_close(rows[0], table[20])
        torch.testing.assert_close(rows[1], (table[21] + table[22]) / 2)
        torch.testing.assert_close(rows[2], (table[11] + table[12] + table[13]) / 3)
        rest = ids_of(backbone, rows[3:])
        assert len(set(rest)) == 5
        assert max(rest) < 9

    def test_rows_are_scaled_as_the_text_is(self, tiny_backbone, tokenizer):
        """BART may multiply its embeddings by sqrt(H): a prompt's rows stand beside the products."""
        backbone = tiny_backbone("bart", scale_embedding=True)
        rows = rows_of(backbone, prompt(1, "class_labels", labels=("good",)), tokenizer=tokenizer)
        torch.testing.assert_close(rows[0], 4.0 * backbone.get_input_embeddings().weight[20])

    def test_more_labels_than_rows(self, tiny_backbone, tokenizer):
        """The first ones are taken."""
        backbone = tiny_backbone("t5")
        rows = rows_of(backbone, prompt(2, "class_labels", labels=("sings", "good", "bad")), tokenizer=tokenizer)
        assert ids_of(backbone, rows) == [14, 20]

    @pytest.mark.parametrize("label", ["entailment", "good entailment", " ", ""])
    def test_an_unknown_label_is_named(self, label, tiny_backbone, tokenizer):
        """Whether the tokenizer gives its unknown token or nothing."""
        with pytest.raises(ValueError, match=rf"{label!r} is not in the vocabulary of t5: .*method\.labels"):
            attach(tiny_backbone("t5"), [prompt(4, "class_labels", labels=("good", label))], tokenizer=tokenizer)

    def test_labels_and_a_tokenizer_are_needed(self, tiny_backbone, tokenizer):
        with pytest.raises(ValueError, match=r"init=class_labels without labels: change method\.labels"):
            attach(tiny_backbone("t5"), [prompt(4, "class_labels")], tokenizer=tokenizer)
        with pytest.raises(ValueError, match="a start from the words 'good' needs the tokenizer"):
            attach(tiny_backbone("t5"), [prompt(4, "class_labels", labels=("good",))])

    @pytest.mark.parametrize("init", ["uniform", "normal", "sampled_vocabulary", "class_labels"])
    def test_draws_follow_from_the_seed(self, init, tiny_backbone, tokenizer):
        backbone, method = tiny_backbone("t5"), prompt(6, init, labels=("good",))
        first = rows_of(backbone, method, 3, tokenizer)
        torch.rand(5)
        assert torch.equal(rows_of(backbone, method, 3, tokenizer), first)
        assert not torch.equal(rows_of(backbone, method, 4, tokenizer), first)


def ids_of(backbone: Any, rows: Tensor) -> list[int]:
    """Which row of the vocabulary each row is; exactly one."""
    equal = (rows[:, None] == backbone.get_input_embeddings().weight[None]).all(-1)
    assert (equal.sum(1) == 1).all(), "a row that is none of the vocabulary's"
    return equal.long().argmax(1).tolist()
