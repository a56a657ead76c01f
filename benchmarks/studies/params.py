"""Parameter counts of the published rows, from configurations alone: `peft-bench params`.

    conf/backbone, conf/method -> published shape on the meta device -> attach -> count -> the paper's figure

No weights, no network. results/reference/param_counts.csv has a line for every printed figure and every reading of it,
and names the convention behind the figure: what is `counted` (n), and the `formula` that turns n into it. Whether our n
prints the same digits is computed here.

    peft-bench params                                         the papers' rows, also to results/tables/param_counts.csv
    peft-bench params backbone=roberta_large method.rank=4    one configuration of your own
"""

import argparse
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from peft_methods.attach import attach
from peft_methods.counting import ParameterCounts, count_parameters
from peft_methods.heads import ClassificationHead

from ..backbones.checks import check_architecture
from ..backbones.loading import empty_model
from ..config.compose import backbone_choice, build_method, method_choice, register, typed
from ..config.schema import CONF_DIR, BackboneConfig
from ..config.science import without_young
from ..records.files import write_files
from ..records.places import TABLES
from ..report.reference import DIRECTORY, Reference, read_reference
from ..report.render import bullets, markdown_table, page

# What a paper may count as n ...
COUNTED: dict[str, Callable[[ParameterCounts], int]] = {
    "added": lambda c: c.added,
    "method": lambda c: c.method,
    "stored": lambda c: c.stored - c.head,
    "with head": lambda c: c.method + c.head,
}
# ... and how it prints n. Nine tasks: Houlsby et al. count the two halves of MNLI as two and leave WNLI out.
FORMULAS: dict[str, Callable[[int, ParameterCounts], float]] = {
    "n / 10^6": lambda n, c: n / 10**6,
    "n / 2^20": lambda n, c: n / 2**20,
    "n / 10^3": lambda n, c: n / 10**3,
    "n / 10^3, to the nearest 10": lambda n, c: 10 * round(n / 10**4),
    "100 n / backbone": lambda n, c: 100 * n / c.backbone,
    "100 n / layers": lambda n, c: 100 * n / c.layers,
    "100 n / (backbone + n)": lambda n, c: 100 * n / (c.backbone + n),
    "9 n / backbone": lambda n, c: 9 * n / c.backbone,
    "1 + 9 n / layers": lambda n, c: 1 + 9 * n / c.layers,
    "1 + 9 n / backbone": lambda n, c: 1 + 9 * n / c.backbone,
    "n": lambda n, c: n,
    "backbone + n": lambda n, c: c.backbone + n,
}
_NAMES = tuple(FORMULAS)
UNITS = {"M": _NAMES[:2], "k": _NAMES[2:4], "%": _NAMES[4:7], "x": _NAMES[7:10], "": _NAMES[10:]}


@dataclass(frozen=True)
class CountRow:
    """One reading of a printed figure beside our count of it; a line of results/tables/param_counts.csv.

    Key: table, row, configuration. experiment: our name of the row, "" where there is none. Parameters as in
    peft_methods/counting.py, heads apart but for with_head_params. The percentages are those of the counted n.
    value: n in the paper's formula; ours: value with the printed digits.
    """

    table: str
    row: str
    configuration: str
    experiment: str
    backbone: str
    method: str
    printed: str
    ours: str
    value: float
    method_params: int
    added_params: int
    head_params: int
    with_head_params: int
    stored_params: int
    merged_params: int
    backbone_params: int
    layers_params: int
    percent_of_model: float
    percent_of_layers: float
    agrees: str  # yes or no
    convention: str
    note: str


def count(backbone: BackboneConfig, method: Mapping[str, Any], num_labels: int) -> ParameterCounts:
    """The counts of a method on the backbone's published shape, with a head for `num_labels` labels, 0 for none."""
    if method["_target_"].startswith("peft_bench.controls"):
        raise ValueError(f"{method['_target_']} has no parameters to count: choose a method that trains a backbone")
    check_architecture(backbone)
    model = _meta_backbone(backbone.model_type, backbone.pooler, json.dumps(backbone.architecture))
    head = partial(ClassificationHead, model.config, num_labels) if num_labels else None
    with no_init_weights():  # drawing values on the meta device takes longer than everything else
        attached = attach(model, [build_method(method)], [head])
    try:
        return count_parameters(attached)
    finally:
        attached.detach()


def count_rows(reference: Reference) -> list[CountRow]:
    """Every line of results/reference/param_counts.csv beside our count, in the order of that file."""
    return [count_row(line) for line in reference.params.to_dict("records")]


def count_row(line: Mapping[Any, str]) -> CountRow:
    """One line of results/reference/param_counts.csv beside our count.

    Where the paper mixes adapter sizes (`sizes`, one per task), the counts are means over the tasks.
    """
    backbone, labels = backbone_choice(line["backbone"]), int(line["labels"])
    settings = [f"{line['settings']} bottleneck_dim={m}" for m in line["sizes"].split()] or [line["settings"]]
    methods = {each: method_choice(line["method"], each) for each in settings}
    by_setting = {each: count(backbone, method, labels) for each, method in methods.items()}
    every_task = [by_setting[each] for each in settings]
    counts = ParameterCounts(
        **{
            f.name: round(sum(getattr(c, f.name) for c in every_task) / len(every_task))
            for f in fields(ParameterCounts)
        }
    )
    described = methods[settings[0]] | ({"bottleneck_dim": f"mean of {line['sizes']}"} if line["sizes"] else {})
    return _row(line, _describe(described), counts)


def figure_of(printed: str, counted: str, formula: str, counts: ParameterCounts) -> tuple[float, str]:
    """(value, text): n in the formula, and as text with the digits and the unit of `printed`."""
    digits, unit = _printed(printed)
    value = FORMULAS[formula](COUNTED[counted](counts), counts)
    return value, f"{value:{'' if unit else ','}.{len(digits.partition('.')[2])}f}{unit}"


def readings(printed: str, counts: ParameterCounts) -> list[str]:
    """Every convention known here, of those with the printed unit, under which our count prints the same digits."""
    formulas = UNITS[_printed(printed)[1]]
    tried = itertools.product(COUNTED, formulas)
    return [f"{f}, n = {c}" for c, f in tried if figure_of(printed, c, f, counts)[1] == printed]


def write_rows(rows: Sequence[CountRow], folder: Path) -> None:
    """param_counts.csv, one line a row, and the same as a page, param_counts.md."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in fields(CountRow)])
    for row in rows:
        values = [getattr(row, field.name) for field in fields(CountRow)]
        writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in values])
    csv_path, page_path = folder / "param_counts.csv", folder / "param_counts.md"
    write_files({csv_path: file.getvalue().encode(), page_path: _page(rows).encode()})


def _page(rows: Sequence[CountRow]) -> str:
    about = (
        f"Of {len(rows)} readings of printed figures {sum(row.agrees == 'yes' for row in rows)} print the same digits. "
        "n: what the paper counts. added: new parameters. trained: these and what else trains of the backbone. "
        "stored: what a task's checkpoint holds of them. merged: what is left beside the backbone after merging. "
        "Heads are only in `with head`."
    )
    names = ["added", "trained", "with head", "stored", "merged"]
    header = ["row", "configuration", "convention", "printed", "ours", *names, "% model", "% layers"]
    parts = [about]
    for title, group in itertools.groupby(rows, key=lambda row: row.table):
        members = list(group)
        lines = [[row.row, row.configuration, row.convention, row.printed, row.ours, *_numbers(row)] for row in members]
        parts += [f"## {title}", markdown_table(header, lines, left=3)]
        parts += [bullets([f"{row.row}, {row.configuration}: {row.note}." for row in members if row.note])]
    return page("Parameter counts", *parts)


def _numbers(row: CountRow) -> list[str]:
    counts = (row.added_params, row.method_params, row.with_head_params, row.stored_params, row.merged_params)
    return [f"{n:,}" for n in counts] + [
        f"{percent:.{3 if percent >= 0.01 else 5}f}" for percent in (row.percent_of_model, row.percent_of_layers)
    ]


def main(argv: Sequence[str]) -> int:
    """`peft-bench params`: print and write the table, or count one configuration given by Hydra overrides."""
    parser = argparse.ArgumentParser(
        prog="peft-bench params",
        description="Trainable parameters of the published rows beside the printed figures, from configurations alone.",
    )
    parser.add_argument("overrides", nargs="*", help="count this configuration instead, e.g. method=bitfit")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that holds tables/ (results)")
    parser.add_argument("--reference", type=Path, default=DIRECTORY, help="the papers' figures (results/reference)")
    options = parser.parse_args(argv)
    register()
    if options.overrides:
        with initialize_config_dir(str(CONF_DIR), version_base=None):
            cfg = typed(compose("config", options.overrides))
        counts = count(cfg.backbone, cfg.method, cfg.task.num_labels)
        print(f"{cfg.backbone.name} {_describe(cfg.method)}, head for {cfg.task.num_labels} labels")
        for field in fields(counts):
            print(f"{field.name:<10}{getattr(counts, field.name):>15,}")
        return 0
    rows = count_rows(read_reference(options.reference))
    write_rows(rows, options.results / TABLES)
    _print(rows)
    print(f"n: what the paper counts. Written to {options.results / TABLES / 'param_counts.md'} and .csv")
    return 0


@lru_cache(maxsize=4)  # rows of one backbone follow each other
def _meta_backbone(model_type: str, pooler: bool, architecture: str) -> PreTrainedModel:
    with torch.device("meta"), no_init_weights():
        return empty_model(AutoConfig.for_model(model_type, **json.loads(architecture)), pooler)


def _row(line: Mapping[Any, str], method: str, counts: ParameterCounts) -> CountRow:
    printed, counted, formula = line["printed"], line["counted"], line["formula"]
    value, ours = figure_of(printed, counted, formula, counts)
    n = COUNTED[counted](counts)
    convention = f"{formula}, n = {counted}"
    if ours != printed:
        others = {text.partition(",")[0]: text for text in reversed(readings(printed, counts))}.values()
        convention = "does not reconcile" + (f" so; {' or '.join(others)} would" if others else "")
    return CountRow(
        **{name: line[name] for name in ("table", "row", "configuration", "experiment", "backbone", "printed", "note")},
        method=method,
        ours=ours,
        value=value,
        method_params=counts.method,
        added_params=counts.added,
        head_params=counts.head,
        with_head_params=counts.method + counts.head,
        stored_params=counts.stored - counts.head,
        merged_params=counts.merged,
        backbone_params=counts.backbone,
        layers_params=counts.layers,
        percent_of_model=100 * n / counts.backbone,
        percent_of_layers=100 * n / counts.layers,
        agrees="yes" if ours == printed else "no",
        convention=convention,
    )


def _printed(printed: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([Mk%x])|(\d[\d,]*)", printed)
    if not match:
        raise ValueError(
            f"printed={printed!r}: expected digits, and M, k, % or x where it is no plain number; change "
            "results/reference/param_counts.csv"
        )
    return match[1] or match[3], match[2] or ""


def _describe(method: Mapping[str, Any]) -> str:
    fields_of = without_young(method).items()
    settings = ", ".join(f"{key}={_plain(value)}" for key, value in fields_of if key != "_target_")
    return f"{method['_target_'].rpartition('.')[2]}({settings})"


def _plain(value: Any) -> str:
    return "+".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _print(rows: Sequence[CountRow]) -> None:
    table = Table(pad_edge=False)
    for name in ("row", "configuration"):
        table.add_column(name)
    for name in ("printed", "ours", "added", "trained", "with head", "stored", "merged", "% model", "% layers"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("convention")
    for title, group in itertools.groupby(rows, key=lambda row: row.table):
        table.add_row(f"[bold]{escape(title)}[/]")
        for row in group:
            table.add_row(
                escape(row.row),
                row.configuration,
                row.printed,
                row.ours,
                *_numbers(row),
                row.convention if row.agrees == "yes" else f"{row.convention}: {row.note}",
            )
    console = Console()
    # A pipe has no width: give the table what it needs.
    (console if console.is_terminal else Console(width=240)).print(table)
