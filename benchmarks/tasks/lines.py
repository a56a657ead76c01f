"""A row's source as one line, and its target texts, as the papers' code writes them.

    e2e      name[Blue Spice], eatType[pub]    ->  name : Blue Spice | Type : pub         Li & Liang, Hu et al.
    web_nlg  Aarhus | leaderName | Jacob_B     ->  | Aarhus : leaderName : Jacob_B         Li & Liang
    dart     [Aarhus, LEADER, Jacob B]         ->  Aarhus : leader : Jacob B | ...         Li & Liang
    squad    question: Who came ?  context: Ada came .                              ->  Ada
    record   query: @placeholder came.  entities: Ada, Bob  passage: Ada came.      ->  Ada
    wsc      Ada told Bob that *she* came.                                          ->  Ada

Both papers train and score on whitespace-tokenised E2E text ("family - friendly", "is n't", "£ 20"), of which only the
papers' own repositories hold the files. `tokenized` makes it from the official text: equal in every source, and in
4,602 of the papers' 4,672 validation and 4,652 of 4,693 test texts; the rest differ by a blank or two.

The last three, whose answers are free, are as T5 reads and writes them (t5/data/preprocessors.py), without the task's
name, as Lester et al. 2021. MRQA's files have the form of SQuAD. Versions of t5 differ in what a punctuation mark is;
here it is ASCII's 32, as [[:punct:]] there.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

E2E_KEYS = {
    "name": "name",
    "eatType": "Type",
    "food": "food",
    "priceRange": "price",
    "customer rating": "customer rating",
    "area": "area",
    "familyFriendly": "family friendly",
    "near": "near",
}
_SLOT = re.compile(r"\s*([A-Za-z][A-Za-z ]*?)\[([^\[\]]*)\]\s*")
_TOKEN = re.compile(r"[A-Za-zÀ-ÿ]+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\d+(?:[.,]\d+)+|[A-Za-zÀ-ÿ0-9]+|\.\.+|\S")
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


def tokenized(text: str) -> str:
    """Official text in the papers' whitespace-tokenised form."""
    return " ".join(_TOKEN.findall(text))


def e2e_line(meaning: Any, words: Callable[[str], str] = str) -> str:
    """The source line of a meaning representation; values in the form that `words` gives them.

    Raises ValueError for one that is not `slot[value], slot[value], ...` with E2E's slots.
    """
    if not isinstance(meaning, str):
        raise ValueError(f"{meaning!r} is no text; expected slot[value], slot[value], ...")
    parts, position = [], 0
    while position < len(meaning):
        match = _SLOT.match(meaning, position)
        if match is None or match[1] not in E2E_KEYS or not match[2].strip():
            raise ValueError(
                f"cannot read {meaning[position:]!r} of {meaning!r}; expected slot[value], slot[value], ... with the "
                f"slots {', '.join(E2E_KEYS)}"
            )
        parts.append(f"{E2E_KEYS[match[1]]} : {words(match[2].strip())}")
        position = match.end()
        if position < len(meaning) and meaning[position] != ",":
            raise ValueError(f"expected a comma before {meaning[position:]!r} of {meaning!r}")
        position += 1
    if not parts:
        raise ValueError("an empty meaning representation; expected slot[value], slot[value], ...")
    return " | ".join(parts)


def web_nlg_line(triples: Any) -> str:
    """The source line of WebNLG triples, texts `subject | property | object`."""
    parts = []
    for triple in triples:
        fields = [field.strip() for field in str(triple).split("|")]
        if len(fields) != 3:
            raise ValueError(f"{triple!r} has {len(fields)} fields; expected subject | property | object")
        parts.append("| {} : {} : {}".format(*fields))
    if not parts:
        raise ValueError("no triples; expected at least one")
    return " ".join(parts)


def dart_line(triples: Any) -> str:
    """The source line of DART triples, lists of subject, relation, object."""
    parts = []
    for triple in triples:
        if len(triple) != 3:
            raise ValueError(f"{list(triple)!r} has {len(triple)} fields; expected subject, relation, object")
        subject, relation, thing = triple
        parts.append(f"{subject} : {str(relation).lower()} : {thing}")
    if not parts:
        raise ValueError("no triples; expected at least one")
    return " | ".join(parts)


def plain_line(source: Any) -> str:
    """A source that is a line already."""
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{source!r}: expected a text")
    return source.strip()


def plain_texts(texts: Any) -> Sequence[str]:
    """The reference texts of a row: a text, a list of them, or DART's list of {source, text}."""
    if isinstance(texts, str):
        texts = [texts]
    found = [item["text"] if isinstance(item, dict) else item for item in texts]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{texts!r}: expected at least one reference, and none of them empty")
    return [text.strip() for text in found]


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


class Form(NamedTuple):
    """How a row is written. columns: how many source_columns a line is made of (0: the one source_column). line: of the
    row's source or columns. targets: of the row's target column."""

    columns: int
    line: Callable[..., str]
    targets: Callable[[Any], Sequence[str]]


LINES = {  # by linearization
    "none": Form(0, plain_line, plain_texts),
    "e2e": Form(0, e2e_line, plain_texts),
    "web_nlg": Form(0, web_nlg_line, plain_texts),
    "dart": Form(0, dart_line, plain_texts),
    "joined": Form(2, joined_line, answers),
    "squad": Form(2, squad_line, spaced_answers),
    "record": Form(3, record_line, answers),
    "wsc": Form(3, wsc_line, answers),
}
