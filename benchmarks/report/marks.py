"""The marks of what is suspicious about a run, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable

MARKS = {
    "one_class_predictions": ("ᶜ", "a run predicts one class throughout"),
    "parameters_did_not_move": ("ᵐ", "a run's trained tensors did not move"),
    "nan_loss": ("ⁿ", "a run's loss was NaN"),
    "one_text_throughout": ("ᵗ", "a run writes the same text for every input"),
    "outputs_cut_off": ("ᵉ", "some output of a run came to no end and was cut off"),
    "fewer_examples": ("ˡ", "some question had no room for all examples before it"),
    "questions_cut_off": ("ᵏ", "some question had no room even without examples and lost words"),
    "illegal_answers": ("ⁱ", "a run gives answers that are no label"),
    "stale": (
        "ˢ",
        "stale: a run from before tokenizer and config.json of its backbone counted; its command makes another one",
    ),
    "not_scored_without_java": ("ʲ", "METEOR of a run was not computed: no Java"),
}
OTHER_MARK = "ˣ"
# Of a run that may be compared: nobody names the commit that is the published one. A flag is the kind and the commit.
UNPINNED = {"unpinned_weights": "ᵘ", "unpinned_data": "ᵈ"}


def unpinned(kind: str, commit: str | None) -> str:
    """The flag of a run whose weights or data are of a commit that conf/pins.yaml does not name."""
    return f"unpinned_{kind}:{commit or 'unknown'}"


def is_suspicious(flag: str) -> bool:
    """Whether no difference is printed of a run with this flag."""
    return flag.partition(":")[0] not in UNPINNED


def mark(flag: str) -> tuple[str, str]:
    """A flag of a run: its mark, and what it means."""
    kind, _, commit = flag.partition(":")
    if kind in UNPINNED:
        return UNPINNED[kind], f"{kind.replace('_', ' ')}, commit {commit}: which one is the published is not known"
    return MARKS.get(flag, (OTHER_MARK, flag.replace("_", " ")))


def marks_legend(flags: Iterable[str]) -> list[str]:
    """A line for each mark that is used."""
    return [f"{sign} {meaning}." for sign, meaning in dict.fromkeys(mark(flag) for flag in flags)]
