"""Curves: scores of experiments over what they vary (conf/table/curves.yaml): a figure, and its numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from string import Formatter
from typing import Any

import pandas as pd

from ...config.metrics import metric
from ..layouts import read_layouts
from ..marks import mark, marks_legend
from ..page import Inputs, Page
from ..render import HOLE, bullets, markdown_table, page, points
from ..rules.conflicts import of_mean
from ..rules.over_tasks import of_split, seed_means
from ..rules.selection import at_selected
from ..rules.statistics import summarize

SCORE = "score"  # in place of a metric: the one that selects checkpoints of the task
PAPER = "paper"  # the scale whose test labels are not published


@dataclass(frozen=True)
class Curve:
    """A line for each value of `series` over `x` (conf/table/curves.yaml, which says what its keys are)."""

    name: str  # of its files, behind the scale's
    title: str
    about: str
    experiments: tuple[str, ...]
    series: str
    drawn: str
    metrics: tuple[str, ...]
    chosen: str  # which checkpoint
    units: str
    x: str | None = None
    x_label: str = ""
    logarithmic: bool = True
    series_label: str = ""  # where the names of the series do not say what they are
    labels: dict[str, str] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    values: dict[str, dict[Any, Any]] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def label(self, series: Any) -> str:
        """What a line is called: a text, or a number such as a length."""
        return f"{series:g}" if isinstance(series, float) else self.labels.get(series, str(series))


def read_curves() -> tuple[Curve, ...]:
    """Those of conf/table/curves.yaml."""
    return read_layouts("curves", Curve)


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page a curve and scale with runs."""
    for curve in read_curves():
        for scale in inputs.scales():
            if not (table := curve_points(inputs.frame, curve, scale)).empty:
                name, title = f"{scale}_{curve.name}", f"{curve.title}, at {scale} scale"
                figures = {} if curve.x is None else {f"{name}.svg": draw(table, curve, scale)}
                links = "".join(f"![{curve.title}]({file})" for file in figures)
                yield Page(
                    name,
                    title,
                    curve_page(table, curve, scale, links),
                    table,
                    f"{table['n'].sum()} scores",
                    frozenset((scale, experiment) for experiment in curve.experiments),
                    figures=figures,
                )


def curve_points(frame: pd.DataFrame, curve: Curve, scale: str) -> pd.DataFrame:
    """One line per point and metric: mean and interval over runs, on the test split (published data: validation);
    empty without runs.

    A failed run is counted: its point has a smaller n, and `failed` says by how many. Runs that make no mean
    (conflicts.of_mean) have none: `conflict` says why. `flags`: what is suspicious about some run of the point.
    """
    runs = _runs(frame[frame["scale"] == scale], curve)
    if runs.empty:
        return pd.DataFrame()
    failed = runs[runs["status"] == "failed"].groupby(["line", "x"]).size()
    at = at_selected(runs)
    at = pd.concat([at, at[at["metric"] == at["selection_metric"]].assign(metric=SCORE)], ignore_index=True)
    at = of_split(at[at["metric"].isin(curve.metrics)], _split(scale))
    lines = []
    for (series, x, name), of_point in at.groupby(["line", "x", "metric"], sort=True):
        conflict = of_mean(of_point)
        summary = summarize([float("nan")] if conflict else seed_means(of_point).tolist())
        lines.append(
            {
                "series": series,
                "x": x,
                "metric": name,
                "mean": summary.mean,
                "low": summary.low,
                "high": summary.high,
                "n": of_point["run_id"].nunique() if conflict else summary.n,
                "failed": int(failed.get((series, x), 0)),
                "conflict": conflict or "",
                "flags": " ".join(sorted({*" ".join(of_point["flags"]).split()})),
                "run_ids": " ".join(of_point["run_id"].unique()),
            }
        )
    return pd.DataFrame(lines)


def _runs(frame: pd.DataFrame, curve: Curve) -> pd.DataFrame:
    """The rows of the curve's runs with their `line` and `x`; shared ones only at points that have no others."""
    for name, value in curve.where.items():
        frame = frame[frame[name].fillna("") == value]
    of_curve = frame[frame["experiment"].isin(curve.experiments)]
    if of_curve.empty:
        return of_curve
    shared = frame[frame["experiment"].isin(curve.shared)].assign(experiment=curve.experiments[0], borrowed=True)
    runs = pd.concat([of_curve.assign(borrowed=False), shared], ignore_index=True)
    runs = runs.assign(line=_line(runs, curve), x=_named(runs, curve, curve.x) if curve.x else 0.0)
    only_borrowed = runs.groupby(["line", "x"])["borrowed"].transform("min")
    return runs[runs["borrowed"] == only_borrowed]


def _line(runs: pd.DataFrame, curve: Curve) -> pd.Series:
    """Which line a run belongs to: a field, or a text with fields in braces."""
    names = [name for _, name, _, _ in Formatter().parse(curve.series) if name is not None]
    if not names:
        return runs[curve.series]
    columns = [_named(runs, curve, name) for name in names]
    texts = [curve.series.format(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
    return pd.Series(texts, index=runs.index, dtype=object)


def _named(runs: pd.DataFrame, curve: Curve, name: str) -> pd.Series:
    """A field, by its values' names where the curve has some (of x: only those that it has)."""
    if name not in curve.values:
        return runs[name]
    names = curve.values[name]
    values = [None if pd.isna(value) else str(value).strip() for value in runs[name]]
    other = dict.fromkeys(values, float("nan")) if name == curve.x else {value: value or "" for value in values}
    return pd.Series([(other | names)[value] for value in values], index=runs.index)


def _split(scale: str) -> str:
    """Whose scores are drawn."""
    return "validation" if scale == PAPER else "test"


def curve_page(table: pd.DataFrame, curve: Curve, scale: str, figure: str) -> str:
    """The page of a curve: figure and numbers."""
    lines = []
    for (series, x), of_point in table.groupby(["series", "x"], sort=True):
        cells = {str(line["metric"]): line for line in of_point.to_dict("records")}
        first = next(iter(cells.values()))
        label = [f"`{series}`"] if curve.x is None else [curve.label(series), f"{x:g}"]
        failed = f" ({first['failed']} failed)" if first["failed"] else ""
        texts = [_cell(cells, name) for name in curve.metrics]
        texts[0] += "" if first["conflict"] else "".join(mark(flag)[0] for flag in str(first["flags"]).split())
        lines.append([*label, f"{first['n']}{failed}", *texts])
    first_columns = [""] if curve.x is None else [curve.series_label, curve.x_label]
    header = [*first_columns, "n", *(metric(name).title for name in curve.metrics)]
    in_points = metric(curve.drawn).fraction
    notes = [
        f"{_split(scale).capitalize()} split, {curve.chosen}; ± is the 95% interval of the mean (Student's t).",
        curve.units,
        *(["The figure ends at 0 and 100, where intervals may not."] if figure and in_points else []),
        *marks_legend(flag for flags in table["flags"] for flag in flags.split()),
        *(f"conflict: {cause}." for cause in table["conflict"].unique() if cause),
    ]
    table_text = markdown_table(header, lines)
    return page(f"{curve.title}, at {scale} scale", curve.about, figure, table_text, bullets(notes))


def _cell(cells: dict[str, dict[Any, Any]], name: str) -> str:
    if name not in cells:
        return HOLE
    cell = cells[name]
    if cell["conflict"]:
        return "conflict"
    spread = (cell["high"] - cell["low"]) / 2
    return points(cell["mean"], name) + (f" ±{points(spread, name)}" if spread == spread else "")


def _short(x: float) -> str:
    """178496 as 178k."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= 10 * size:
            return f"{x / size:.0f}{letter}"
    return f"{x:g}"


def draw(table: pd.DataFrame, curve: Curve, scale: str) -> bytes:
    """The curve of one metric as SVG, with the interval of every point."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = metric(curve.drawn)
    of_metric = table[table["metric"] == drawn.name]
    with mpl.rc_context({"svg.hashsalt": curve.name, "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        groups = list(of_metric.groupby("series", sort=True))
        for place, (series, of_series) in enumerate(groups):
            scaled = drawn.unit * of_series[["mean", "low", "high"]]
            error = ((scaled["high"] - scaled["low"]) / 2).fillna(0.0)
            label = None if len(groups) == 1 else curve.label(series)
            aside = place - (len(groups) - 1) / 2  # else the intervals of one x lie upon each other
            x = of_series["x"] * 1.015**aside if curve.logarithmic else of_series["x"]
            axes.errorbar(x, scaled["mean"], yerr=error, marker="o", markersize=4, capsize=3, label=label)
        if curve.logarithmic:
            axes.set_xscale("log")
        ticks = sorted(of_metric["x"].unique())
        close = {x for before, x in pairwise(ticks) if curve.logarithmic and x < 1.15 * before}
        axes.set_xticks(ticks, ["" if x in close else _short(x) for x in ticks])
        if drawn.fraction:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, 0), min(top, 100))  # an interval may reach beyond what a score can be
        axes.minorticks_off()
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel(f"{drawn.title} ({_split(scale)}, 95% interval)")
        axes.grid(alpha=0.3)
        if len(groups) > 1:
            figure.legend(title=curve.series_label or None, fontsize=8, loc="outside lower center", ncols=3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
