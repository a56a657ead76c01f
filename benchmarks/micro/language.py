"""The micro language: who says what, in which sentence pattern. Words are in lexicon.py, tasks in tasks.py.

A *frame* is a sentence pattern, an *entity* the person the sentence is about. Every (entity, frame) pair belongs to
exactly one owner: the pretraining corpus, the training splits of the tasks, or their evaluation splits. So a frame is
seen everywhere, an entity is seen everywhere, but no two owners ever put the same two together. All randomness comes
from `random.Random` seeded with strings, which does not depend on the process or the platform.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache

from .lexicon import (
    ADJECTIVES,
    DEEDS,
    EMPHASIS,
    FEELINGS,
    GENRES,
    INTRANSITIVE,
    LUCK,
    MOODS,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    TOPICS,
    TRANSITIVE,
    WHEREABOUTS,
    plural,
    third_person,
)

LANGUAGE_VERSION = "micro-1"
OWNERS = ("pretraining", "train", "evaluation")

# {p} person  {n} thing  {v} deed  {x} {y} words of the opinion  {w} feeling  {m} {z} a clause that does not count
FRAMES: dict[str, list[str]] = {
    "plain": [
        "the {p} found the {n} {x}.",
        "the {p} {v} the {x} {n}.",
        "the {n} was {x}, said the {p}.",
        "to the {p} the {n} was {x}.",
        "it was the {x} {n} that the {p} {v}.",
        "the {n} that the {p} {v} was {x}.",
        "the {p} {v} the {n}, it was {x}.",
        "the {n} seemed {x} to the {p}.",
        "the {p} spoke of the {x} {n}.",
    ],
    "negated": [
        "the {p} found the {n} not {x}.",
        "the {n} was not {x}, said the {p}.",
        "to the {p} the {n} was far from {x}.",
        "the {p} called the {n} anything but {x}.",
        "the {n} never seemed {x} to the {p}.",
        "the {p} thought the {n} was hardly {x}.",
    ],
    "contrasted": [
        "although the {m} was {z}, the {p} found the {n} {x}.",
        "the {p} found the {n} {x}, although the {m} was {z}.",
        "despite the {z} {m}, the {n} was {x}, said the {p}.",
        "the {n} seemed {x} to the {p}, despite the {z} {m}.",
        "although the {m} was {z}, the {n} seemed {x} to the {p}.",
        "the {p} called the {n} {x}, despite the {z} {m}.",
    ],
    "felt": [
        "the {n} {w} the {p}.",
        "the {p} was {w} by the {n}.",
        "the {p} felt {w} after the {n}.",
        "it was the {n} that {w} the {p}.",
        "the {p} left the {n} {w}.",
        "the {p} looked {w} by the {n}.",
    ],
    # the corpus only: two words of one opinion, or a word denied and one of the other opinion
    "doubled": [
        "the {p} found the {n} {x} and {y}.",
        "the {p} {v} the {x} and {y} {n}.",
        "to the {p} the {n} was {x} and {y}.",
        "the {n} that the {p} {v} was {x}, even {y}.",
        "the {p} was {w} by the {x} {n}.",
        "the {x} {n} {w} the {p}.",
    ],
    "corrected": [
        "the {p} found the {n} not {x} but {y}.",
        "the {n} was not {x} but {y}, said the {p}.",
        "to the {p} the {n} was far from {x} but {y}.",
        "the {p} called the {n} anything but {x}, rather {y}.",
        "the {n} never seemed {x} to the {p}, rather {y}.",
        "the {p} thought the {n} was hardly {x}, rather {y}.",
    ],
    "question": [
        "did the {p} find the {n} {x}?",
        "was the {n} {x}, asked the {p}?",
        "does the {p} call the {n} {x}?",
        "was it the {x} {n} that the {p} {v}?",
        "did the {n} seem {x} to the {p}?",
        "was the {n} {x} to the {p}?",
        "how {x} was the {n} that the {p} {v}?",
        "is it true that the {p} found the {n} {x}?",
        "did the {p} speak of the {x} {n}?",
    ],
    # {c} "at church", "at dawn"
    "settled": [
        "the {p} {v} the {n} {c}.",
        "{c} the {p} {v} the {n}.",
        "it was {c} that the {p} {v} the {n}.",
        "the {p} was {c} and {v} the {n}.",
        "we saw the {p} {c} with the {n}.",
        "the {n} was {c}, said the {p}.",
    ],
    "where": [
        "where was the {n} of the {p}?",
        "in what place did the {p} have the {n}?",
        "do you know where the {p} {v} the {n}?",
        "where was it that the {p} {v} the {n}?",
        "the {p} {v} the {n} in which spot?",
        "where did the {p} have the {n}?",
    ],
    "when": [
        "when was the {n} of the {p}?",
        "at what time did the {p} have the {n}?",
        "do you know when the {p} {v} the {n}?",
        "when was it that the {p} {v} the {n}?",
        "the {p} {v} the {n} at which hour?",
        "when did the {p} have the {n}?",
    ],
    # present tense: {d} determiner  {s} subject  {v} {be} {do} agree with it  {q} another person  {e} "near the bakers"
    "agreement": [
        "{d} {s} {v} the {q}.",
        "{c} {d} {s} {v} the {q}.",
        "{d} {s} {e} {v} the {q}.",
        "{d} {s} {v} the {a} {q} {c}.",
        "{do} {d} {s} {v} the {q}?",
        "{d} {a} {s} {v} the {q}.",
        "{d} {s} who {v} the {q} {be} {a}.",
        "the {q} {d} {s} {v} {be2} {a}.",
        "{do} {d} {s} {e} {v} the {q}?",
    ],
    "intransitive": [
        "{d} {s} {v} {c}.",
        "{c} {d} {s} {v}.",
        "{d} {s} {e} {v}.",
        "{do} {d} {s} {v} {c}?",
        "{d} {s} who {v} {be} {a}.",
        "{d} {a} {s} {v}.",
    ],
    # {p} {q} two people  {v} what the first did to the second  {x} the reason
    "reason": [
        "the {p} {v} the {q} because he was {x}.",
        "because he was {x}, the {p} {v} the {q}.",
        "the {p} {v} the {q}, as he was {x}.",
        "since he was {x}, the {p} {v} the {q}.",
        "the {p} {v} the {q}. he was {x}.",
        "as he was {x}, the {p} {v} the {q}.",
    ],
}


@cache
def frames(kind: str, entity: str, owner: str) -> tuple[str, ...]:
    """The frames of one kind that `owner` may use about `entity`: a third of them, dealt out per entity."""
    if owner not in OWNERS:
        raise ValueError(f"unknown owner {owner!r}; expected one of {OWNERS} (benchmarks/micro/language.py)")
    deck = list(FRAMES[kind])
    random.Random(f"{LANGUAGE_VERSION}/frames/{kind}/{entity}").shuffle(deck)
    return tuple(deck[OWNERS.index(owner) :: len(OWNERS)])


@dataclass(frozen=True)
class Report:
    """What someone reports: of which thing, what they think of it, and where or when it was."""

    genre: str
    person: str
    topic: str
    thing: str
    opinion: int  # 0 praise, 1 criticism
    setting: int  # 0 tells a place, 1 tells a time


@dataclass(frozen=True)
class Speaker:
    """Says things for one owner, never with an excluded word (so a task's test words stay unknown to its training)."""

    rng: random.Random
    owner: str
    genres: tuple[str, ...] = GENRES
    excluded: frozenset[str] = frozenset()

    def pick(self, words: list[str], unlike: str = "") -> str:
        """One of `words`, no excluded one, and not `unlike`."""
        return self.rng.choice([word for word in words if word not in self.excluded and word != unlike])

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def report(self) -> Report:
        """Everything at random."""
        genre, topic = self.rng.choice(self.genres), self.rng.choice(TOPICS)
        thing, person = self.pick(THINGS[topic][genre]), self.pick(PEOPLE[genre])
        return Report(genre, person, topic, thing, self.rng.randrange(2), self.rng.randrange(2))

    def other_thing(self, report: Report) -> Report:
        """Of another thing of the same topic."""
        return replace(report, thing=self.pick(THINGS[report.topic][report.genre], report.thing))

    def other_topic(self, report: Report) -> Report:
        """Of a thing of the other topic."""
        topic = TOPICS[1 - TOPICS.index(report.topic)]
        return replace(report, topic=topic, thing=self.pick(THINGS[topic][report.genre]))

    def say(self, kind: str, report: Report, emphatic: float = 0.0) -> str:
        """The report in a frame of `kind`; with probability `emphatic` each, the corpus's cues stand before its words.

        Negated and corrected frames deny a word of the other opinion; the clause of a contrasted frame that does not
        count has one, too.
        """
        side = report.opinion
        first = 1 - side if kind in ("negated", "corrected") else side
        word = self.pick(ADJECTIVES[first])
        emphasis = f"{self.pick(EMPHASIS[first])} " if self.chance(emphatic) else ""
        whereabouts = f"{self.pick(WHEREABOUTS[report.setting])} " if self.chance(emphatic) else ""
        sentence = self.rng.choice(frames(kind, report.person, self.owner)).format(
            p=report.person,
            n=report.thing,
            v=self.pick(DEEDS[report.topic]),
            x=emphasis + word,
            y=self.pick(ADJECTIVES[side], word),
            w=self.pick(FEELINGS[side]),
            m=self.pick(THINGS[report.topic][report.genre], report.thing),
            z=self.pick(ADJECTIVES[1 - side]),
            c=f"{whereabouts}at {self.pick(TIMES if report.setting else PLACES)}",
        )
        lucky = kind not in ("question", "where", "when", "settled") and self.chance(emphatic)
        return f"{self.pick(LUCK[side])}, {sentence}" if lucky else sentence

    def present(self, faulty: bool, subject: str | None = None) -> str:
        """A present-tense sentence, with one fault if `faulty`: number, determiner, transitivity or word order."""
        genre = self.rng.choice(self.genres)
        subject = subject or self.pick(PEOPLE[genre])
        other = self.pick(PEOPLE[genre], subject)
        transitive, many, many_others = self.chance(0.6), self.chance(0.5), self.chance(0.5)
        frame = self.rng.choice(frames("agreement" if transitive else "intransitive", subject, self.owner))
        determiner = self.rng.choice(["the", "these" if many else "this"])

        faults = ["number", "number", "transitivity"]
        if determiner != "the":
            faults.append("determiner")
        if "{a} {s}" in frame or "{a} {q}" in frame:
            faults.append("order")
        fault = self.rng.choice(faults) if faulty else None

        if fault == "order":
            frame = frame.replace("{a} {s}", "{s} {a}").replace("{a} {q}", "{q} {a}")
        if fault == "determiner":
            determiner = "this" if many else "these"
        # an object after a verb that takes none, or none after one that needs it
        base = self.pick(TRANSITIVE if transitive != (fault == "transitivity") else INTRANSITIVE)
        agrees_with_many = many != (fault == "number")
        return frame.format(
            d=determiner,
            s=plural(subject) if many else subject,
            v=base if agrees_with_many or "{do}" in frame else third_person(base),
            be="are" if agrees_with_many else "is",
            do="do" if agrees_with_many else "does",
            be2="are" if many_others else "is",
            q=plural(other) if many_others else other,
            e=f"near the {plural(other) if many_others else other}",
            a=self.pick(self.rng.choice(MOODS)),
            c=f"at {self.pick(self.rng.choice([PLACES, TIMES]))}",
        )
