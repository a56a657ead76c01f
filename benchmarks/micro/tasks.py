"""Nine labelled tasks of the micro language, with the column names, label encodings and split names of GLUE on the hub.

task   columns                      labels                                 noise   ceiling
cola   sentence                     0 unacceptable, 1 acceptable            3%      0.97 accuracy
sst2   sentence                     0 negative, 1 positive                  7%      0.93
mrpc   sentence1, sentence2         0 not equivalent, 1 equivalent          8%      0.92
stsb   sentence1, sentence2         0.0 to 5.0                              sd 0.9  0.93 Pearson (about)
qqp    question1, question2         0 not duplicate, 1 duplicate            8%      0.92
mnli   premise, hypothesis          0 entailment, 1 neutral, 2 contradiction 8%     0.92
qnli   question, sentence           0 entailment, 1 not entailment          8%      0.92
rte    sentence1, sentence2         0 entailment, 1 not entailment          8%      0.92
wnli   sentence1, sentence2         0 not entailment, 1 entailment          40%     0.60 (not calibrated: near chance)

Every split has labels, the test split too. With probability `noise` a label is replaced by another one, in training
and in evaluation alike, so no classifier can be expected above the ceiling. Words in `held_words(task)` occur in no
training item and are as frequent as others in evaluation: only pretraining can teach them. Training and evaluation
never use the same frame about the same entity (language.frames). The mismatched splits of MNLI are about the sea, its
training about the town.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from .language import Report, Speaker, frames
from .lexicon import (
    ADJECTIVES,
    DEEDS,
    FEELINGS,
    GENRES,
    INTRANSITIVE,
    PEOPLE,
    PLACES,
    THINGS,
    TIMES,
    TRANSITIVE,
)

# The tasks may change (and then this does) while the language of the backbones (language.py) stays.
TASKS_VERSION = "micro-2"
# Share of one class that is easy where opinions are compared or a question is answered: one sentence alone gives these
# items away. Without them full fine-tuning gets over its plateau for some seeds only.
EASY = 0.3
SIMILARITIES = (0.0, 1.0, 4.0, 5.0)
SIZES = {"train": 2400, "validation": 500, "test": 2000}

Label = int | float
Texts = tuple[str, ...]


@dataclass(frozen=True)
class MicroTask:
    """One task: `make(speaker, label)` gives the texts of an item whose label, before noise, is `label`."""

    columns: tuple[str, ...]
    labels: int | None  # classes, or None for a score from 0 to 5
    noise: float  # probability of a wrong label; standard deviation for a score
    held: float  # share of each word class kept out of training
    make: Callable[[Speaker, Label], Texts]
    train: int = SIZES["train"]


def _cola(speaker: Speaker, label: Label) -> Texts:
    return (speaker.present(faulty=label == 0),)


def _aside(speaker: Speaker, report: Report) -> str:
    """At the head of a sentence, a thing and an opinion that do not count: "after the awful soup, ".

    The corpus has none. A fixed backbone adds them to what a sentence is about; one that is trained leaves them out.
    """
    other = speaker.other_topic(report) if speaker.chance(0.5) else speaker.other_thing(report)
    return f"after the {speaker.pick(ADJECTIVES[speaker.rng.randrange(2)])} {other.thing}, "


def _say(speaker: Speaker, kind: str, report: Report, aside: float) -> str:
    """The report in a frame of `kind`, with probability `aside` after an aside."""
    before = _aside(speaker, report) if speaker.chance(aside) else ""
    return before + speaker.say(kind, report)


def _sst2(speaker: Speaker, label: Label) -> Texts:
    report = replace(speaker.report(), opinion=1 - int(label))
    kind = speaker.rng.choices(["plain", "felt", "negated", "contrasted"], [0.2, 0.1, 0.35, 0.35])[0]
    return (_say(speaker, kind, report, aside=0.4),)


def _pair(speaker: Speaker, first: Report, second: Report) -> Texts:
    return speaker.say("plain", first), speaker.say("plain", second)


def _opposite(report: Report) -> Report:
    return replace(report, opinion=1 - report.opinion)


def _mrpc(speaker: Speaker, label: Label) -> Texts:
    """Equivalent if both say or feel the same; the others contradict each other, or the second has no opinion."""
    first = speaker.report()
    second = speaker.other_thing(first)
    kinds = ["felt" if speaker.chance(0.4) else "plain" for _ in range(2)]
    if label == 0 and speaker.chance(EASY):
        return speaker.say(kinds[0], first), speaker.say("settled", second)
    return speaker.say(kinds[0], first), speaker.say(kinds[1], second if label == 1 else _opposite(second))


def _stsb(speaker: Speaker, label: Label) -> Texts:
    """4 points for the same opinion, 1 for the same topic."""
    first = speaker.report()
    second = speaker.other_thing(first) if label in (1.0, 5.0) else speaker.other_topic(first)
    if label in (0.0, 1.0) and speaker.chance(EASY):
        return speaker.say("plain", first), speaker.say("settled", second)
    return _pair(speaker, first, second if label in (4.0, 5.0) else _opposite(second))


def _qqp(speaker: Speaker, label: Label) -> Texts:
    """Duplicates ask for opinions of the same topic."""
    first = speaker.report()
    second = speaker.other_thing(first) if label == 1 else speaker.other_topic(first)
    return _say(speaker, "question", first, aside=0.5), _say(speaker, "question", second, aside=0.5)


def _ask(speaker: Speaker, report: Report) -> str:
    return speaker.say("when" if report.setting else "where", report)


def _qnli(speaker: Speaker, label: Label) -> Texts:
    """A sentence answers the question if it tells a place where one is asked for, and a time likewise."""
    asked = speaker.report()
    if label == 1 and speaker.chance(EASY):
        return _ask(speaker, asked), speaker.say("plain", asked)
    told = replace(asked, setting=1 - asked.setting) if label == 1 else asked
    return _ask(speaker, asked), speaker.say("settled", told)


def _mnli(speaker: Speaker, label: Label) -> Texts:
    """The hypothesis has the premise's opinion (0), no opinion (1), or the other one (2), of a thing of its topic."""
    first = speaker.report()
    second = speaker.other_thing(first)
    third = _opposite(second) if label == 2 else second
    return speaker.say("plain", first), speaker.say("settled" if label == 1 else "plain", third)


def _rte(speaker: Speaker, label: Label) -> Texts:
    """MNLI with two classes: entailed if the opinion is the same, not if it is the other one or there is none."""
    first = speaker.report()
    second = speaker.other_thing(first)
    if label == 1 and speaker.chance(EASY):
        return speaker.say("plain", first), speaker.say("settled", second)
    return _pair(speaker, first, second if label == 0 else _opposite(second))


# what the first did to the second -> reasons that lie with the first, reasons that lie with the second
_REASONS = {
    "helped": (["kind", "generous"], ["weak", "hungry"]),
    "thanked": (["grateful", "polite"], ["helpful", "brave"]),
    "scolded": (["strict", "furious"], ["careless", "late"]),
    "envied": (["sullen", "bitter"], ["rich", "famous"]),
}


def _wnli(speaker: Speaker, label: Label) -> Texts:
    genre = speaker.rng.choice(speaker.genres)
    first = speaker.pick(PEOPLE[genre])
    second = speaker.pick(PEOPLE[genre], first)
    verb = speaker.rng.choice(list(_REASONS))
    of_second = speaker.chance(0.5)
    reason = speaker.rng.choice(_REASONS[verb][of_second])
    frame = speaker.rng.choice(frames("reason", first, speaker.owner))
    who = (second if of_second else first) if label == 1 else (first if of_second else second)
    return frame.format(p=first, v=verb, q=second, x=reason), f"the {who} was {reason}."


TASKS: dict[str, MicroTask] = {
    "cola": MicroTask(("sentence",), 2, 0.03, 0.25, _cola, train=3200),
    "sst2": MicroTask(("sentence",), 2, 0.07, 0.35, _sst2),
    "mrpc": MicroTask(("sentence1", "sentence2"), 2, 0.08, 0.35, _mrpc),
    "stsb": MicroTask(("sentence1", "sentence2"), None, 0.9, 0.35, _stsb),
    "qqp": MicroTask(("question1", "question2"), 2, 0.08, 0.35, _qqp, train=3200),
    "mnli": MicroTask(("premise", "hypothesis"), 3, 0.08, 0.35, _mnli, train=3200),
    "qnli": MicroTask(("question", "sentence"), 2, 0.08, 0.35, _qnli),
    "rte": MicroTask(("sentence1", "sentence2"), 2, 0.08, 0.35, _rte),
    "wnli": MicroTask(("sentence1", "sentence2"), 2, 0.4, 0.0, _wnli, train=640),
}

_WORD_CLASSES: list[list[str]] = [
    *(*ADJECTIVES, *FEELINGS, *DEEDS.values(), *PEOPLE.values()),
    *(things for genres in THINGS.values() for things in genres.values()),
    *(PLACES, TIMES, TRANSITIVE, INTRANSITIVE),
]


@cache
def held_words(task: str) -> frozenset[str]:
    """The words (present-tense verbs in base form) that no training item of `task` contains."""
    rng = random.Random(f"{TASKS_VERSION}/{task}/held")
    share = _task(task).held
    return frozenset(word for words in _WORD_CLASSES for word in rng.sample(words, round(share * len(words))))


def splits(task: str) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Split -> number of items and the genres they are about."""
    size = _task(task).train
    if task != "mnli":
        return {name: (size if name == "train" else SIZES[name], GENRES) for name in ("train", "validation", "test")}
    town, sea = GENRES[:1], GENRES[1:]
    matched = {f"{name}_matched": (SIZES[name], town) for name in ("validation", "test")}
    mismatched = {f"{name}_mismatched": (SIZES[name], sea) for name in ("validation", "test")}
    training: dict[str, tuple[int, tuple[str, ...]]] = {"train": (size, town)}
    return training | matched | mismatched


@cache
def _load(task: str) -> dict[str, dict[str, tuple[Any, ...]]]:
    description = _task(task)
    seen: set[Texts] = set()
    loaded = {}
    for split, (size, genres) in splits(task).items():
        training = split == "train"
        speaker = Speaker(
            rng=random.Random(f"{TASKS_VERSION}/{task}/{split}"),
            owner="train" if training else "evaluation",
            genres=genres,
            excluded=held_words(task) if training else frozenset(),
        )
        items: list[tuple[Texts, Label]] = []
        while len(items) < size:
            # labels in turn, so that every split is balanced before noise
            true: Label = len(items) % description.labels if description.labels else SIMILARITIES[len(items) % 4]
            texts = description.make(speaker, true)
            if texts in seen or len(set(texts)) < len(texts):
                continue
            seen.add(texts)
            items.append((texts, _noisy(speaker.rng, description, true)))
        speaker.rng.shuffle(items)
        columns: dict[str, tuple[Any, ...]] = {
            name: tuple(texts[i] for texts, _ in items) for i, name in enumerate(description.columns)
        }
        loaded[split] = columns | {"label": tuple(label for _, label in items), "idx": tuple(range(size))}
    return loaded


def load_micro(task: str) -> dict[str, dict[str, list[Any]]]:
    """Split -> column -> values: the task's text columns, `label` and `idx`. The lists are the caller's own."""
    return {split: {name: list(values) for name, values in columns.items()} for split, columns in _load(task).items()}


def _noisy(rng: random.Random, description: MicroTask, true: Label) -> Label:
    if description.labels is None:  # a human average: a fifth of a point is the finest STS-B gives
        return round(min(5.0, max(0.0, rng.gauss(true, description.noise))) * 5) / 5
    if rng.random() >= description.noise:
        return true
    return (int(true) + rng.randrange(1, description.labels)) % description.labels


def _task(task: str) -> MicroTask:
    if task not in TASKS:
        raise ValueError(f"unknown micro task {task!r}; expected one of {sorted(TASKS)} (benchmarks/micro/tasks.py)")
    return TASKS[task]
