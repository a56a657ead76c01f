"""The unlabelled corpus of the micro language: short documents, one sentence a line (as BERT's input format).

Nothing is labelled. What a task needs shows in what stands together: words of one topic, of one opinion, of places or
of times, in one list, one sentence and one document; words denied and words put in their place; questions and what
answers them; words for what two sentences have in common; subjects and verbs that agree.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

from .language import LANGUAGE_VERSION, Report, Speaker
from .lexicon import (
    ADJECTIVES,
    DEEDS,
    FEELINGS,
    IN_OPINION,
    IN_SETTING,
    IN_TOPIC,
    MOODS,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    TOPICS,
)

DOCUMENTS = {"train": 60_000, "validation": 1_500}

# kind of document -> share
_SHARES = {
    "opinions": 46,
    "questions": 10,
    "mood": 6,
    "answer": 6,
    "settings": 6,
    "where and when": 14,
    "present": 20,
    "lists": 28,
}


@cache
def corpus(split: str) -> tuple[str, ...]:
    """The documents of one split ("train" or "validation"), each of two sentences on lines of their own."""
    if split not in DOCUMENTS:
        raise ValueError(f"unknown corpus split {split!r}; expected one of {sorted(DOCUMENTS)}")
    speaker = Speaker(random.Random(f"{LANGUAGE_VERSION}/corpus/{split}"), "pretraining")
    kinds = speaker.rng.choices(list(_SHARES), list(_SHARES.values()), k=DOCUMENTS[split])
    return tuple("\n".join(_document(speaker, kind)) for kind in kinds)


def _document(speaker: Speaker, kind: str) -> list[str]:
    if kind == "present":
        subject = speaker.pick(PEOPLE[speaker.rng.choice(speaker.genres)])
        return [speaker.present(faulty=False, subject=subject) for _ in range(2)]
    report = speaker.report()
    if kind == "lists":
        return [_list(speaker, report), _list(speaker, report)]
    if kind == "opinions":
        second = _related(speaker, report)
        marks = _mark(speaker, IN_TOPIC, _topic(report), _topic(second)) + _mark(
            speaker, IN_OPINION, report.opinion, second.opinion
        )
        return [_say(speaker, report), marks + _say(speaker, second)]
    if kind == "questions":
        second = _related(speaker, report)
        mark = _mark(speaker, IN_TOPIC, _topic(report), _topic(second))
        return [speaker.say("question", report), mark + speaker.say("question", second)]
    if kind == "mood":
        return [_say(speaker, report), f"we were {speaker.pick(MOODS[report.opinion])}."]
    if kind == "answer":
        return [speaker.say("question", report, emphatic=0.3), _say(speaker, report)]
    if kind == "settings":
        again = speaker.other_thing(report)
        return [speaker.say("settled", report, emphatic=0.6), speaker.say("settled", again, emphatic=0.6)]
    asked = speaker.say("when" if report.setting else "where", report)
    told = replace(report, setting=1 - report.setting) if speaker.chance(0.35) else report
    mark = _mark(speaker, IN_SETTING, report.setting, told.setting)
    return [asked, mark + speaker.say("settled", told, emphatic=0.3)]


def _list(speaker: Speaker, report: Report) -> str:
    """Words of one class one after the other: of one topic, one opinion, places or times."""
    things = _enumeration(speaker, THINGS[report.topic][report.genre], "the ")
    deeds = _enumeration(speaker, DEEDS[report.topic])
    adjectives = _enumeration(speaker, ADJECTIVES[report.opinion])
    feelings = _enumeration(speaker, FEELINGS[report.opinion])
    settings = _enumeration(speaker, TIMES if report.setting else PLACES, "at ")
    return speaker.rng.choice(
        [
            f"the {report.person} {deeds} {things}.",
            f"{things} were {adjectives}.",
            f"the {report.person} was {feelings}, it was {adjectives}.",
            f"the {report.person} was {settings}.",
        ]
    )


def _enumeration(speaker: Speaker, words: list[str], before: str = "") -> str:
    chosen = [before + word for word in speaker.rng.sample(words, speaker.rng.randint(2, 4))]
    return f"{', '.join(chosen[:-1])} and {chosen[-1]}"


def _related(speaker: Speaker, report: Report) -> Report:
    """A second report, of the same topic or opinion more often than not."""
    second = speaker.other_thing(report) if speaker.chance(0.7) else report
    if speaker.chance(0.35):
        second = speaker.other_topic(second)
    return replace(second, opinion=1 - second.opinion) if speaker.chance(0.35) else second


def _topic(report: Report) -> int:
    return TOPICS.index(report.topic)


def _mark(speaker: Speaker, words: tuple[str, str, str], first: int, second: int) -> str:
    """The word for what two sentences have in common, most of the time."""
    return f"{words[first] if first == second else words[2]}, " if speaker.chance(0.8) else ""


def _say(speaker: Speaker, report: Report) -> str:
    kinds = {"plain": 40, "doubled": 22, "corrected": 14, "contrasted": 8, "negated": 8, "felt": 8}
    return speaker.say(speaker.rng.choices(list(kinds), list(kinds.values()))[0], report, emphatic=0.3)
