"""Printed parameter counts beside counted ones; `peft-bench params` counts, from configurations alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..reference import PaperTable, Reference
from ..render import HOLE, bullets, count, markdown_table

COUNTS = "param_counts.csv"  # in results/tables, one line per printed figure
_COUNTED = ["ours", "agrees", "method_params", "added_params", "with_head_params"]
_KEY = ["experiment", "printed"]


def read_counts(path: Path) -> pd.DataFrame | None:
    """The table `peft-bench params` wrote, or None if it has not run."""
    if not path.is_file():
        return None
    counts = pd.read_csv(path, keep_default_na=False)
    if missing := [name for name in [*_KEY, *_COUNTED] if name not in counts]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; write it anew with `peft-bench params`")
    return counts[counts["experiment"] != ""]


def beside_printed(reference: Reference, table: PaperTable, counts: pd.DataFrame | None) -> pd.DataFrame:
    """One line per printed figure of the table: the same figure from our count, or a hole if nothing was counted."""
    rows = reference.tables[table.name].drop_duplicates("experiment")[["experiment", "row"]]
    paper = table.title.partition(" 20")[0]  # an experiment may be a row of two papers
    printed = reference.params[reference.params["table"].str.startswith(paper)]
    figures = rows.merge(printed.drop(columns="row"), on="experiment", validate="one_to_many")
    if counts is None:
        counts = pd.DataFrame(columns=[*_KEY, *_COUNTED])
    both = figures.merge(counts[[*_KEY, *_COUNTED]], on=_KEY, how="left", validate="one_to_one")
    return both[["experiment", "row", "printed", "unit", "convention", *_COUNTED, "note"]]


def parameters_markdown(table: pd.DataFrame) -> str:
    """The table of `beside_printed` and its notes; "" where the paper prints no count."""
    if table.empty:
        return ""
    lines = [
        [
            f"`{line['experiment']}`",
            line["printed"],
            *(HOLE if pd.isna(line[name]) else str(line[name]) for name in ("ours", "agrees")),
            *(count(float(line[name])) for name in ("added_params", "method_params", "with_head_params")),
        ]
        for line in table.to_dict("records")
    ]
    header = ["experiment", "printed", "ours", "agrees", "added", "trained", "with head"]
    notes = ["added: new parameters. trained: these and what else the method trains of the backbone, head excluded."]
    if table["ours"].isna().any():
        notes.append(f"{HOLE} not counted yet: run `peft-bench params`.")
    if (table["unit"] == "multiple").any():
        notes.append("Of nine tasks (x): 9 copies of the model, or 1 + 9 times the adapters' share of the layers.")
    if (table["unit"] == "2^20").any():
        units = table.loc[table["unit"] == "2^20", "row"].drop_duplicates()
        notes.append(f"M is 2^20 in {', '.join(units)}, 10^6 elsewhere.")
    notes += [f"{line['row']} {line['printed']}: {line['note']}." for line in table.to_dict("records") if line["note"]]
    return f"{markdown_table(header, lines)}\n\n{bullets(notes)}"
