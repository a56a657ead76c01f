"""The verb `peft-bench report`: read, make every page, write them and their index."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from ..records.files import write_files
from ..records.places import RECORDS
from ..records.states import Problem
from .page import Inputs, Page
from .pages import claims, curves, e2e_gap, ensembles, nearest, ours, paper, parameters, worth
from .reference import DIRECTORY, read_reference
from .render import bullets, page, write
from .rows import results_frame
from .rules.comparability import swept
from .rules.conflicts import conflicts
from .rules.selection import RUN

# In the order of the index. A new page: a file in pages/ with `pages(inputs)`, and its line here.
PAGES: tuple[Callable[[Inputs], Iterator[Page]], ...] = (
    paper.pages,
    ours.pages,
    curves.pages,
    worth.pages,
    claims.pages,
    ensembles.pages,
    nearest.pages,
    e2e_gap.pages,
)


def main(argv: Sequence[str]) -> int:
    """`peft-bench report`: write all tables, print the ones with runs. 1 if some record or cell is unusable, else 0."""
    parser = argparse.ArgumentParser(prog="peft-bench report", description="Tables from the records under results/.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument("--output", type=Path, help="folder for the tables (<results>/tables)")
    parser.add_argument("--reference", type=Path, default=DIRECTORY, help="the papers' numbers (results/reference)")
    options = parser.parse_args(argv)
    output = options.output or options.results / "tables"
    if not options.results.is_dir():
        print(f"no folder {options.results}: expected the results folder; give --results DIR", file=sys.stderr)
        return 2
    try:
        inputs, problems = read_inputs(options.results, options.reference)
        pages = make_pages(inputs)
        problems += [Problem(str(options.results / RECORDS), text) for text in refused(inputs, pages)]
        write_pages(pages, output)
        write_files({output / "README.md": index(inputs.frame, pages, problems).encode()})
    except (OSError, ValueError) as error:  # an unwritable folder, missing reference files, a stale table of counts
        print(f"no report: {error}", file=sys.stderr)
        return 2
    print("\n".join(page.text for page in pages if page.on_screen), end="")
    print(f"\nTables: {output / 'README.md'}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def read_inputs(results: Path, reference: Path) -> tuple[Inputs, list[Problem]]:
    """Everything that pages are made from, and the records that could not be read."""
    printed = read_reference(reference)
    frame, problems = results_frame(results)
    counts = parameters.read_counts(results / "tables" / parameters.COUNTS)
    if counts is None:  # they are of configurations, not of runs: those that ship beside the papers' numbers
        counts = parameters.read_counts(reference.parent / "tables" / parameters.COUNTS)
    votes, near = ensembles.read_ensembles(results), nearest.read_nearest(results)
    return Inputs(frame, printed, counts, e2e_gap.read_gap(results), votes, near), problems


def make_pages(inputs: Inputs) -> list[Page]:
    """Every page, in the order of the index."""
    return [page for pages in PAGES for page in pages(inputs)]


def refused(inputs: Inputs, pages: Sequence[Page]) -> list[str]:
    """Why runs of the pages' tables make no cell."""
    runs = _of(inputs.frame, [page for page in pages if page.one_setting])
    return [str(conflict) for conflict in conflicts(inputs.frame[runs], swept(inputs.reference))]


def write_pages(pages: Sequence[Page], output: Path) -> None:
    """Write each page's figures, text and numbers."""
    for one in pages:
        if one.figures:
            write_files({output / name: figure for name, figure in one.figures.items()})
        write(output, one.name, one.text, one.cells)


def index(frame: pd.DataFrame, pages: Sequence[Page], problems: Sequence[Problem]) -> str:
    """The last page: a line for each other one, the runs that none of them shows, and what is wrong."""
    runs = frame.drop_duplicates(RUN)
    states = runs["status"].value_counts()
    about = f"From {states.get('done', 0)} finished and {states.get('failed', 0)} failed runs, by `peft-bench report`."
    lines = [f"[{page.title}]({page.name}.md) ([CSV]({page.name}.csv)): {page.state}" for page in pages]
    others = runs[~_of(runs, pages)].groupby(["experiment", "scale"])
    unlisted = ", ".join(f"{experiment} ({scale}): {len(of)}" for (experiment, scale), of in others)
    listed = f"## Problems\n\n{bullets([str(problem) for problem in problems])}" if problems else ""
    return page("Tables", about, bullets(lines), f"Runs in no table: {unlisted}." if unlisted else "", listed)


def _of(frame: pd.DataFrame, pages: Sequence[Page]) -> pd.Series:
    """Which rows are of runs that some of the pages show."""
    keys = list(zip(frame["scale"], frame["experiment"], frame["task"], strict=True))
    shown = {key for key in {*keys} if any(page.shows(*key) for page in pages)}
    return pd.Series([key in shown for key in keys], index=frame.index, dtype=bool)
