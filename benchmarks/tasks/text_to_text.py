"""Tasks with free answers as T5 reads and writes them (t5/data/preprocessors.py), without the task's name, as Lester
et al. 2021:

    squad    question: Who came ?  context: Ada came .                              ->  Ada
    record   query: @placeholder came.  entities: Ada, Bob  passage: Ada came.      ->  Ada
    wsc      Ada told Bob that *she* came.                                          ->  Ada

MRQA's files have the form of SQuAD. Versions of t5 differ in what a punctuation mark is; here it is ASCII's 32, as
[[:punct:]] there.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


def spaced(text: str) -> str:
    """A text with a blank on both sides of every punctuation mark, as T5 reads SQuAD and scores its answers."""
    return " ".join(_PUNCTUATION.sub(r" \1 ", text).split())


def squad_line(row: Sequence[Any]) -> str:
    """question, context -> the source line."""
    question, context = _texts(row, "a question and a context")
    return f"question: {spaced(question)} context: {spaced(context)}"


def joined_line(row: Sequence[Any]) -> str:
    """Two texts, one behind the other."""
    return " ".join(_texts(row, "two texts"))


def record_line(row: Sequence[Any]) -> str:
    """query, entities, passage -> the source line; the passage's highlights become sentences of it."""
    query, entities, passage = row
    query, passage = _texts((query, passage), "a query and a passage")
    if isinstance(entities, str):
        raise TypeError(f"entities {entities!r}: expected a list of texts")
    passage = re.sub(r"(\.|\?|!|\"|')\n@highlight\n", r"\1 ", passage)
    passage = passage.replace("\n@highlight\n", ". ")
    return f"query: {query} entities: {', '.join(entities)} passage: {passage}"


def wsc_line(row: Sequence[Any]) -> str:
    """text, span2_text, span2_index -> the text with the pronoun between asterisks.

    Where the word at that index holds more than the pronoun ("him,"), the rest stays behind a blank; where it is
    another word (one row of the data), the pronoun is looked for next to it. Raises ValueError if it is not there.
    """
    (text, pronoun), index = _texts(row[:2], "a text and a pronoun"), row[2]
    words = text.split()
    for place in (index, index + 1, index - 1):
        if not 0 <= place < len(words):
            continue
        before, found, after = words[place].partition(pronoun)
        if found and not re.search(r"\w", before + after):
            marked = " ".join(part for part in (before, f"*{pronoun}*", after) if part)
            return " ".join([*words[:place], marked, *words[place + 1 :]])
    raise ValueError(f"no {pronoun!r} at word {index} (from 0) of {text!r}")


def answers(value: Any) -> list[str]:
    """The accepted answers: a text, a list of texts, or SQuAD's {text: [...]}; none of them empty, each once."""
    if isinstance(value, Mapping):
        value = value.get("text", [])
    found = [value] if isinstance(value, str) else list(value)
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{value!r}: expected at least one answer, and none of them empty")
    return list(dict.fromkeys(text.strip() for text in found))


def spaced_answers(value: Any) -> list[str]:
    """The accepted answers in the form that squad_line gives the text."""
    return list(dict.fromkeys(spaced(text) for text in answers(value)))


def _texts(row: Sequence[Any], what: str) -> Sequence[str]:
    for text in row:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{text!r}: expected {what}")
    return row
