"""What each setting of a prompt is worth, from Lester et al.'s ablations and ours at micro scale.

One line per change: one setting otherwise, its learning rate chosen anew (but where the rate is the change), and the
difference with its 95% interval (Welch and Satterthwaite, as in claims.py). All on the largest stand-in, but for the
changes of its size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ...records.files import write_files
from ..render import bullets, markdown_table, page, points, write
from .claims import CONFLICT, NOT_RUN, judge

NAME = "prompt_worth"
METRIC, SEEDS = "accuracy", 3
_DEFAULT = "prompt_tuning/size[stands_for=t5_large_lm_adapt]"


@dataclass(frozen=True)
class Change:
    """What is changed, both values in words, and the runs that have them (terms as in claims.py)."""

    setting: str
    usual: str
    otherwise: str
    changed: str
    unchanged: str = _DEFAULT


def _size(otherwise: str, name: str) -> Change:
    return Change(
        "size of the backbone", "the largest", otherwise, f"prompt_tuning/size[stands_for=t5_{name}_lm_adapt]"
    )


def _pretraining(otherwise: str, prefix: str) -> Change:
    changed = f"prompt_tuning/pretraining[stands_for=t5_v1_1_large,target_prefix={prefix}]"
    return Change("pretraining", "LM-adapted", otherwise, changed)


def _steps(otherwise: str, name: str) -> Change:
    changed = f"prompt_tuning/lm_steps[stands_for=t5_large_lm_adapt_{name}]"
    return Change("steps of LM adaptation", "all", otherwise, changed)


def _length(rows: int) -> Change:
    changed = f"prompt_tuning/length[length={rows},stands_for=t5_large_lm_adapt]"
    return Change("rows", "20", str(rows), changed)


def _init(otherwise: str, name: str) -> Change:
    return Change("start", "class labels", otherwise, f"prompt_tuning/init[init={name},stands_for=t5_large_lm_adapt]")


def _optimizer(otherwise: str, rate: float) -> Change:
    at = "prompt_tuning/optimizer[optimizer={},learning_rate={}]".format
    words = f"{otherwise} {rate:g}"
    return Change("optimizer and rate", "Adafactor 0.3", words, at(otherwise.lower(), rate), at("adafactor", 0.3))


CHANGES = (
    _size("middle size", "base"),
    _size("smallest", "small"),
    _pretraining("span corruption + sentinel", "<extra_id_0>"),
    _pretraining("span corruption", ""),
    _steps("half", "50k"),
    _steps("a tenth", "10k"),
    *(_length(rows) for rows in (1, 5, 50, 100, 150)),
    _init("sampled vocabulary", "sampled_vocabulary"),
    _init("uniform", "uniform"),
    *(_optimizer("Adafactor", rate) for rate in (3.0, 0.03, 0.003)),
    *(_optimizer("AdamW", rate) for rate in (3.0, 0.3, 0.03, 0.003)),
)


def worth_table(frame: pd.DataFrame, scale: str) -> pd.DataFrame:
    """One line per change whose runs are there and have a mean: both means and `difference`, each with its interval
    from `low` to `high`."""
    terms = [(change, name) for change in CHANGES for name in ("unchanged", "changed", "difference")]
    wanted = {
        "unchanged": "1 {0.unchanged}",
        "changed": "1 {0.changed}",
        "difference": "1 {0.changed}; -1 {0.unchanged}",
    }
    lines = [{"terms": wanted[name].format(change), "metric": METRIC, "split": "test"} for change, name in terms]
    judged = judge(frame, pd.DataFrame(lines).assign(n=SEEDS, margin=0.0), scale).to_dict("records")
    table = []
    for i, change in enumerate(CHANGES):
        of_change = dict(zip(wanted, judged[3 * i : 3 * i + 3], strict=True))
        if any(line["verdict"] in (NOT_RUN, CONFLICT) for line in of_change.values()):
            continue
        row: dict[str, object] = {"setting": change.setting}
        row |= {"usual": change.usual, "otherwise": change.otherwise}
        for name, line in of_change.items():
            row |= {name: line["sum"], f"{name}_low": line["low"], f"{name}_high": line["high"]}
        table.append(row)
    return pd.DataFrame(table)


def write_worth(table: pd.DataFrame, scale: str, output: Path) -> str:
    """Write the page, its numbers and its figure; return the name of the files."""
    name = f"{scale}_{NAME}"
    write_files({output / f"{name}.svg": draw(table)})
    write(output, name, worth_page(table, scale, f"![Points lost and won by each change]({name}.svg)"), table)
    return name


def worth_page(table: pd.DataFrame, scale: str, figure: str) -> str:
    """The page: the changes in the order of CHANGES."""
    lines = []
    for line in table.to_dict("records"):
        scores = [_score(line, name) for name in ("unchanged", "changed")]
        difference = points(line["difference"], signed=True)
        interval = f"{points(line['difference_low'], signed=True)} to {points(line['difference_high'], signed=True)}"
        sure = line["difference_low"] > 0 or line["difference_high"] < 0
        words = [line["setting"], f"{line['usual']} → {line['otherwise']}"]
        lines.append([*words, *scores, difference, interval, "yes" if sure else "no"])
    header = ["setting", "change", "before", "after", "points", "95% interval", "beyond 0"]
    notes = [
        f"SST-2 of the generated language, accuracy on the test split, {SEEDS} seeds; the largest stand-in, 20 rows, "
        "class labels, as published but for 20 rows in place of 100. Every setting has the best of three rates on one "
        "other seed, so that the rate may change with it; the lines of the optimizer name theirs.",
        "Interval of the difference: each setting with a spread of its own (Welch and Satterthwaite). Of lines without "
        "any effect, one in twenty would lie beyond 0.",
    ]
    return page(
        f"What each setting of a prompt is worth, at {scale} scale",
        "One setting changed at a time, at the learning rate that is best for it: which settings of Lester et al. 2021 "
        "decide a score, and by how much.",
        figure,
        markdown_table(header, lines, left=2),
        bullets(notes),
    )


def _score(line: dict[Any, Any], name: str) -> str:
    return f"{points(line[name])} ±{points(line[f'{name}_high'] - line[name])}"


def draw(table: pd.DataFrame) -> bytes:
    """The differences and their intervals as SVG, the first change at the top."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": NAME, "svg.fonttype": "none", "font.size": 9}):
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
