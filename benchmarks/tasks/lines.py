"""Structured input and reference text as the papers' code writes them.

    e2e      name[Blue Spice], eatType[pub]    ->  name : Blue Spice | Type : pub         Li & Liang, Hu et al.
    web_nlg  Aarhus | leaderName | Jacob_B     ->  | Aarhus : leaderName : Jacob_B         Li & Liang
    dart     [Aarhus, LEADER, Jacob B]         ->  Aarhus : leader : Jacob B | ...         Li & Liang

Both papers train and score on whitespace-tokenised E2E text ("family - friendly", "is n't", "£ 20"), of which only the
papers' own repositories hold the files. `tokenized` makes it from the official text: equal in every source, and in
4,602 of the papers' 4,672 validation and 4,652 of 4,693 test texts; the rest differ by a blank or two.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .text_to_text import answers, joined_line, record_line, spaced_answers, squad_line, wsc_line

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


# Linearization -> a row's source (or its columns) as a line, and its target texts.
LINES: dict[str, tuple[Callable[..., str], Callable[[Any], Sequence[str]]]] = {
    "none": (plain_line, plain_texts),
    "e2e": (e2e_line, plain_texts),
    "web_nlg": (web_nlg_line, plain_texts),
    "dart": (dart_line, plain_texts),
    "joined": (joined_line, answers),
    "squad": (squad_line, spaced_answers),
    "record": (record_line, answers),
    "wsc": (wsc_line, answers),
}
OF_COLUMNS = {"joined": 2, "squad": 2, "record": 3, "wsc": 3}  # how many source_columns a line is made of
