"""The micro language's SQuAD: three sentences and a question about one of them, to be answered with words of the text.

    context   the soup was lovely, said the baker. at church the guard saw the film. the boy met the nurse at dawn.
    question  where was the film of the guard?
    answer    church

Columns as in SQuAD on the hub (context, question, answers). Every context tells where one thing was and, of another
person, where or when another thing was; half the time the other kind of setting, so that the question's first word is
enough. With probability NOISE the answer is the other setting of the text. `squad` is about the town throughout;
`squad_sea` is the second domain, about the sea, whose people and things no example of the first has: to be scored on,
not to be trained on. A third of the places and times is in no training example.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

from .language import Report, Speaker, frames
from .lexicon import DEEDS, GENRES, PLACES, TIMES

QUESTIONS_VERSION = "micro-questions-2"
SIZES = {"squad": {"train": 3200, "validation": 300, "test": 1000}, "squad_sea": {"validation": 1000}}
NOISE = 0.08
EASY = 1.0  # share whose text tells one place and one time
HELD = 0.0


@cache
def held_words() -> frozenset[str]:
    """The places and times that no training example contains."""
    rng = random.Random(f"{QUESTIONS_VERSION}/held")
    return frozenset(word for words in (PLACES, TIMES) for word in rng.sample(words, round(HELD * len(words))))


@cache
def _load(name: str) -> dict[str, dict[str, tuple[Any, ...]]]:
    genre = GENRES[0] if name == "squad" else GENRES[1]
    loaded = {}
    for split, size in SIZES[name].items():
        training = split == "train"
        speaker = Speaker(
            random.Random(f"{QUESTIONS_VERSION}/{name}/{split}"),
            "train" if training else "evaluation",
            (genre,),
            held_words() if training else frozenset(),
        )
        rows = [_example(speaker) for _ in range(size)]
        contexts, questions, answers = zip(*rows, strict=True)
        texts = tuple({"text": [answer]} for answer in answers)
        loaded[split] = {"context": contexts, "question": questions, "answers": texts}
    return loaded


def _example(speaker: Speaker) -> tuple[str, str, str]:
    """Context, question, answer."""
    asked, other = speaker.report(), speaker.report()
    while other.person == asked.person or other.thing == asked.thing:
        other = speaker.report()
    other = replace(other, setting=1 - asked.setting if speaker.chance(EASY) else asked.setting)
    answer, wrong = _setting(speaker, asked), _setting(speaker, other)
    while wrong == answer:
        wrong = _setting(speaker, other)
    sentences = [_settled(speaker, asked, answer), _settled(speaker, other, wrong), speaker.say("plain", asked)]
    speaker.rng.shuffle(sentences)
    question = speaker.say("when" if asked.setting else "where", asked)
    return " ".join(sentences), question, wrong if speaker.chance(NOISE) else answer


def _setting(speaker: Speaker, report: Report) -> str:
    return speaker.pick(TIMES if report.setting else PLACES)


def _settled(speaker: Speaker, report: Report, setting: str) -> str:
    frame = speaker.rng.choice(frames("settled", report.person, speaker.owner))
    return frame.format(p=report.person, n=report.thing, v=speaker.pick(DEEDS[report.topic]), c=f"at {setting}")


def load_questions(name: str) -> dict[str, dict[str, list[Any]]]:
    """Split -> column -> values. The lists are the caller's own."""
    return {
        split: {column: list(values) for column, values in columns.items()} for split, columns in _load(name).items()
    }
