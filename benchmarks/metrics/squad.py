"""Scores of short free answers: SQuAD's and ReCoRD's exact match and F1, and T5's reading of a referent (WSC).

squad_em, squad_f1   best over the accepted answers, lower case, no articles, no punctuation   0 … 1   torchmetrics
wsc_accuracy         does the answer name the referent, and is it the right one?               0 … 1   written out
"""

import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config.metrics import metrics_of

ANSWER_METRICS = metrics_of("squad")
# t5/data/postprocessors.py, wsc_simple: words that do not count
_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()
)


def score_answers(
    outputs: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str],
    truth: np.ndarray | None = None,
) -> dict[str, float]:
    """The named scores. truth: (N,) whether each reference is the right referent, for wsc_accuracy.

    Raises ValueError for sets of different size and inputs without a reference.
    """
    if not len(outputs) or len(outputs) != len(references) or not all(map(len, references)):
        raise ValueError(
            f"{len(outputs)} outputs for {len(references)} sets of references; expected as many, none empty"
        )
    found: dict[str, float] = {}
    if {"squad_em", "squad_f1"} & {*names}:
        found |= _squad(outputs, references)
    if "wsc_accuracy" in names:
        if truth is None:
            raise ValueError("wsc_accuracy needs to know which referents are right: set task.generation.truth_column")
        named = [names_referent(output, texts[0]) for output, texts in zip(outputs, references, strict=True)]
        found["wsc_accuracy"] = float(
            np.mean([a is not None and a == bool(t) for a, t in zip(named, truth, strict=True)])
        )
    return {name: found[name] for name in names}


def _squad(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    from torchmetrics.functional.text import squad  # takes a second to import

    predictions: list[dict[str, str]] = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(outputs)]
    gold: list[Any] = [
        {"answers": {"text": [*texts], "answer_start": [0] * len(texts)}, "id": str(i)}
        for i, texts in enumerate(references)
    ]
    found = squad(predictions, gold)
    # torchmetrics gives F1 1 where output and answer are both nothing; v1.1's script 0, since they share no word.
    nothing = sum(not _said(o) and not all(map(_said, texts)) for o, texts in zip(outputs, references, strict=True))
    f1 = float(found["f1"]) / 100 - nothing / len(outputs)
    return {"squad_em": float(found["exact_match"]) / 100, "squad_f1": f1}


def _said(text: str) -> str:
    """What v1.1's script compares: lower case, without punctuation and articles."""
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def names_referent(output: str, referent: str) -> bool | None:
    """Whether an output names the referent: the words of one are among the other's, articles and the like left out.

    None for an output without a word that counts: it is wrong whatever the truth is.
    """
    said, meant = _words(output), _words(referent)
    if not said:
        return None
    if ("'" in " ".join(said)) != ("'" in " ".join(meant)):
        return False  # "Bob" is not "Bob's hat"
    return {*said} <= {*meant} or {*meant} <= {*said}


def _words(text: str) -> list[str]:
    return [word for word in text.lower().split() if word not in _DETERMINERS]
