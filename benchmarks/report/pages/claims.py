"""Claims of a paper as inequalities with a margin, fixed before the runs (results/reference/claims_*.csv).

A line says: sum of coefficient x mean score > margin, of the test split where no other one is named; a setting with
runs on several tasks has the mean over them. It holds where the lower end of the 95% interval of that sum lies
above the margin, fails where the upper end lies below, and is undecided between. A claim of several lines holds where
all of them do, and fails where one does. Of more seeds than were announced, the lowest count. A line some of whose runs
make no mean (conflicts.of_mean) has no verdict.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from ...config.metrics import metric
from ..layouts import read_layouts
from ..page import Inputs, Page
from ..reference import DIRECTORY
from ..render import bullets, markdown_table, page, points
from ..rules.conflicts import of_mean
from ..rules.over_tasks import of_split, seed_means
from ..rules.selection import at_selected
from ..rules.statistics import summarize

_TERM = re.compile(r"(-?\d+) (?:(min|max) )?([^\[\s]+)(?:\[([^\]]+)\])?")
# Of runs with one mean.
_CELL = ["experiment", "source_form", "stands_for", "init", "length", "target_prefix", "in_context"]
NOT_RUN, CONFLICT = "not run", "conflict"


@dataclass(frozen=True)
class Claims:
    """The claims of one paper (conf/table/claims.yaml)."""

    name: str  # of the files
    paper: str
    scale: str
    notes: tuple[str, ...] = ()


def read_papers() -> tuple[Claims, ...]:
    """Those of conf/table/claims.yaml."""
    return read_layouts("claims", Claims)


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page a paper of which some claim has runs."""
    for claims in read_papers():
        judged = judge(inputs.frame, read_claims(DIRECTORY, claims.name), claims.scale)
        if (judged["verdict"] != NOT_RUN).any():
            title = f"Claims of {claims.paper}, at {claims.scale} scale"
            state = f"{len(judged)} inequalities"
            yield Page(claims.name, title, claims_page(judged, claims), judged, state)


@dataclass(frozen=True)
class _Mean:
    """Of the runs of one cell."""

    mean: float
    std: float  # 0 for a single run of something that has no seed
    n: int


def read_claims(folder: Path, name: str) -> pd.DataFrame:
    """The inequalities, as they were fixed."""
    text = dict.fromkeys(("claim", "statement", "terms", "metric", "split"), str)
    claims = pd.read_csv(folder / f"{name}.csv", dtype=text)
    return claims if "split" in claims else claims.assign(split="test")


def judge(frame: pd.DataFrame, claims: pd.DataFrame, scale: str) -> pd.DataFrame:
    """Every line with its sum, interval and verdict: holds, fails, undecided, not run, or conflict (with its cause)."""
    at = at_selected(frame[frame["scale"] == scale])
    lines = []
    for line in claims.to_dict("records"):
        of_metric = of_split(at[at["metric"] == line["metric"]], str(line["split"]))
        terms = [_mean_of(term, of_metric, int(line["n"])) for term in str(line["terms"]).split("; ")]
        causes = [term for term in terms if isinstance(term, str)]
        means = [term for term in terms if isinstance(term, tuple)]
        verdict = _verdict(means, len(terms), float(line["margin"]))
        lines.append(line | verdict | ({"verdict": CONFLICT} if causes else {}) | {"cause": "; ".join(causes)})
    return pd.DataFrame(lines)


def _mean_of(term: str, at: pd.DataFrame, n: int) -> tuple[int, _Mean] | str | None:
    """Coefficient and mean; None where runs are missing, a text where they make no mean."""
    match = _TERM.fullmatch(term)
    if match is None:
        raise ValueError(f"cannot read the term {term!r}; expected `1 [min or max] experiment|other[field=value,...]`")
    coefficient, extreme, experiment, fields = match.groups()
    patterns = experiment.split("|")
    own = at[at["experiment"].map(lambda name: any(fnmatch.fnmatch(name, one) for one in patterns)).astype(bool)]
    for wanted in fields.split(",") if fields else ():
        field, _, value = wanted.partition("=")
        numeric = pd.api.types.is_numeric_dtype(own[field])
        own = own[own[field] == (float(value) if numeric else value)]
    cells = []
    for _, runs in own.groupby(_CELL, dropna=False):
        if conflict := of_mean(runs):
            return f"{experiment}: {conflict}"
        summary = summarize(seed_means(runs).sort_index().tolist()[:n])
        random = bool(((runs["method_params"] > 0) | (runs["shots"] > 0)).any())  # training, or the draw of examples
        if summary.n < n and random:
            return None
        cells.append(_Mean(summary.mean, summary.std if summary.n > 1 else 0.0, summary.n))
    if not cells or (extreme is None and len(cells) > 1):
        return None
    ordered = sorted(cells, key=lambda cell: cell.mean)
    return int(coefficient), ordered[-1 if extreme == "max" else 0]


def _verdict(terms: Sequence[tuple[int, _Mean]], wanted: int, margin: float) -> dict[str, Any]:
    if len(terms) < wanted:
        return {"sum": float("nan"), "low": float("nan"), "high": float("nan"), "verdict": NOT_RUN}
    total = sum(c * cell.mean for c, cell in terms)
    parts = [(c * c * cell.std**2 / cell.n, cell.n - 1) for c, cell in terms if cell.std > 0]
    variance = sum(part for part, _ in parts)
    # Welch and Satterthwaite: each cell has a spread of its own
    freedom = variance**2 / sum(part**2 / df for part, df in parts) if parts else 1.0
    half = float(stdtrit(freedom, 0.975)) * variance**0.5 if parts else 0.0
    low, high = total - half, total + half
    verdict = "holds" if low > margin else "fails" if high < margin else "undecided"
    return {"sum": total, "low": low, "high": high, "verdict": verdict}


def overall(verdicts: Sequence[str]) -> str:
    """Of the lines of one claim."""
    for verdict in (CONFLICT, "fails", NOT_RUN, "undecided"):
        if verdict in verdicts:
            return verdict
    return "holds"


def claims_page(judged: pd.DataFrame, claims: Claims) -> str:
    """One line per inequality, and what became of each claim."""
    lines = []
    for claim, of_claim in judged.groupby("claim", sort=False):
        verdict = overall(of_claim["verdict"].tolist())
        for i, line in enumerate(of_claim.to_dict("records")):
            known = line["sum"] == line["sum"]
            interval = f"{points(line['low'])} to {points(line['high'])}" if known else "—"
            shown = points(line["sum"], signed=True) if known else "—"
            own = str(line["verdict"]) if len(of_claim) > 1 else ""
            first = ("", "") if i else (str(claim), f"**{verdict}**")
            title = metric(str(line["metric"])).title
            lines.append(
                [first[0], str(line["statement"]), title, shown, interval, points(line["margin"]), own, first[1]]
            )
    header = ["", "inequality", "metric", "points", "95% interval", "margin", "line", "claim"]
    seeds = ", ".join(f"n = {n}" for n in sorted(judged["n"].unique()))
    notes = [
        f"Inequalities, margins and {seeds} were committed before the runs (results/reference/{claims.name}.csv).",
        *claims.notes,
    ]
    counts = judged.groupby("claim")["verdict"].agg(lambda verdicts: overall(list(verdicts))).value_counts()
    about = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return page(f"Claims of {claims.paper}, at {claims.scale} scale", f"Of {counts.sum()} claims: {about}.",
                markdown_table(header, lines, left=2), bullets(notes))  # fmt: skip
