"""Parameter counts of the published rows, from configurations alone: `peft-bench params`.

    experiment file -> backbone of its published shape on the meta device -> attach -> count -> the paper's figure

No weights, no network. results/reference/param_counts.csv names the convention behind each printed figure: what is
`counted` (n), and the `formula` that turns n into the figure. Whether our n prints the same digits is computed here.

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
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.initialization import no_init_weights

from benchmarks.checks import check_architecture
from benchmarks.compose import CONF_DIR, register, typed
from benchmarks.config import RunConfig
from benchmarks.record import write_files
from benchmarks.report.reference import DIRECTORY, TABLES, Reference, read_reference
from peft_methods.attach import attach
from peft_methods.counting import ParameterCounts, count_parameters
from peft_methods.heads import ClassificationHead

# What a paper may count as n ...
COUNTED: dict[str, Callable[[ParameterCounts], int]] = {
    "added": lambda c: c.added,
    "method": lambda c: c.method,
    "with head": lambda c: c.stored,
}
# ... and how it prints n. Nine tasks: Houlsby et al. count the two halves of MNLI as two and leave WNLI out.
FORMULAS: dict[str, Callable[[int, ParameterCounts], float]] = {
    "n / 10^6": lambda n, c: n / 10**6,
    "n / 2^20": lambda n, c: n / 2**20,
    "100 n / backbone": lambda n, c: 100 * n / c.backbone,
    "100 n / layers": lambda n, c: 100 * n / c.layers,
    "9 n / backbone": lambda n, c: 9 * n / c.backbone,
    "1 + 9 n / layers": lambda n, c: 1 + 9 * n / c.layers,
    "1 + 9 n / backbone": lambda n, c: 1 + 9 * n / c.backbone,
}
UNITS = {"M": ("n / 10^6", "n / 2^20"), "%": ("100 n / layers", "100 n / backbone"), "x": tuple(FORMULAS)[4:]}


@dataclass(frozen=True)
class CountRow:
    """One printed figure beside our count of the same configuration; a line of results/tables/param_counts.csv.

    added, method and head parameters as in peft_methods/counting.py; with_head_params is what one task stores. The
    percentages are those of the counted n. value: n in the paper's formula; ours: value with the printed digits.
    """

    experiment: str
    table: str
    row: str
    configuration: str
    printed: str
    ours: str
    value: float
    method_params: int
    added_params: int
    head_params: int
    with_head_params: int
    backbone_params: int
    layers_params: int
    percent_of_model: float
    percent_of_layers: float
    agrees: str  # yes or no
    convention: str
    note: str


def count_config(cfg: RunConfig, num_labels: int) -> ParameterCounts:
    """The counts of one configuration on its published backbone, with a head for `num_labels` labels."""
    if cfg.method["_target_"].startswith("benchmarks.controls"):
        raise ValueError(f"{cfg.method['_target_']} has no parameters to count: choose a method that trains a backbone")
    check_architecture(cfg.backbone)
    backbone = _meta_backbone(cfg.backbone.model_type, cfg.backbone.pooler, json.dumps(cfg.backbone.architecture))
    with no_init_weights():  # drawing values on the meta device takes longer than everything else
        head = partial(ClassificationHead, backbone.config, num_labels)
        attached = attach(backbone, [instantiate(cfg.method)], [head])
    try:
        return count_parameters(attached)
    finally:
        attached.detach()


def count_rows(reference: Reference) -> list[CountRow]:
    """Every printed figure of results/reference/param_counts.csv beside our count, in the order of that file."""
    rows, titles = {}, {}
    for name, table in reference.tables.items():
        for line in table.drop_duplicates("experiment").to_dict("records"):
            rows[line["experiment"]], titles[line["experiment"]] = line["row"], TABLES[name]
    result = []
    figures = reference.params.to_dict("records")
    with initialize_config_dir(str(CONF_DIR), version_base=None):
        for experiment, group in itertools.groupby(figures, key=lambda figure: figure["experiment"]):
            cfg = typed(compose("config", [f"experiment={experiment}", "scale=paper"]))
            for figure in group:
                counts, configuration = _count_figure(cfg, figure)
                result.append(_row(figure, titles[experiment], rows[experiment], configuration, counts))
    return result


def figure_of(printed: str, counted: str, formula: str, counts: ParameterCounts) -> tuple[float, str]:
    """(value, text): n in the formula, and as text with the digits and the unit of `printed`."""
    digits, unit = _printed(printed)
    value = FORMULAS[formula](COUNTED[counted](counts), counts)
    return value, f"{value:.{len(digits.partition('.')[2])}f}{unit}"


def readings(printed: str, counts: ParameterCounts) -> list[str]:
    """Every convention known here, of those with the printed unit, under which our count prints the same digits."""
    formulas = UNITS[_printed(printed)[1]]
    tried = itertools.product(COUNTED, formulas)
    return [f"{f}, n = {c}" for c, f in tried if figure_of(printed, c, f, counts)[1] == printed]


def write_rows(rows: Sequence[CountRow], path: Path) -> None:
    """The rows as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([field.name for field in fields(CountRow)])
    for row in rows:
        values = [getattr(row, field.name) for field in fields(CountRow)]
        writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in values])
    write_files({path: file.getvalue().encode()})


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
        counts = count_config(cfg, cfg.task.num_labels)
        print(f"{cfg.backbone.name} {_describe(cfg.method)}, head for {cfg.task.num_labels} labels")
        for field in fields(counts):
            print(f"{field.name:<10}{getattr(counts, field.name):>15,}")
        return 0
    rows = count_rows(read_reference(options.reference))
    write_rows(rows, options.results / "tables" / "param_counts.csv")
    _print(rows)
    print(f"n: what the paper counts. Written to {options.results / 'tables' / 'param_counts.csv'}")
    return 0


@lru_cache(maxsize=8)  # a few shapes serve all rows
def _meta_backbone(model_type: str, pooler: bool, architecture: str) -> PreTrainedModel:
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, **json.loads(architecture))
        with no_init_weights():
            return AutoModel.from_config(config, add_pooling_layer=pooler)


def _count_figure(cfg: RunConfig, figure: Mapping[Any, str]) -> tuple[ParameterCounts, str]:
    """Counts of one figure; where the paper mixes adapter sizes, the mean over `sizes`, each for as many tasks."""
    labels = int(figure["labels"])
    if not figure["sizes"]:
        return count_config(cfg, labels), _describe(cfg.method)
    sizes = [int(size) for size in figure["sizes"].split()]
    each = [count_config(replace(cfg, method={**cfg.method, "bottleneck_dim": size}), labels) for size in sizes]
    mean = {f.name: round(sum(getattr(c, f.name) for c in each) / len(each)) for f in fields(ParameterCounts)}
    return ParameterCounts(**mean), _describe({**cfg.method, "bottleneck_dim": "mean of " + ", ".join(map(str, sizes))})


def _row(figure: Mapping[Any, str], table: str, row: str, configuration: str, counts: ParameterCounts) -> CountRow:
    printed, counted, formula = figure["printed"], figure["counted"], figure["formula"]
    value, ours = figure_of(printed, counted, formula, counts)
    n = COUNTED[counted](counts)
    convention = f"{formula}, n = {counted}"
    if ours != printed:
        others = readings(printed, counts)
        convention = "does not reconcile" + (f" so; {' or '.join(others)} would" if others else "")
    return CountRow(
        experiment=figure["experiment"],
        table=table,
        row=row,
        configuration=configuration,
        printed=printed,
        ours=ours,
        value=value,
        method_params=counts.method,
        added_params=counts.added,
        head_params=counts.head,
        with_head_params=counts.stored,
        backbone_params=counts.backbone,
        layers_params=counts.layers,
        percent_of_model=100 * n / counts.backbone,
        percent_of_layers=100 * n / counts.layers,
        agrees="yes" if ours == printed else "no",
        convention=convention,
        note=figure["note"],
    )


def _printed(printed: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([M%x])", printed)
    if not match:
        raise ValueError(
            f"printed={printed!r}: expected digits and M, % or x; change results/reference/param_counts.csv"
        )
    return match[1], match[2]


def _describe(method: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={_plain(value)}" for key, value in method.items() if key != "_target_")
    return f"{method['_target_'].rpartition('.')[2]}({settings})"


def _plain(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else str(value)


def _print(rows: Sequence[CountRow]) -> None:
    table = Table(show_lines=False, pad_edge=False)
    numbers = ("printed", "ours", "added", "method", "head", "stored", "% model", "% layers")
    table.add_column("experiment", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("convention")
    for row in rows:
        counts = (row.added_params, row.method_params, row.head_params, row.with_head_params)
        percents = (row.percent_of_model, row.percent_of_layers)
        table.add_row(
            row.experiment,
            row.printed,
            row.ours,
            *(f"{count:,}" for count in counts),
            *(f"{percent:.3f}" for percent in percents),
            row.convention if row.agrees == "yes" else f"{row.convention}: {row.note}",
        )
    console = Console()
    # A pipe has no width: give the table what it needs.
    (console if console.is_terminal else Console(width=200)).print(table)
