"""Rows as lines, in the forms of the papers' code."""

from pathlib import Path

import pytest
from datasets import Dataset

from peft_bench.tasks.lines import (
    dart_line,
    e2e_line,
    plain_texts,
    record_line,
    spaced,
    squad_line,
    tokenized,
    web_nlg_line,
    wsc_line,
)


def test_lines_are_those_of_t5():
    assert spaced('He said "U.S.-made".') == 'He said " U . S . - made " .'
    assert squad_line(("Who came?", "Ada  came.")) == "question: Who came ? context: Ada came ."
    news = "First\n@highlight\nAda came\n@highlight\nBob left."
    assert record_line(("@placeholder came", ["Ada", "Bob"], news)) == (
        "query: @placeholder came entities: Ada, Bob passage: First. Ada came. Bob left."
    )
    ended = record_line(("q", ["Ada"], "First.\n@highlight\nAda came"))
    assert ended.endswith("passage: First. Ada came")
    assert wsc_line(("Ada told Bob that she came.", "she", 4)) == "Ada told Bob that *she* came."
    assert wsc_line(('"Good for him," he said.', "him", 2)) == '"Good for *him* ," he said.'
    assert wsc_line(("they want to use it , but", "it", 3)) == "they want to use *it* , but"
    with pytest.raises(ValueError, match="no 'she' at word 1"):
        wsc_line(("Ada told Bob that she came.", "she", 1))


DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


needs_data = pytest.mark.skipif(not (DATA / "e2e_nlg_tokenized").is_dir(), reason="the papers' E2E files are not here")


MEANING = "name[Blue Spice], eatType[coffee shop], priceRange[more than £30], customer rating[5 out of 5], near[Café X]"


def test_lines_are_the_papers():
    line = (
        "name : Blue Spice | Type : coffee shop | price : more than £ 30 | customer rating : 5 out of 5 | near : Café X"
    )
    assert e2e_line(MEANING, tokenized) == line
    assert e2e_line(MEANING) == line.replace("£ 30", "£30")
    assert web_nlg_line(["A_B | leaderName | C", "D | x | E"]) == "| A_B : leaderName : C | D : x : E"
    assert dart_line([["A", "LEADER", "C"], ["D", "X", "E"]]) == "A : leader : C | D : x : E"
    assert plain_texts([{"source": "x", "text": " a b. "}]) == ["a b."]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It isn't family-friendly, £20-25.", "It is n't family - friendly , £ 20 - 25 ."),
        ('Jo\'s "Café" (5/5)... 1,000.50!', 'Jo \'s " Café " ( 5 / 5 ) ... 1,000.50 !'),
    ],
)
def test_tokenized_text(text, tokens):
    assert tokenized(text) == tokens
    assert tokenized(tokens) == tokens


@needs_data
@pytest.mark.parametrize(("split", "texts"), [("validation", 4602), ("test", 4652)])
def test_the_tokenized_form_is_the_papers(split, texts):
    official, papers = (
        Dataset.from_parquet(str(DATA / name / f"{split}.parquet"), keep_in_memory=True)
        for name in ("e2e_nlg", "e2e_nlg_tokenized")
    )
    lines = [e2e_line(meaning, tokenized) for meaning in official["meaning_representation"]]
    assert lines == [line.strip() for line in papers["source"]]
    equal = [tokenized(a) == b.strip() for a, b in zip(official["human_reference"], papers["target"], strict=True)]
    assert sum(equal) == texts
