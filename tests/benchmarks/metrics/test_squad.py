"""SQuAD's and WSC's rules for answers, by hand."""

import numpy as np
import pytest

from peft_bench.metrics.squad import names_referent, score_answers


def test_referents_are_compared_as_t5_compares_them():
    assert names_referent("The fuzzy bunny", "bunny") is True
    assert names_referent("bunny", "their fuzzy bunny") is True
    assert names_referent("Bob", "Bob's hat") is False
    assert names_referent("the a", "Bob") is None
    found = score_answers(["bunny", "Bob", "the", "Ada"], [["bunny"], ["Ada"], ["Ada"], ["Ada"]], ["wsc_accuracy"],
                          np.array([1, 0, 0, 0]))  # fmt: skip
    assert found == {"wsc_accuracy": 0.5}  # named and right, not named and wrong; no answer; named and wrong


def test_squad_scores_equal_the_official_rule():
    """v1.1's evaluation script written out for three questions: best over the answers, articles and marks left out."""
    outputs = ["the Denver Broncos!", "in 1915", "nobody"]
    references = [["Denver Broncos", "Broncos"], ["1915", "the year 1915"], ["Ada"]]
    found = score_answers(outputs, references, ["squad_em", "squad_f1"])
    assert found["squad_em"] == pytest.approx(1 / 3)
    assert found["squad_f1"] == pytest.approx((1 + 2 * 0.5 * 1 / 1.5 + 0) / 3)
    with pytest.raises(ValueError, match="3 outputs for 2"):
        score_answers(outputs, references[:2], ["squad_em"])


def test_an_answer_of_articles_alone_shares_no_word_with_any():
    """v1.1's script: the same text is an exact match, but F1 is 0 without a word in common."""
    outputs = ["A", "the", "an an", "!", "a house", "Bob"]
    references = [["A"], ["A", "Ada"], ["an"], ["?"], ["the house"], ["a", "Bob"]]
    found = score_answers(outputs, references, ["squad_em", "squad_f1"])
    assert found == pytest.approx({"squad_em": 1.0, "squad_f1": 2 / 6})
