"""One run's part in a pack: its configuration, what it trains on, and what it is scored on."""

from dataclasses import dataclass, field

from ..backbones.loading import Backbone
from ..config.schema import RunConfig, others_of
from ..tasks.examples import RunData
from . import Answers, of
from .tokens import Split, Tokens, joined


@dataclass(frozen=True)
class ScoredSplit:
    """A split that a run is scored on, and how it answers there."""

    answers: Answers
    split: Split


@dataclass
class Job:
    """answers: to the run's own task, by which it trains. training: the rows that it trains on. scored: by the split's
    name in the record: <split>, or <name>/<split> of a task that it transfers to. notes: what the log should say of
    what was read."""

    cfg: RunConfig
    answers: Answers
    training: Tokens
    scored: dict[str, ScoredSplit]
    notes: list[str] = field(default_factory=list)


def make_job(cfg: RunConfig, data: RunData, backbone: Backbone, positions: int | None) -> Job:
    """Tokenize all that a run reads. positions: those that its method leaves to the text. Raises DataError."""
    own = of(cfg, cfg.task, backbone, positions)
    splits = own.tokenize(data.own)
    training = splits.pop(cfg.task.train_split).examples
    scored, notes = {name: ScoredSplit(own, split) for name, split in splits.items()}, [*own.notes]
    for name, task in cfg.transfer.items():
        other = of(cfg, task, backbone, positions, own)
        for split_name, split in other.tokenize(data.transfer[name]).items():
            scored[f"{name}/{split_name}"] = ScoredSplit(other, split)
        notes += other.notes
    mixed = [
        of(cfg, task, backbone, positions).tokenize(data.mixture[name])[task.train_split].examples
        for name, task in others_of(cfg).items()
    ]
    return Job(cfg, own, joined([training, *mixed]) if mixed else training, scored, notes)
