"""The official E2E scores: against fixtures of the official script, its own programs, and the definitions by hand."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU

from peft_bench.cli import main
from peft_bench.metrics import e2e, ptb
from peft_bench.metrics.as_evaluate import as_evaluate
from peft_bench.metrics.e2e import TEXT_METRICS, bleu, nist, score_texts
from peft_bench.metrics.ptb import java_tokens, plain_tokens, ptb_tokenize

FIXTURES = Path(__file__).resolve().parents[4] / "shared" / "references" / "e2e_metric_fixtures"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on this machine")
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the official script's fixtures are not here")

PREDICTIONS = ["The Mill is a cheap pub.", "Blue Spice serves French food near the river", "It isn't family-friendly."]
REFERENCES = [
    ["The Mill is a pub with low prices.", "The Mill, a pub, is cheap."],
    ["Blue Spice is by the river and serves French food."],
    ["It is not family-friendly.", "Not for children!", "It isn't a place for families."],
]


@pytest.fixture
def without_java(monkeypatch):
    e2e._meteor.cache_clear()  # a program that runs already needs no start
    monkeypatch.setenv("PATH", "")


@needs_java
@needs_fixtures
@pytest.mark.parametrize("name", ["loo", "loo_tokenized", "degraded", "single_ref", "edge"])
def test_scores_are_the_official_ones(name, capsys):
    files = [str(FIXTURES / f"{name}.{kind}.txt") for kind in ("preds", "refs")]
    assert main(["score", "e2e", "--predictions", files[0], "--references", files[1], "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    official = json.loads((FIXTURES / "official_scores.json").read_text())[name]
    assert scores.pop("inputs") == official["n_instances"]
    expected = {key.lower(): value for key, value in official["official_python_backend"].items()}
    assert scores == pytest.approx(expected, abs=1e-9)
    assert {key: f"{value:.4f}" for key, value in scores.items()} == {
        key.lower(): value for key, value in official["official_python_backend_printed"].items()
    }


def test_bleu_is_sacrebleus_where_no_output_is_short():
    longest = max(map(len, REFERENCES))
    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(longest)]
    expected = BLEU(lowercase=True, tokenize="13a", force=True).corpus_score(PREDICTIONS, streams).score  # type: ignore[arg-type]
    assert bleu(PREDICTIONS, REFERENCES) == pytest.approx(expected / 100, abs=1e-12)


def test_bleu_of_a_short_output_counts_a_negative_number_of_ngrams():
    # "a b c d e" and "a": 4-grams 2 - 2 = 0 (then 1e-9), trigrams 3 - 1, bigrams 4 - 0, unigrams 5 + 1.
    found = bleu(["a b c d e", "a"], [["a b c d x"], ["a"]])
    precisions = [5 / 6, 3 / 4, 2 / 2, 1 / 1e-9]
    assert found == pytest.approx(math.prod(precisions) ** 0.25)


def test_nist_by_hand():
    # One reference "a b a": counts a 2, b 1, "a b" 1, "b a" 1, "a b a" 1. Output "a b": full matches, 2 of 3 tokens.
    unigrams = (math.log2(3 / 2) + math.log2(3 / 1)) / 2
    bigram = math.log2(2 / 1) / 1
    # n-grams of the output for n = 3, 4, 5: 0, -1 and -2, without a match
    penalty = math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(2 / 3) ** 2)
    assert nist(["a b"], [["a b a"]]) == pytest.approx(penalty * (unigrams + bigram))
    assert penalty == pytest.approx(0.5)


@needs_java
@pytest.mark.parametrize(
    "text",
    [
        'He said "no", didn\'t he? Prices: £20-25, or 1,000.50 (cheap).',
        "Rated 5 out of 5 ... it cannot -- and won't -- be family - friendly !",
        "Near Café Rouge. 'The Eagle' is a kid-friendly pub, £ 20 -25 & more; yes",
        "in the center., near Burger King hors d'oeuvre I'd they've we'll",
        "isn 't n't 's 5of5 5out of 5 L30 E20-E25",
    ],
)
def test_plain_text_is_tokenized_as_stanfords_program_does(text):
    assert plain_tokens(text) is not None
    assert [plain_tokens(text)] == java_tokens([text])


LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@needs_java
@pytest.mark.parametrize("sign", LINE_ENDS)
def test_what_ends_a_line_shifts_no_later_text(sign):
    texts = [f"The Eagle/Vulture{sign}is a pub.", f"plain{sign}text", "Mr. Smith's place, the U.S. riverside."]
    blank = [text.replace(sign, " ") for text in texts]
    assert java_tokens(texts) == java_tokens(blank)
    assert ptb_tokenize(texts) == ptb_tokenize(blank)


@needs_java
def test_another_number_of_lines_than_texts_is_an_error(monkeypatch):
    monkeypatch.setattr(ptb, "on_one_line", lambda text: text)
    with pytest.raises(RuntimeError, match="gave 3 lines for 2 texts"):
        java_tokens(["U.S.\nand/or", "e.g. this"])


@needs_java
def test_other_text_goes_to_stanfords_program():
    texts = ["U.S. and/or e.g. www.example.com", "plain text here", "Mr. O'Neil's 3/4 rock 'n' roll", "中文 text"]
    assert [plain_tokens(text) is None for text in texts] == [True, False, True, True]
    assert ptb_tokenize(texts) == java_tokens(texts)


@needs_java
def test_as_an_evaluate_metric():
    found = as_evaluate(*TEXT_METRICS).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert found == score_texts(PREDICTIONS, REFERENCES)
    assert all(0 < value < 10 for value in found.values())


@needs_java
def test_equal_text_scores_highest():
    texts = [text[0] + " It has five stars and a view." for text in REFERENCES]
    scores = score_texts(texts, [[text] for text in texts])
    assert (scores["bleu"], scores["rouge_l"], scores["meteor"]) == pytest.approx((1, 1, 1))
    assert scores["cider"] == pytest.approx(10)


def test_without_java_meteor_has_no_score(without_java):
    scores = score_texts(PREDICTIONS, REFERENCES)
    assert scores["meteor"] is None
    assert None not in [scores[name] for name in ("bleu", "nist", "rouge_l", "cider")]
    # a text that only Java can tokenize
    assert score_texts(["U.S. food", *PREDICTIONS[1:]], REFERENCES)["cider"] is None


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("", "a\n", "predictions is empty"),
        ("a\n", "\n\n", "references is empty"),
        ("a\nb\n", "a\n\nb\n\nc\n", "2 predictions, .* references for 3 inputs"),
        ("a\nb\n", "a\nx\n\n\nb\n", "line 4: a second empty line, so input 2 has no reference"),
        (b"a\n\xff\n", "a\n\nb\n", "line 2: not UTF-8"),
    ],
)
def test_wrong_files_are_refused_in_one_sentence(tmp_path, capsys, predictions, references, message):
    files = {"predictions": predictions, "references": references}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = [part for name in files for part in (f"--{name}", str(tmp_path / name))]
    assert main(["score", "e2e", *paths]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_a_missing_file_is_named(tmp_path, capsys):
    missing = str(tmp_path / "none.txt")
    assert main(["score", "e2e", "--predictions", missing, "--references", missing]) == 2
    assert f"cannot read {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no predictions"),
        (["a"], [["a"], ["b"]], "1 predictions for 2"),
        (["a"], ["a"], "one text each"),
        (["a", "b"], [["a"], [""]], "prediction 1 .* has no reference"),
    ],
)
def test_wrong_texts_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        score_texts(predictions, references)


def test_scoring_leaves_the_environment_alone():
    before = dict(os.environ)
    score_texts(PREDICTIONS, REFERENCES, ["bleu", "nist"])
    assert dict(os.environ) == before
