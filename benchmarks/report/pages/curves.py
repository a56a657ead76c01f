"""Curves: scores of one experiment over what it varies (prefix length, training rows, start, hand-written prompt)."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from ...config.metrics import metric as metric_of
from ...records.store import write_files
from ..render import bullets, markdown_table, page, points, write
from ..rules.conflicts import of_mean
from ..rules.over_tasks import of_split, seed_means
from ..rules.selection import at_selected
from ..rules.statistics import summarize
from .grid_page import mark, marks_legend

SCORE = "score"  # in place of a metric: the one that selects checkpoints of the task
PAPER = "paper"  # the scale whose test labels are not published


@dataclass(frozen=True)
class Curve:
    """Runs of `experiments`, a line for each value of `series`, over `x` (None: a table without a figure)."""

    name: str  # of its files
    title: str
    about: str
    experiments: tuple[str, ...]
    x: str | None
    x_label: str
    series: str
    drawn: str = "bleu"
    metrics: tuple[str, ...] = ("bleu", "nist", "meteor", "rouge_l", "cider", "loss")
    chosen: str = "at each run's evaluation with the lowest validation loss"
    units: str = "BLEU, METEOR and ROUGE in points; NIST and CIDEr in their own units; loss in nats per token."
    logarithmic: bool = True
    series_label: str = ""  # where the names of the series do not say what they are
    shared: tuple[str, ...] = ()  # experiments whose runs stand at the points that no run of `experiments` has


def _of_prompts(name: str, title: str, about: str, series: str, experiments: tuple[str, ...] = ()) -> Curve:
    """A part of figures 1 and 3 of Lester et al. 2021, whose values are not printed: score over the backbone's size.

    All parts of figure 3 have the default setting in common, which is figure 1's.
    """
    return Curve(
        f"prompt_{name}",
        title,
        f"{about} Mean over the tasks that a seed was trained on (micro: SST-2).",
        experiments or (f"prompt_tuning/{name}",),
        "backbone_params",
        "parameters of the backbone",
        series,
        SCORE,
        (SCORE, "illegal"),
        "at each run's best evaluation on validation",
        "Score: of each task its own (SuperGLUE: accuracy or F1, of two metrics their mean), in points; illegal: "
        "percent of answers that are no label, which count as wrong.",
        shared=() if experiments else ("prompt_tuning/size",),
    )


# Steps of LM adaptation that a backbone has behind it.
LM_STEPS = {
    "t5_v1_1_large": 0.0,
    "t5_large_lm_adapt_10k": 10_000.0,
    "t5_large_lm_adapt_50k": 50_000.0,
    "t5_large_lm_adapt": 100_000.0,
}
CURVES = [
    _of_prompts(
        "size",
        "Prompt tuning and model tuning over sizes",
        "Lester et al. 2021, figure 1: a prompt on the LM-adapted T5; all of T5 1.1 tuned on one task, or on all.",
        "experiment",
        ("prompt_tuning/size", "prompt_tuning/model_tuning", "prompt_tuning/multitask_model_tuning"),
    ),
    replace(
        _of_prompts("length", "Prompt length", "Lester et al. 2021, figure 3 (a).", "length"),
        series_label="prompt length",
    ),
    _of_prompts("init", "The start of the prompt", "Lester et al. 2021, figure 3 (b).", "init"),
    _of_prompts(
        "pretraining", "What the backbone was pretrained to do", "Lester et al. 2021, figure 3 (c).", "objective"
    ),
    replace(
        _of_prompts(
            "lm_steps",
            "Steps of LM adaptation",
            "Lester et al. 2021, figure 3 (d). Micro: 0, 1,200, 6,000 and 12,000 steps stand for those that are named.",
            "experiment",
        ),
        x="lm_steps",
        x_label="steps of LM adaptation",
        logarithmic=False,
        shared=("prompt_tuning/size", "prompt_tuning/pretraining"),
    ),
    _of_prompts(
        "in_context",
        "Prompts in words and a trained prompt",
        "Lester et al. 2021, figure 1 and section 3.3: a frozen backbone with examples, or the beginning of an answer "
        "(conf/in_context/; the most probable label counts), and a trained prompt on the same T5.",
        "design",
        ("prompt_tuning/in_context", "prompt_tuning/in_context_gpt2", "prompt_tuning/size"),
    ),
    replace(
        _of_prompts(
            "optimizer",
            "Optimizer and learning rate of a prompt",
            "Not in the paper, which trains all prompts by Adafactor at 0.3: what another optimizer or rate is worth.",
            "optimizer",
        ),
        x="learning_rate",
        x_label="learning rate",
        shared=(),
    ),
    Curve(
        "task_prompt",
        "The right and the wrong task's prompt",
        "Claim P02: a frozen T5 asked one task with examples of it, and with those of another; nothing is trained.",
        ("prompt_tuning/task_prompt",),
        None,
        "",
        "asked",
        SCORE,
        (SCORE, "illegal"),
        "nothing was trained or chosen",
        "Score: accuracy in points. Seeds draw other examples.",
    ),
    Curve(
        "xsum_length",
        "Prefix length in summarisation",
        "Prefix tuning of BART with more and more positions. Li & Liang 2021, figure 4, shows XSUM without numbers.",
        ("prefix_tuning/xsum_length",),
        "length",
        "prefix length",
        "experiment",
        "rougeL",
        ("rouge1", "rouge2", "rougeL", "loss"),
    ),
    Curve(
        "prefix_length",
        "Prefix length",
        "Prefix tuning with 1 to 40 positions. Li & Liang 2021, figure 4, shows DART and XSUM; none of E2E is printed.",
        ("prefix_tuning/length",),
        "length",
        "prefix length",
        "experiment",
    ),
    Curve(
        "low_data",
        "Low data and the start of the prefix",
        "Random start against the keys and values of words, and full fine-tuning, on subsamples of the training rows "
        "(Li & Liang 2021, sections 6.3 and 7.4). The spread is over subsamples, the seed is one.",
        ("prefix_tuning/low_data_random", "prefix_tuning/low_data_words", "prefix_tuning/low_data_full"),
        "train_rows",
        "training rows",
        "start",
    ),
    Curve(
        "hand_written",
        "Hand-written prompts on the frozen model",
        "Nothing is trained: the model writes on behind the prompt (conf/hand_written/). One deterministic run each.",
        ("prefix_tuning/hand_written",),
        None,
        "",
        "source_form",
    ),
]


def curve_points(frame: pd.DataFrame, curve: Curve, scale: str) -> pd.DataFrame:
    """One line per series, x and metric, on the test split (published data: validation); empty without runs.

    A failed run is counted: its point has a smaller n, and `failed` says by how many. Runs that make no mean
    (conflicts.of_mean) have none: `conflict` says why. `flags`: what is suspicious about some run of the point.
    """
    at_scale = frame[frame["scale"] == scale]
    own = at_scale[at_scale["experiment"].isin(curve.experiments)]
    if own.empty:
        return pd.DataFrame()
    shared = at_scale[at_scale["experiment"].isin(curve.shared)].assign(experiment=curve.experiments[0], borrowed=True)
    own = pd.concat([own.assign(borrowed=False), shared], ignore_index=True)
    words = own["words"].fillna("").str.strip()
    methods = own["experiment"].str.rpartition("_")[2]
    adapted = own["stands_for"].fillna("").str.contains("lm_adapt")
    sentinel = own["target_prefix"].fillna("") != ""
    own = own.assign(
        start=words.where(words != "", methods),
        objective="span corruption" + sentinel.map({True: " + sentinel", False: ""}),
        lm_steps=own["stands_for"].map(LM_STEPS).where(~sentinel),
        design=own["in_context"].fillna("trained prompt")
        + own["experiment"].map(lambda name: " (GPT-2)" if name.endswith("_gpt2") else ""),
        asked=own["task"] + ", prompt " + own["in_context"].fillna("none"),
    )
    own["objective"] = own["objective"].where(~adapted, "LM adaptation")
    own["x"] = own[curve.x] if curve.x else 0.0
    there = own.groupby([curve.series, "x"])["borrowed"].transform("min")
    own = own[own["borrowed"] == there]
    failed = own[own["status"] == "failed"].groupby([curve.series, "x"]).size()
    at = at_selected(own)
    at = pd.concat([at, at[at["metric"] == at["selection_metric"]].assign(metric=SCORE)], ignore_index=True)
    at = of_split(at[at["metric"].isin(curve.metrics)], _split(scale))
    lines = []
    for (series, x, metric), of_point in at.groupby([curve.series, "x", "metric"], sort=True):
        conflict = of_mean(of_point)
        summary = summarize([float("nan")] if conflict else seed_means(of_point).tolist())
        lines.append(
            {
                "series": series,
                "x": x,
                "metric": metric,
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


def _split(scale: str) -> str:
    """Whose scores are drawn."""
    return "validation" if scale == PAPER else "test"


def write_curve(table: pd.DataFrame, curve: Curve, scale: str, output: Path) -> str:
    """Write the page, its numbers and its figure; return the name of the files."""
    name = f"{scale}_{curve.name}"
    figure = ""
    if curve.x is not None:
        write_files({output / f"{name}.svg": draw(table, curve, scale)})
        figure = f"![{curve.title}]({name}.svg)"
    write(output, name, curve_page(table, curve, scale, figure), table)
    return name


def curve_page(table: pd.DataFrame, curve: Curve, scale: str, figure: str) -> str:
    """The page of a curve: figure and numbers."""
    lines = []
    for (series, x), of_point in table.groupby(["series", "x"], sort=True):
        cells = {str(line["metric"]): line for line in of_point.to_dict("records")}
        first = next(iter(cells.values()))
        label = [f"`{series}`"] if curve.x is None else [_name(series), f"{x:g}"]
        failed = f" ({first['failed']} failed)" if first["failed"] else ""
        texts = [_cell(cells, metric) for metric in curve.metrics]
        texts[0] += "" if first["conflict"] else "".join(mark(flag)[0] for flag in str(first["flags"]).split())
        lines.append([*label, f"{first['n']}{failed}", *texts])
    names = [
        *([""] if curve.x is None else [curve.series_label, curve.x_label]),
        "n",
        *(metric_of(name).title for name in curve.metrics),
    ]
    notes = [
        f"{_split(scale).capitalize()} split, {curve.chosen}; ± is the 95% interval of the mean (Student's t).",
        curve.units,
        *(
            ["The figure ends at 0 and 100, where intervals may not."]
            if figure and metric_of(curve.drawn).unit == 100
            else []
        ),
        *marks_legend(flag for flags in table["flags"] for flag in flags.split()),
        *(f"conflict: {cause}." for cause in table["conflict"].unique() if cause),
    ]
    table_text = markdown_table(names, lines)
    return page(f"{curve.title}, at {scale} scale", curve.about, figure, table_text, bullets(notes))


def _cell(cells: dict[str, dict[Any, Any]], metric: str) -> str:
    if metric not in cells:
        return "—"
    cell = cells[metric]
    if cell["conflict"]:
        return "conflict"
    spread = (cell["high"] - cell["low"]) / 2
    return points(cell["mean"], metric) + (f" ±{points(spread, metric)}" if spread == spread else "")


_NAMES = {
    "prompt_tuning/size": "prompt tuning, LM-adapted",
    "prompt_tuning/model_tuning": "model tuning",
    "prompt_tuning/multitask_model_tuning": "model tuning, multi-task",
}


def _name(series: Any) -> str:
    """Of a line: a text, or a number such as a length."""
    return f"{series:g}" if isinstance(series, float) else _NAMES.get(series, str(series))


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

    metric = curve.drawn
    of_metric = table[table["metric"] == metric]
    with mpl.rc_context({"svg.hashsalt": curve.name, "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        groups = list(of_metric.groupby("series", sort=True))
        for place, (series, of_series) in enumerate(groups):
            scaled = metric_of(metric).unit * of_series[["mean", "low", "high"]]
            error = ((scaled["high"] - scaled["low"]) / 2).fillna(0.0)
            label = None if len(groups) == 1 else _name(series)
            aside = place - (len(groups) - 1) / 2  # else the intervals of one x lie upon each other
            x = of_series["x"] * 1.015**aside if curve.logarithmic else of_series["x"]
            axes.errorbar(x, scaled["mean"], yerr=error, marker="o", markersize=4, capsize=3, label=label)
        if curve.logarithmic:
            axes.set_xscale("log")
        ticks = sorted(of_metric["x"].unique())
        close = {x for before, x in pairwise(ticks) if curve.logarithmic and x < 1.15 * before}
        axes.set_xticks(ticks, ["" if x in close else _short(x) for x in ticks])
        if metric_of(metric).unit == 100:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, 0), min(top, 100))  # an interval may reach beyond what a score can be
        axes.minorticks_off()
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel(f"{metric_of(metric).title} ({_split(scale)}, 95% interval)")
        axes.grid(alpha=0.3)
        if len(groups) > 1:
            figure.legend(title=curve.series_label or None, fontsize=8, loc="outside lower center", ncols=3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
