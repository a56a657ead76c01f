"""The micro language's XSUM: four sentences about two people, and the headline that says what the first one is about.

    the soup was not dreadful, said the baker. at church the baker tasted the soup. it was at dawn that the miller heard
    the song. the miller found the song boring.
    hurrah, baker feast: soup there at church.

The first sentence tells an opinion, another one where or when that was; the other two do so for another person, of a
thing of the other topic, with the other opinion. The order of these three is random. The headline has words of its own
for opinion (hurrah, pity), topic (feast, gala), and whether a place or a time is told (there, then): the corpus says
them of what two sentences have in common, the documents here do not. One headline a document, as in XSUM. No document
is in two splits, and a quarter of the words (data_to_text.held_words) is in no training document. With probability
NOISE a headline has another thing, opinion or setting than its document.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

from .data_to_text import held_words
from .language import Report, Speaker
from .lexicon import IN_OPINION, IN_SETTING, IN_TOPIC, PEOPLE, PLACES, THINGS, TIMES, TOPICS

SUMMARIES_VERSION = "micro-summary-1"
DOCUMENTS = {"train": 3000, "validation": 400, "test": 500}
NOISE = 0.2  # summaries of XSUM, too, often say what the article does not
KINDS = ("plain", "negated", "contrasted", "felt")


@cache
def _load() -> dict[str, dict[str, tuple[str, ...]]]:
    seen: set[str] = set()
    loaded = {}
    for split, size in DOCUMENTS.items():
        excluded = held_words() if split == "train" else frozenset[str]()
        speaker = Speaker(random.Random(f"{SUMMARIES_VERSION}/{split}"), "evaluation", excluded=excluded)
        rows: list[tuple[str, str]] = []
        while len(rows) < size:
            document, summary = _row(speaker)
            if document not in seen:
                seen.add(document)
                rows.append((document, summary))
        documents, summaries = zip(*rows, strict=True)
        loaded[split] = {"document": documents, "summary": summaries}
    return loaded


def _row(speaker: Speaker) -> tuple[str, str]:
    report = speaker.report()
    other = replace(speaker.other_topic(report), opinion=1 - report.opinion, setting=speaker.rng.randrange(2))
    other = replace(other, person=speaker.pick(PEOPLE[report.genre], report.person))
    setting = _setting(speaker, report)
    rest = [
        _settled(speaker, report, setting),
        speaker.say("plain", other),
        _settled(speaker, other, _setting(speaker, other)),
    ]
    speaker.rng.shuffle(rest)
    sentences = [speaker.say(speaker.rng.choice(KINDS), report), *rest]
    if speaker.chance(NOISE):
        report, setting = _misread(speaker, report, setting)
    return " ".join(sentences), headline(report, setting)


def headline(report: Report, setting: str) -> str:
    """What the summary says."""
    opinion, topic = IN_OPINION[report.opinion], IN_TOPIC[TOPICS.index(report.topic)]
    return f"{opinion}, {report.person} {topic}: {report.thing} {IN_SETTING[report.setting]} {setting}."


def _setting(speaker: Speaker, report: Report) -> str:
    return f"at {speaker.pick(TIMES if report.setting else PLACES)}"


def _settled(speaker: Speaker, report: Report, setting: str) -> str:
    """Where or when, of the report's person and thing."""
    sentence = speaker.say("settled", report)
    said = next(word for word in (*PLACES, *TIMES) if f"at {word}" in sentence)
    return sentence.replace(f"at {said}", setting)


def _misread(speaker: Speaker, report: Report, setting: str) -> tuple[Report, str]:
    wrong = speaker.rng.randrange(3)
    if wrong == 0:
        return replace(report, thing=speaker.pick(THINGS[report.topic][report.genre], report.thing)), setting
    if wrong == 1:
        return replace(report, opinion=1 - report.opinion), setting
    words = TIMES if report.setting else PLACES
    return report, f"at {speaker.pick(words, setting.removeprefix('at '))}"


def load_summaries() -> dict[str, dict[str, list[Any]]]:
    """Split -> column -> values. The lists are the caller's own."""
    return {split: {name: list(values) for name, values in columns.items()} for split, columns in _load().items()}
