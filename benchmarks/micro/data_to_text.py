"""The micro language's E2E: a meaning representation of some slots, to be said in one or two sentences.

    person : baker | thing : soup | view : lovely | deed : tasted | setting : at church
    the soup that the baker tasted was lovely. at church the baker tasted the soup.

Columns, and the several references of an input, as in E2E on the hub. An input always has person, thing and view; deed
and setting half the time each. No input is in two splits, and a quarter of the words is in no training input: that a
word of the source has to be said, known or not, is what there is to learn. Unlike the labelled tasks, training and
evaluation share their frames (none of which pretraining used about the same person), since references are compared by
their words. With probability NOISE a reference says another thing, view, deed or setting than its input.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from .language import OWNERS, Speaker, frames
from .lexicon import ADJECTIVES, DEEDS, PEOPLE, PLACES, THINGS, TIMES

DATA_TO_TEXT_VERSION = "micro-text-1"
REFERENCES = 4  # of each input
INPUTS = {"train": 1500, "validation": 100, "test": 500}
NOISE = 0.08
HELD = 0.25  # share of each word class that no training input has
SLOTS = {"p": "person", "n": "thing", "x": "view", "v": "deed", "c": "setting"}


@cache
def held_words() -> frozenset[str]:
    """The words that no training input contains."""
    rng = random.Random(f"{DATA_TO_TEXT_VERSION}/held")
    classes = [*ADJECTIVES, *DEEDS.values(), *PEOPLE.values(), PLACES, TIMES]
    classes += [things for genres in THINGS.values() for things in genres.values()]
    return frozenset(word for words in classes for word in rng.sample(words, round(HELD * len(words))))


@cache
def _load() -> dict[str, dict[str, tuple[str, ...]]]:
    seen: set[tuple[str, ...]] = set()
    loaded = {}
    for split, size in INPUTS.items():
        excluded = held_words() if split == "train" else frozenset[str]()
        speaker = Speaker(random.Random(f"{DATA_TO_TEXT_VERSION}/{split}"), "evaluation", excluded=excluded)
        rows: list[tuple[str, str]] = []
        while len(rows) < size * REFERENCES:
            meaning = _meaning(speaker)
            if tuple(meaning.values()) not in seen:
                seen.add(tuple(meaning.values()))
                line = " | ".join(f"{name} : {meaning[slot]}" for slot, name in SLOTS.items() if slot in meaning)
                rows += [(line, _reference(speaker, meaning)) for _ in range(REFERENCES)]
        sources, targets = zip(*rows, strict=True)
        loaded[split] = {"meaning_representation": sources, "human_reference": targets}
    return loaded


def _meaning(speaker: Speaker) -> dict[str, str]:
    report = speaker.report()
    said = {"p": report.person, "n": report.thing, "x": speaker.pick(ADJECTIVES[report.opinion])}
    if speaker.chance(0.5):
        said["v"] = speaker.pick(DEEDS[report.topic])
    if speaker.chance(0.5):
        said["c"] = f"at {speaker.pick(TIMES if report.setting else PLACES)}"
    return said


def _reference(speaker: Speaker, meaning: dict[str, str]) -> str:
    """One way to say it, the opinion first; a deed that the input has is said, one that it lacks is not."""
    said = _misread(speaker, meaning) if speaker.chance(NOISE) else meaning
    sentences = [_sentence(speaker, "plain", said)]
    if "c" in said:
        sentences.append(_sentence(speaker, "settled", said))
    return " ".join(sentences)


def _sentence(speaker: Speaker, kind: str, said: dict[str, str]) -> str:
    """A frame of those that pretraining did not use about this person, and whose slots the meaning has.

    Where the pretraining's share leaves none that says the deed (or none without one), any frame left will do.
    """
    own = [frame for owner in OWNERS[1:] for frame in frames(kind, said["p"], owner)]
    possible = [frame for frame in own if "{v}" not in frame or "v" in said]
    wanted = [frame for frame in possible if ("{v}" in frame) == ("v" in said)]
    return speaker.rng.choice(wanted or possible or ["the {n} was {c}, said the {p}."]).format(**said)


def _misread(speaker: Speaker, meaning: dict[str, str]) -> dict[str, str]:
    """One slot, the person apart, with another word of the same class."""
    slot = speaker.rng.choice([slot for slot in meaning if slot != "p"])
    word = meaning[slot].removeprefix("at ")
    classes = [*ADJECTIVES, *DEEDS.values(), PLACES, TIMES]
    classes += [things for genres in THINGS.values() for things in genres.values()]
    (words,) = (words for words in classes if word in words)
    return meaning | {slot: ("at " if slot == "c" else "") + speaker.pick(words, word)}


def load_data_to_text() -> dict[str, dict[str, list[Any]]]:
    """Split -> column -> values, a row per reference. The lists are the caller's own."""
    return {split: {name: list(values) for name, values in columns.items()} for split, columns in _load().items()}
