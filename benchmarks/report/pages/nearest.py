"""What learned prompt tokens are near to, from results/nearest (`peft-bench nearest`): T33 to T35 of the claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ...records.places import NEAREST
from ..layouts import read_layouts
from ..page import Inputs, Page, by_scale
from ..render import HOLE, bullets, markdown_table, page
from ..rules.statistics import summarize

SETTING = ["experiment", "task", "stands_for", "init", "length", "target_prefix", "optimizer", "learning_rate"]
_MEASURES = ["label_rows", "other_rows", "cohesion", "random_cohesion", "unique"]


@dataclass(frozen=True)
class Layout:
    """tokens_of: the experiment whose tokens the page lists. lengths: those that T35 compares."""

    name: str
    tokens_of: str
    lengths: tuple[str, ...]


def read_layout() -> Layout:
    """The page's entry in conf/table/nearest.yaml."""
    (layout,) = read_layouts("nearest", Layout)
    return layout


def pages(inputs: Inputs) -> Iterator[Page]:
    """A page a scale."""
    name = read_layout().name
    runs, tokens = inputs.near or (None, pd.DataFrame(columns=["scale"]))
    for scale, of_scale in by_scale(runs):
        table = settings_table(of_scale)
        text = nearest_page(table, tokens[tokens["scale"] == scale], scale)
        title = f"What prompt tokens are near to, at {scale} scale"
        yield Page(f"{scale}_{name}", title, text, table, f"{len(of_scale)} prompts")


def read_nearest(results: Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """(runs, tokens), or None before any were measured."""
    runs, tokens = (results / NEAREST / f"{name}.csv" for name in ("runs", "tokens"))
    if not runs.is_file():
        return None
    return pd.read_csv(runs).fillna({"target_prefix": ""}), pd.read_csv(tokens, keep_default_na=False)


def settings_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per setting: n runs (seeds), every measure's mean, and the differences that T33 and T34 are
    about with their 95% intervals."""
    lines = []
    for key, of_setting in runs.groupby(SETTING):
        line = dict(zip(SETTING, key, strict=True)) | {"n": len(of_setting)}
        line |= {name: of_setting[name].mean() for name in _MEASURES}
        for claim, name, than in (("t33", "label_rows", "other_rows"), ("t34", "cohesion", "random_cohesion")):
            difference = (of_setting[name] - of_setting[than]).dropna()
            summary = summarize(difference.tolist())
            line |= {claim: summary.mean, f"{claim}_low": summary.low, f"{claim}_high": summary.high}
        lines.append(line)
    return pd.DataFrame(lines)


def nearest_page(table: pd.DataFrame, tokens: pd.DataFrame, scale: str) -> str:
    """The page of one scale."""
    lines = []
    for line in table.to_dict("records"):
        differences = [_interval(line[claim], line[f"{claim}_low"]) for claim in ("t33", "t34")]
        shares = [_number(line[name]) for name in ("label_rows", "other_rows")]
        near = [_number(line[name]) for name in ("cohesion", "random_cohesion")]
        start = line["init"] + (f", answers after `{line['target_prefix']}`" if line["target_prefix"] else "")
        trained = f"{line['optimizer']} {line['learning_rate']:g}"
        setting = [
            line["experiment"],
            line["task"],
            line["stands_for"],
            start,
            trained,
            f"{line['length']:.0f}",
            str(line["n"]),
        ]
        lines.append([*setting, *shares, differences[0], *near, differences[1], _number(line["unique"])])
    header = ["experiment", "task", "stands in for", "start", "trained by", "length", "n", "labels", "others"]
    header += ["difference (T33)"]
    header += ["cohesion", "of random vectors", "difference (T34)", "different nearest (T35)"]
    notes = [
        "labels: share of the tokens that started from a class label that have a piece of their own label among their "
        "five nearest vocabulary entries (cosine); others: of the other tokens, a piece of any label.",
        "cohesion: mean cosine between the five nearest entries of a token; beside it that of random vectors.",
        "different nearest: different nearest entries, divided by the length. T35: below that of shorter prompts.",
        "n: runs, over seeds; ± the 95% interval of the mean difference.",
        *_t35(table),
    ]
    words = [
        [line["task"], str(line["token"]), line["start"], " ".join(f"`{w}`" for w in line["nearest"].split())]
        for line in tokens[tokens["experiment"] == read_layout().tokens_of].to_dict("records")
    ]
    listed = (
        markdown_table(["task", "token", "started from", "nearest entries: cosine"], words, left=4) if words else ""
    )
    return page(
        f"What prompt tokens are near to, at {scale} scale",
        "Lester et al. 2021, section 7, in numbers.",
        markdown_table(header, lines, left=5),
        bullets(notes),
        *(["## Every token of the first seed", listed] if listed else []),
    )


def _t35(table: pd.DataFrame) -> list[str]:
    """Whether of 100 tokens a smaller share has a nearest entry of its own than of 20, for every backbone with both."""
    ablation = table[table["experiment"].isin(read_layout().lengths)]
    ablation = ablation[ablation["init"] == "class_labels"].sort_values("experiment")
    found = []
    for name, of_backbone in ablation.groupby("stands_for"):
        shares = of_backbone.drop_duplicates("length").set_index("length")["unique"]
        if {20, 100} <= {*shares.index}:
            smaller = "smaller" if shares[100] < shares[20] else "not smaller"
            found.append(f"{name}: {shares[100]:.2f} with 100 tokens, {shares[20]:.2f} with 20: {smaller}")
    return [f"T35, {line}." for line in found]


def _number(value: float) -> str:
    return HOLE if math.isnan(value) else f"{value:.2f}"


def _interval(mean: float, low: float) -> str:
    if math.isnan(mean):
        return HOLE
    return f"{mean:+.2f}" + ("" if math.isnan(low) else f" ±{mean - low:.2f}")
