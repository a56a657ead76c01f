"""Is a micro task as hard as it should be? Judged by the controls alone, column by column."""

from __future__ import annotations

import pandas as pd

from ..render import HOLE, markdown_table, points

FULL, HEAD, RANDOM = "full fine-tuning", "head only", "full, random start"  # rows of the micro tables
LOWEST, HIGHEST = 0.85, 0.93  # of full fine-tuning
HEAD_BELOW, RANDOM_BELOW = 0.15, 0.05  # at least so far below full fine-tuning


def calibration(cells: pd.DataFrame) -> pd.DataFrame:
    """One line per column of a micro table: the three controls' scores, and in `misses` what of the rule they miss.

    A hole misses the rule; a correlation that is undefined (NaN: one value throughout) is below everything.
    """
    controls = cells[(cells["task"] != "") & cells["row"].isin([FULL, HEAD, RANDOM])]
    order, rows = controls["column"].unique(), [FULL, HEAD, RANDOM]
    scores = controls.pivot(index="column", columns="row", values="score").reindex(index=order, columns=rows)
    done = (controls.pivot(index="column", columns="row", values="state") == "done").reindex(index=order, columns=rows)
    whole = done.all(axis="columns")
    return scores.assign(misses=[_misses(*scores.loc[name]) if whole[name] else "a run is missing" for name in order])


def _misses(full: float, head: float, random: float) -> str:
    """Rounded as printed, so that the table can be checked by eye."""
    full, head, random = round(full, 3), round(head, 3), round(random, 3)
    broken = {
        "full too low": not full >= LOWEST,
        "full too high": full > HIGHEST,
        "head too near": round(full - head, 3) < HEAD_BELOW,
        "random start too near": round(full - random, 3) < RANDOM_BELOW,
    }
    return ", ".join(name for name, so in broken.items() if so)


def calibration_markdown(cells: pd.DataFrame) -> str:
    """The section of a micro page; "" where not one of the three has run."""
    lines = calibration(cells)
    if (cells.loc[cells["row"].isin([FULL, HEAD, RANDOM]), "state"] == "missing").all():
        return ""
    holes = lines["misses"] == "a run is missing"
    rows = [
        [str(name), *(HOLE if hole and score != score else points(score) for score in scores), misses or "met"]
        for (name, *scores, misses), hole in zip(lines.itertuples(name=None), holes, strict=True)
    ]
    about = (
        f"Wanted of each task: full fine-tuning at {points(LOWEST)} to {points(HIGHEST)}, the head alone at least "
        f"{points(HEAD_BELOW)} and a random start at least {points(RANDOM_BELOW)} below it. "
        f"Met in {(lines['misses'] == '').sum()} of {len(lines)} columns."
    )
    return "\n\n".join(["## Calibration", about, markdown_table(["", FULL, HEAD, RANDOM, "the rule"], rows)])
