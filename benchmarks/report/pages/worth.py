"""What each setting of a prompt is worth (conf/table/worth.yaml).

One line per change: one setting otherwise, its learning rate chosen anew (but where the rate is the change), and the
difference with its 95% interval (Welch and Satterthwaite, as in claims.py).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..layouts import read_layouts
from ..page import Inputs, Page
from ..render import bullets, markdown_table, page, points
from .claims import CONFLICT, NOT_RUN, judge


@dataclass(frozen=True)
class Setting:
    """A setting, its usual value in words, and others with the runs that have them (terms as in claims.py)."""

    name: str
    usual: str
    otherwise: dict[str, str]
    unchanged: str = ""  # the runs with the usual value, where they are not those of all settings


@dataclass(frozen=True)
class Worth:
    """A page: settings, and the runs that have all their usual values."""

    name: str  # of its files, behind the scale's
    title: str
    about: str
    scale: str
    metric: str
    seeds: int
    unchanged: str
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page for each entry of the layout whose runs are there."""
    for worth in read_layouts("worth", Worth):
        if not (changes := worth_table(inputs.frame, worth)).empty:
            name, title = f"{worth.scale}_{worth.name}", f"{worth.title}, at {worth.scale} scale"
            figure = f"{name}.svg"
            text = worth_page(changes, worth, f"![Points lost and won by each change]({figure})")
            figures = {figure: draw(changes, worth.name)}
            yield Page(name, title, text, changes, f"{len(changes)} changes", figures=figures)


def worth_table(frame: pd.DataFrame, worth: Worth) -> pd.DataFrame:
    """One line per change whose runs are there and have a mean: both means and `difference`, each with its interval
    from `low` to `high`."""
    changes = [
        ((setting.name, setting.usual, words), runs, setting.unchanged or worth.unchanged)
        for setting in worth.settings
        for words, runs in setting.otherwise.items()
    ]
    names = ("unchanged", "changed", "difference")
    terms = [text for _, runs, usual in changes for text in (f"1 {usual}", f"1 {runs}", f"1 {runs}; -1 {usual}")]
    lines = pd.DataFrame({"terms": terms}).assign(metric=worth.metric, split="test", n=worth.seeds, margin=0.0)
    judged = judge(frame, lines, worth.scale).to_dict("records")
    table = []
    for i, (words, _, _) in enumerate(changes):
        of_change = dict(zip(names, judged[3 * i : 3 * i + 3], strict=True))
        if any(line["verdict"] in (NOT_RUN, CONFLICT) for line in of_change.values()):
            continue
        row: dict[str, object] = dict(zip(("setting", "usual", "otherwise"), words, strict=True))
        for name, line in of_change.items():
            row |= {name: line["sum"], f"{name}_low": line["low"], f"{name}_high": line["high"]}
        table.append(row)
    return pd.DataFrame(table)


def worth_page(table: pd.DataFrame, worth: Worth, figure: str) -> str:
    """The page: the changes in the order of the layout."""
    lines = []
    for line in table.to_dict("records"):
        scores = [_score(line, name) for name in ("unchanged", "changed")]
        difference = points(line["difference"], signed=True)
        interval = f"{points(line['difference_low'], signed=True)} to {points(line['difference_high'], signed=True)}"
        sure = line["difference_low"] > 0 or line["difference_high"] < 0
        words = [line["setting"], f"{line['usual']} → {line['otherwise']}"]
        lines.append([*words, *scores, difference, interval, "yes" if sure else "no"])
    header = ["setting", "change", "before", "after", "points", "95% interval", "beyond 0"]
    title = f"{worth.title}, at {worth.scale} scale"
    return page(title, worth.about, figure, markdown_table(header, lines, left=2), bullets(worth.notes))


def _score(line: dict[Any, Any], name: str) -> str:
    return f"{points(line[name])} ±{points(line[f'{name}_high'] - line[name])}"


def draw(table: pd.DataFrame, name: str) -> bytes:
    """The differences and their intervals as SVG, the first change at the top."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 0.26 * len(table) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        at = list(range(len(table), 0, -1))
        scaled = 100 * table[["difference", "difference_low", "difference_high"]]
        half = (scaled["difference_high"] - scaled["difference_low"]) / 2
        axes.errorbar(scaled["difference"], at, xerr=half.fillna(0.0), fmt="o", capsize=3)
        axes.axvline(0, color="gray", linewidth=1)
        axes.set_yticks(at, (table["setting"] + ": " + table["otherwise"]).tolist())
        axes.set_xlabel("points of accuracy (test, 95% interval)")
        axes.grid(axis="x", alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
