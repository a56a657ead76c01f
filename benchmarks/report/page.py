"""What pages are made from, and what a page is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from .reference import Reference

_SCALES = ("micro", "small", "paper")  # in this order, others behind them
Experiments = frozenset[tuple[str, str]]  # (scale, experiment)


@dataclass(frozen=True)
class Inputs:
    """Everything that pages print; what was not measured yet is None."""

    frame: pd.DataFrame  # of the records, ResultRows
    reference: Reference  # the papers' numbers
    counts: pd.DataFrame | None = None  # of parameters, by `peft-bench params`
    gap: pd.DataFrame | None = None  # E2E decoded and scored in other ways, by `peft-bench errata`
    votes: pd.DataFrame | None = None  # of ensembles, by `peft-bench ensemble`
    near: tuple[pd.DataFrame, pd.DataFrame] | None = None  # runs and prompt tokens, by `peft-bench nearest`

    def scales(self) -> list[str]:
        """Those with runs, in the order of the pages."""
        there = {*self.frame["scale"]}
        return [*(scale for scale in _SCALES if scale in there), *sorted(there - {*_SCALES})]

    def settings(self, scale: str) -> list[str]:
        """The papers' settings always, others where there are runs."""
        others = {*self.frame.loc[self.frame["scale"] == scale, "settings"]} - {"paper"}
        return ["paper", *sorted(others)]


@dataclass(frozen=True)
class Page:
    """One page of results/tables: <name>.md, its numbers as <name>.csv, its figures, and a line in the index."""

    name: str
    title: str  # in the index
    text: str
    cells: pd.DataFrame  # one a line
    state: str  # how full it is, in words
    experiments: Experiments = frozenset()  # whose runs it shows
    one_setting: bool = False  # each of them is one setting, on its cells' tasks; runs without a cell are a problem
    on_screen: bool = False  # printed by the command, too
    figures: Mapping[str, bytes] = field(default_factory=dict)  # by file name

    def shows(self, scale: str, experiment: str, task: str) -> bool:
        """Whether such runs are on it."""
        return (scale, experiment) in self.experiments and (not self.one_setting or task in {*self.cells["task"]})


def named(name: str, title: str, settings: str) -> tuple[str, str]:
    """A page's name and title with runs of these settings."""
    return (name, title) if settings == "paper" else (f"{name}_{settings}", f"{title} ({settings} settings)")


def by_scale(table: pd.DataFrame | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """The lines of each scale; none without a table."""
    if table is not None and not table.empty:
        for scale, of_scale in table.groupby("scale"):
            yield str(scale), of_scale


def filled(cells: pd.DataFrame) -> str:
    """How many cells have a number; averages are none."""
    cells = cells[cells["task"] != ""]
    failed = int(cells["state"].isin(["failed", "conflict"]).sum())
    text = f"{int((cells['state'] == 'done').sum())} of {len(cells)} cells"
    return f"{text}, {failed} failed or in conflict" if failed else text
