"""The verbs `peft-bench report` and `peft-bench status`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..records.files import write_files
from ..records.places import RECORDS
from ..records.states import Problem
from .pages import (
    claims,
    curves,
    e2e_gap,
    ensembles,
    micro,
    nearest,
    paper,
    paper_page,
    parameters,
    small,
    texts,
    worth,
)
from .reference import DIRECTORY, TABLES, Reference, read_reference
from .render import bullets, page, write
from .rows import results_frame
from .rules.conflicts import conflicts
from .rules.selection import RUN


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
        reference = read_reference(options.reference)
        frame, problems = results_frame(options.results)
        shown = frame[_in_tables(frame, reference)]
        problems += [Problem(str(options.results / RECORDS), str(conflict)) for conflict in conflicts(shown)]
        counts = parameters.read_counts(options.results / "tables" / parameters.COUNTS)
        if counts is None:  # they are of configurations, not of runs: those that ship beside the papers' numbers
            counts = parameters.read_counts(options.reference.parent / "tables" / parameters.COUNTS)
        gap = e2e_gap.read_gap(options.results)
        votes = ensembles.read_ensembles(options.results)
        near = nearest.read_nearest(options.results)
        printed = write_tables(frame, reference, counts, output, problems, gap, votes, near)
    except (OSError, ValueError) as error:  # an unwritable folder, missing reference files, a stale table of counts
        print(f"no report: {error}", file=sys.stderr)
        return 2
    print("\n".join(printed), end="")
    print(f"\nTables: {output / 'README.md'}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def write_tables(
    frame: pd.DataFrame,
    reference: Reference,
    counts: pd.DataFrame | None,
    output: Path,
    problems: Sequence[Problem] = (),
    gap: pd.DataFrame | None = None,
    votes: pd.DataFrame | None = None,
    near: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> list[str]:
    """Write every table and an index into `output`; return the pages of our own tables that have runs."""
    index, shown = [], []
    voted = None if votes is None else ensembles.vote_cells(frame, votes)
    for table_name, title in TABLES.items():
        params = parameters.beside_printed(reference, table_name, counts)
        for settings in _settings(frame, paper.SCALE):
            beside = paper.beside_paper(frame, table_name, reference, settings, voted)
            name = table_name if settings == "paper" else f"{table_name}_{settings}"
            text = paper_page.paper_page(beside, table_name, parameters.parameters_markdown(params), settings)
            write(output, name, text, beside)
            comparable = int(beside["difference"].notna().sum())
            shown_title = title if settings == "paper" else f"{title} ({settings} settings)"
            index.append(_entry(name, shown_title, f"{comparable} of {len(beside)} cells comparable"))
    there = set(frame.loc[frame["scale"] == micro.SCALE, "experiment"])
    grids = [table for table in micro.grid_tables() if there & {row.experiment for row in table.rows}]
    for table in [*micro.MICRO_TABLES, *grids]:
        for settings in _settings(frame, micro.SCALE):
            cells = micro.micro_table(frame, table, settings)
            name = table.name if settings == "paper" else f"{table.name}_{settings}"
            text = micro.micro_page(cells, table)
            write(output, name, text, cells)
            index.append(_entry(name, table.title, _filled(cells)))
            shown += [text] if (cells["state"] != "missing").any() else []
    for settings in _settings(frame, small.SCALE):
        cells = small.small_table(frame, settings)
        if not cells.empty:
            name = small.NAME if settings == "paper" else f"{small.NAME}_{settings}"
            write(output, name, small.small_page(cells), cells)
            index.append(_entry(name, "Small scale: real text, small backbones", _filled(cells)))
            shown.append(small.small_page(cells))
    for written in texts.TABLES:
        for settings in _settings(frame, written.scale):
            cells = texts.text_cells(frame, written, settings)
            if written.scale == micro.SCALE or (cells["state"] != "missing").any():
                name = written.name if settings == "paper" else f"{written.name}_{settings}"
                text = texts.text_page(cells, written)
                write(output, name, text, cells)
                index.append(_entry(name, written.title, _filled(cells)))
                shown += [text] if (cells["state"] != "missing").any() else []
    for curve in curves.CURVES:
        for scale in (micro.SCALE, small.SCALE, paper.SCALE):
            if not (of_curve := curves.curve_points(frame, curve, scale)).empty:
                name = curves.write_curve(of_curve, curve, scale, output)
                index.append(_entry(name, f"{curve.title}, at {scale} scale", f"{of_curve['n'].sum()} scores"))
    if not (changes := worth.worth_table(frame, micro.SCALE)).empty:
        name = worth.write_worth(changes, micro.SCALE, output)
        title = f"What each setting of a prompt is worth, at {micro.SCALE} scale"
        index.append(_entry(name, title, f"{len(changes)} changes"))
    for of_paper in claims.PAPERS:
        judged = claims.judge(frame, claims.read_claims(DIRECTORY, of_paper.name), micro.SCALE)
        if (judged["verdict"] != claims.NOT_RUN).any():
            write(output, of_paper.name, claims.claims_page(judged, of_paper, micro.SCALE), judged)
            title = f"Claims of {of_paper.paper}, at micro scale"
            index.append(_entry(of_paper.name, title, f"{len(judged)} inequalities"))
    for in_scale, of_scale in votes.groupby("scale") if votes is not None and not votes.empty else ():
        name, scale = f"{in_scale}_{ensembles.NAME}", str(in_scale)
        write(output, name, ensembles.ensembles_page(of_scale, scale), of_scale)
        index.append(_entry(name, f"Votes of several prompts, at {scale} scale", f"{len(of_scale)} scores"))
    for in_scale, runs_near in near[0].groupby("scale") if near is not None else ():
        name, scale, table_near = f"{in_scale}_{nearest.NAME}", str(in_scale), nearest.settings_table(runs_near)
        tokens = near[1][near[1]["scale"] == scale] if near is not None else pd.DataFrame()
        write(output, name, nearest.nearest_page(table_near, tokens, scale), table_near)
        index.append(_entry(name, f"What prompt tokens are near to, at {scale} scale", f"{len(runs_near)} prompts"))
    if gap is not None:
        found = e2e_gap.effects(gap)
        write(output, e2e_gap.NAME, e2e_gap.gap_page(gap), found)
        index.append(_entry(e2e_gap.NAME, "E2E: what decoding and scoring are worth", f"{len(gap)} combinations"))
    runs = frame.drop_duplicates(RUN)
    states = runs["status"].value_counts()
    about = f"From {states.get('done', 0)} finished and {states.get('failed', 0)} failed runs, by `peft-bench report`."
    listed = f"## Problems\n\n{bullets([str(problem) for problem in problems])}" if problems else ""
    index_page = page("Tables", about, bullets(index), _in_no_table(runs, reference, votes), listed)
    write_files({output / "README.md": index_page.encode()})
    return shown


def _in_tables(frame: pd.DataFrame, reference: Reference) -> pd.Series:
    """Which runs belong to a row of some table; at scale=small every experiment is one."""
    rows = {
        paper.SCALE: {experiment for table in reference.tables.values() for experiment in table["experiment"]},
        micro.SCALE: {row.experiment for table in _micro_tables() for row in table.rows}
        | {row.experiment for table in texts.TABLES for row in table.rows},
    }
    known = {(scale, experiment) for scale, of_scale in rows.items() for experiment in of_scale}
    keys = zip(frame["scale"], frame["experiment"], strict=True)
    return pd.Series([key in known or key[0] == small.SCALE for key in keys], index=frame.index, dtype=bool)


def _in_no_table(runs: pd.DataFrame, reference: Reference, votes: pd.DataFrame | None) -> str:
    """The runs that no table shows, by experiment; "" if there is none."""
    in_curves = runs["experiment"].isin([name for curve in curves.CURVES for name in curve.experiments])
    voters = [] if votes is None or votes.empty else " ".join(votes["run_ids"]).split()
    others = runs[~_in_tables(runs, reference) & ~in_curves & ~runs["run_id"].isin(voters)]
    listed = [f"{name} ({scale}): {len(of)}" for (name, scale), of in others.groupby(["experiment", "scale"])]
    return f"Runs in no table: {', '.join(listed)}." if listed else ""


def _micro_tables() -> list[micro.MicroTable]:
    return [*micro.MICRO_TABLES, *micro.grid_tables()]


def _settings(frame: pd.DataFrame, scale: str) -> list[str]:
    """The papers' settings always, others where there are runs."""
    there = set(frame.loc[frame["scale"] == scale, "settings"])
    return ["paper", *sorted(there - {"paper"})]


def _entry(name: str, title: str, state: str) -> str:
    return f"[{title}]({name}.md) ([CSV]({name}.csv)): {state}"


def _filled(cells: pd.DataFrame) -> str:
    cells = cells[cells["task"] != ""]
    failed = int(cells["state"].isin(["failed", "conflict"]).sum())
    text = f"{int((cells['state'] == 'done').sum())} of {len(cells)} cells"
    return f"{text}, {failed} failed or in conflict" if failed else text
