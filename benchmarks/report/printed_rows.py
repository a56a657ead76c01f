"""`peft-bench list`: the printed rows of the papers, each with its experiment, and what has been run of it."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ..config.schema import CONF_DIR
from ..records.states import Problem
from .main import read_inputs
from .page import Inputs
from .pages.paper import SCALE, beside_paper
from .reference import DIRECTORY, PaperTable, paper_tables
from .render import HOLE, count, markdown_table
from .rules.selection import RUN


def main(argv: Sequence[str]) -> int:
    """`peft-bench list`. 1 where a record is unreadable, 2 for bad input, else 0."""
    parser = argparse.ArgumentParser(
        prog="peft-bench list",
        description="The printed rows of the papers' tables: experiment=NAME of each, its backbone, the trained "
        "parameters (as printed, and counted here without the head), finished runs at scale=paper, and how many of its "
        "printed cells can be compared with a run. Then the experiments behind figures and claims.",
    )
    known = [table.name for table in paper_tables()]
    parser.add_argument("papers", nargs="*", metavar="PAPER", help=f"beginnings of: {', '.join(known)}; all without")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds records/ (results)")
    parser.add_argument("--reference", type=Path, default=DIRECTORY, help="the papers' numbers (results/reference)")
    options = parser.parse_args(argv)
    tables = [table for table in paper_tables() if table.name.startswith(tuple(options.papers or [""]))]
    if wrong := [paper for paper in options.papers if not any(name.startswith(paper) for name in known)]:
        print(f"peft-bench list: no table is called {wrong[0]}...; known: {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        inputs, problems = read_inputs(options.results, options.reference)
        print("\n\n".join(_sections(inputs, tables)))
    except (OSError, ValueError) as error:  # missing reference files, a stale table of counts
        print(f"peft-bench list: {error}", file=sys.stderr)
        return 2
    return _named(problems)


def _named(problems: Sequence[Problem]) -> int:
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _sections(inputs: Inputs, tables: Sequence[PaperTable]) -> Iterator[str]:
    header = ["experiment", "row", "backbone", "printed", "trained", "runs", "comparable"]
    listed: set[str] = set()
    for table in tables:
        rows = printed_rows(inputs, table)
        listed |= {row["experiment"] for row in rows}
        yield f"{table.title} ({table.name})\n\n{markdown_table(header, [[*row.values()] for row in rows], left=3)}"
    papers = dict.fromkeys(name.partition("/")[0] for name in sorted(listed) if "/" in name)
    others = [
        [path.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix(), _about(path)]
        for paper in papers
        for path in sorted((CONF_DIR / "experiment" / paper).glob("*.yaml"))
    ]
    shown = {experiment for printed in inputs.reference.tables.values() for experiment in printed["experiment"]}
    if others := [line for line in others if line[0] not in shown]:
        yield f"Behind figures and claims\n\n{markdown_table(['experiment', 'about'], others, left=2)}"
    yield (
        "One of them: peft-bench run -m experiment=NAME scale=paper; what that takes: peft-bench plan experiment=NAME "
        "scale=paper"
    )


def printed_rows(inputs: Inputs, table: PaperTable) -> list[dict[str, str]]:
    """The rows of a printed table, in print order, as they are listed."""
    cells = beside_paper(inputs.frame, table, inputs.reference)
    reference = inputs.reference.tables[table.name]
    backbones = dict(zip(reference["experiment"], reference["backbone"], strict=True))
    done = inputs.frame[(inputs.frame["scale"] == SCALE) & (inputs.frame["status"] == "done")].drop_duplicates(RUN)
    runs = done["experiment"].value_counts()
    rows = []
    for (experiment, row, printed), of_row in cells.groupby(["experiment", "row", "printed_params"], sort=False):
        reachable = int((of_row["never"] == "").sum())
        rows.append(
            {
                "experiment": str(experiment),
                "row": str(row),
                "backbone": str(backbones[experiment]) or "not stated",
                "printed": str(printed) or HOLE,
                "trained": _trained(inputs.counts, str(experiment)),
                "runs": str(runs.get(experiment, 0)) if _file(str(experiment)).is_file() else "no file",
                "comparable": f"{reachable} of {len(of_row)}",
            }
        )
    return rows


def _trained(counts: pd.DataFrame | None, experiment: str) -> str:
    """Counted parameters of the row: what its method trains, the head excluded."""
    if counts is None or (own := counts[counts["experiment"] == experiment]).empty:
        return HOLE
    return count(float(own["method_params"].iloc[-1]))


def _file(experiment: str) -> Path:
    return CONF_DIR / "experiment" / f"{experiment}.yaml"


def _about(path: Path) -> str:
    """The first sentence of an experiment file's head."""
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[1:6]]
    text = " ".join(lines[: next((i for i, line in enumerate(lines) if line.startswith("peft-bench")), None)])
    return textwrap.shorten(re.split(r"(?<!et al)\. ", text)[0].rstrip("."), 110, placeholder=" ...")
