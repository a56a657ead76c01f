"""Whether our number may be set against a printed one, and if not, why not.

A difference is shown only where backbone, data, split, metric, settings, selection rule and number of seeds match the
paper's, and no run of the cell is suspicious.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ...config.metrics import metric
from ..marks import is_suspicious
from ..reference import Reference
from .selection import best_on_validation_over_sweep_and_seeds

OF_EXACTLY = ("best_of_seeds", "majority_vote")  # whose number grows with that of the seeds


@dataclass(frozen=True)
class _Unverified:
    """A rule of a paper that is none of ours: our number is shown, and never compared."""

    ours: str
    reason: str


_UNVERIFIED = {
    "leaderboard_submission": _Unverified(
        "best_on_validation_over_sweep_and_seeds", "the paper quotes a leaderboard entry"
    ),
    "copied_unverified": _Unverified(
        "median_over_seeds_of_best_epoch",
        "the paper copied it from work whose seeds and selection are not known",
    ),
    "best_by_validation_rouge2": _Unverified(
        "mean_over_seeds_of_best_epoch",
        "the released code selects by validation ROUGE-2, here it is validation loss",
    ),
    "released_prompt": _Unverified(
        "mean_over_seeds_of_best_epoch",
        "one released prompt: how many were trained, and which was chosen, is not said",
    ),
}


_NO_RATE = "nobody published the learning rate of the row, ours is that of another"


@dataclass(frozen=True)
class Comparison:
    """Our number against a printed one: a difference in points, or the reason why there is none."""

    difference: float | None
    reason: str | None
    same_task: bool  # published backbone and data: our number may stand beside the printed one, with the reason


def wanted_metric(printed: Mapping[Any, Any]) -> str:
    """What a printed cell measures: the caption's metric, or the likely one where the caption is wrong."""
    return str(printed["likely_metric"] or printed["metric"])


def wanted_split(printed: Mapping[Any, Any]) -> str:
    """The split of a printed cell, or the likely one where the paper does not say; "" where nothing speaks for one."""
    return str(printed["split"] or printed.get("likely_split") or "")


def never(printed: Mapping[Any, Any], reference: Reference) -> str | None:
    """Why no run whatsoever could be compared with a printed cell; None where one could. Averages follow from the
    columns of their row (`reachable`)."""
    if printed["obstacle"]:
        return str(printed["obstacle"])
    if printed["metric"] == "glue_score":
        return "score of the GLUE server"
    if not printed["backbone"]:
        return "the paper does not say which size of the backbone"
    if printed["scored_on"] == "test server":
        return "scored on the test server, whose labels are hidden"
    if printed["data"].endswith("_qnli_v1"):
        return "QNLI version 1 in the paper, 2 here"
    if printed["selection_rule"] in _UNVERIFIED:
        return _UNVERIFIED[printed["selection_rule"]].reason
    if printed["experiment"] in reference.without_rate:
        return _NO_RATE
    if not _is_average(printed) and not wanted_split(printed):
        return "the paper does not say which split"
    if "+" in wanted_split(printed):
        return "a mean of MNLI's halves"
    return None


def reachable(table: pd.DataFrame, reference: Reference) -> pd.Series:
    """Of a printed table of the reference for each cell why no run could be compared with it, "" where one could.

    An average can be where all columns of its row can.
    """
    cells = table.to_dict("records")
    reasons = [never(cell, reference) or "" for cell in cells]
    keys = [(cell["experiment"], cell["row"]) for cell in cells]
    shut = {key for key, cell, reason in zip(keys, cells, reasons, strict=True) if reason and not _is_average(cell)}
    for at, cell in enumerate(cells):
        if _is_average(cell) and keys[at] in shut:
            reasons[at] = reasons[at] or "an average over cells that cannot be"
    return pd.Series(reasons, index=table.index, dtype=object)


def _is_average(printed: Mapping[Any, Any]) -> bool:
    return printed["metric"] in ("mean_of_columns", "mean_of_tasks")


def swept(reference: Reference) -> frozenset[str]:
    """The experiments whose printed numbers were chosen over a sweep: so are ours, at every scale."""
    return frozenset(
        str(cell["experiment"])
        for table in reference.tables.values()
        for cell in table[["experiment", "selection_rule"]].to_dict("records")
        if our_rule(cell["selection_rule"]) == best_on_validation_over_sweep_and_seeds.__name__
    )


def our_rule(printed: str) -> str:
    """The rule that our runs follow for a printed number: its own or, where that is none of ours, a likely one."""
    return _UNVERIFIED[printed].ours if printed in _UNVERIFIED else printed


def command(experiment: str, sweep: str) -> str:
    """The command that makes the runs of a printed row. sweep: tasks and seeds, where it brings none of its own."""
    return f"peft-bench run -m experiment={experiment} scale=paper {sweep}".rstrip()


def not_run(printed: Mapping[Any, Any], sweep: str) -> Comparison:
    """For a printed cell without a run of ours."""
    if printed["obstacle"]:
        return Comparison(None, f"not run ({printed['obstacle']})", False)
    return Comparison(None, f"not run: {command(printed['experiment'], sweep)}", False)


def compare(
    printed: Mapping[Any, Any], ours: Mapping[Any, Any], rule: str, reference: Reference, failed: Sequence[str] = ()
) -> Comparison:
    """Compare a cell made by `rule` (a line of selection.py) with a printed one (a line of results/reference).

    failed: the causes of the cell's runs that failed.
    """
    if reason := _other_task(printed, ours, reference):
        return Comparison(None, f"not comparable ({reason})", False)
    if failed:
        reason = f"{len(failed)} more runs failed: {', '.join(sorted(set(failed)))}"
        return Comparison(None, f"not comparable ({reason})", True)
    if reason := _other_protocol(printed, ours, rule) or (
        _NO_RATE if printed["experiment"] in reference.without_rate else None
    ):
        return Comparison(None, f"not comparable ({reason})", True)
    return Comparison(metric(ours["metric"]).unit * ours["score"] - printed["value"], None, True)


def _other_task(printed: Mapping[Any, Any], ours: Mapping[Any, Any], reference: Reference) -> str | None:
    if ours["scale"] != "paper":
        return f"{ours['scale']} backbone"
    if not printed["backbone"]:
        return f"the paper does not say which size of the backbone, ours is {ours['backbone']}"
    if ours["backbone"] != printed["backbone"]:
        return f"backbone {ours['backbone']}, the paper's is {printed['backbone']}"
    if ours["published"] not in (True,):  # None and NaN, unknown, count as no
        return (
            f"the weights of {ours['backbone']} are not known to be the published ones: from the hub, at the commit of "
            "conf/pins.yaml, they are; a local copy has to have the hashes that stand there"
        )
    expected = reference.backbones.get(printed["backbone"], 0)
    if ours["backbone_params"] != expected:
        return f"{_count(ours['backbone_params'])} of the backbone's {expected:,.0f} parameters"
    if ours["data_source"] != printed["data"].removesuffix("_qnli_v1"):
        return f"data {ours['data_source']}, the paper's are {printed['data']}"
    for split, rows in (("train", ours["train_rows"]), (ours["split"], ours["examples"])):
        published = reference.splits.get((printed["task"], split), 0)
        if rows != published:
            return f"{_count(rows)} of {published:,.0f} {split} examples"
    return None


def _other_protocol(printed: Mapping[Any, Any], ours: Mapping[Any, Any], rule: str) -> str | None:
    if ours["data_source"] != printed["data"]:
        return "QNLI version 1 in the paper, 2 here"
    if not wanted_split(printed):
        return "the paper does not say which split"
    if ours["split"] != wanted_split(printed):
        return f"{printed['scored_on'] if printed['scored_on'] == 'test server' else wanted_split(printed)} split"
    if ours["metric"] != wanted_metric(printed):
        return f"{ours['metric']}, the paper prints {wanted_metric(printed)}"
    if ours["departures"] is None:
        return "settings of the runs unknown"
    if ours["departures"]:
        return f"not the published settings: {ours['departures']}"
    if not ours["clean"]:
        return "made by code that no commit holds, or that no checkout names"
    if flags := " ".join(filter(is_suspicious, ours["flags"].split())):
        return f"a run is flagged: {flags.replace('_', ' ')}"
    if printed["selection_rule"] != rule:
        unverified = _UNVERIFIED.get(printed["selection_rule"])
        return unverified.reason if unverified else f"{printed['selection_rule']}, here {rule}"
    if ours["seeds"] < printed["n_seeds"] or (rule in OF_EXACTLY and ours["seeds"] != printed["n_seeds"]):
        return f"{ours['seeds']} of {printed['n_seeds']:.0f} seeds"
    if ours["score"] != ours["score"]:
        return "NaN"
    return None


def _count(number: float) -> str:
    return f"{number:,.0f}" if number == number else "unknown"
