"""Notes and what they became: documents that only the micro GPT-2 is pretrained on, beside the corpus.

A line of catchwords, in any order and form, then the sentences that say them: what web text teaches a GPT-2 and the
corpus (corpus.py) does not, that a word given before may have to be said again. Without them no method, full
fine-tuning included, makes micro GPT-2 carry words of a meaning representation over (BLEU 0.17). The forms of the lines
are not the task's, the frames of the sentences are the corpus's own share (language.frames).
"""

from __future__ import annotations

import random
from functools import cache

from .language import LANGUAGE_VERSION, Speaker, frames
from .lexicon import ADJECTIVES, DEEDS, PLACES, TIMES

NOTES = {"train": 60_000, "validation": 1_500}


@cache
def notes(split: str) -> tuple[str, ...]:
    """The documents of one split ("train" or "validation"): a line of catchwords and a line of text."""
    if split not in NOTES:
        raise ValueError(f"unknown notes split {split!r}; expected one of {sorted(NOTES)}")
    speaker = Speaker(random.Random(f"{LANGUAGE_VERSION}/notes/{split}"), "pretraining")
    return tuple(_note(speaker) for _ in range(NOTES[split]))


def _note(speaker: Speaker) -> str:
    report = speaker.report()
    deed, word = speaker.pick(DEEDS[report.topic]), speaker.pick(ADJECTIVES[report.opinion])
    setting = f"at {speaker.pick(TIMES if report.setting else PLACES)}"
    filled = {"p": report.person, "n": report.thing, "v": deed, "x": word, "c": setting}
    said = [("plain", "{x}"), ("settled", "{c}")]
    speaker.rng.shuffle(said)
    sentences, told = [], {"p", "n"}
    for kind, _ in said[: speaker.rng.randint(1, 2)]:
        frame = speaker.rng.choice(frames(kind, report.person, speaker.owner))
        told |= {slot for slot in filled if f"{{{slot}}}" in frame}
        sentences.append(frame.format(**filled))
    catchwords = [filled[slot] for slot in sorted(told)]
    speaker.rng.shuffle(catchwords)
    joined = speaker.rng.choice([", ", "; ", " and ", " - ", ". "]).join(catchwords)
    head = speaker.rng.choice(["", "note: ", "of ", "words: ", "about "])
    tail = speaker.rng.choice([".", ":", " -", ""])
    return f"{head}{joined}{tail}\n{' '.join(sentences)}"
