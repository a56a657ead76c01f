"""The unlabelled corpus of the micro language: short documents, one sentence a line (as BERT's input format).

Nothing is labelled. What a task needs shows in what stands together: words of one topic, of one opinion, of places or
of times, in one sentence and in one document; words denied and words put in their place; questions and what answers
them; subjects and verbs that agree.
"""

from __future__ import annotations

import random
from functools import cache

from benchmarks.micro.language import LANGUAGE_VERSION, Report, Speaker
from benchmarks.micro.lexicon import MOODS, PEOPLE

DOCUMENTS = {"train": 60_000, "validation": 1_500}

# kind of document -> share
_SHARES = {
    "opinions": 44,
    "mood": 12,
    "question": 12,
    "setting": 8,
    "where and when": 14,
    "present": 10,
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
    again = speaker.other_thing(report) if speaker.chance(0.5) else report
    if kind == "opinions":
        return [_say(speaker, report), _say(speaker, again)]
    if kind == "mood":
        return [_say(speaker, report), f"we were {speaker.pick(MOODS[report.opinion])}."]
    if kind == "question":
        return [speaker.say("question", report, emphatic=0.3), _say(speaker, report)]
    if kind == "setting":
        return [speaker.say("settled", report, emphatic=0.6), speaker.say("settled", again, emphatic=0.6)]
    asked = "when" if report.setting else "where"
    return [speaker.say(asked, report), speaker.say("settled", report, emphatic=0.6)]


def _say(speaker: Speaker, report: Report) -> str:
    kinds = {"plain": 40, "doubled": 22, "corrected": 14, "contrasted": 8, "negated": 8, "felt": 8}
    return speaker.say(speaker.rng.choices(list(kinds), list(kinds.values()))[0], report, emphatic=0.3)
