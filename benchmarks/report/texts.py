"""The tables of tasks that are answered in texts at our own scales: E2E by the official five metrics, XSUM by ROUGE."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from benchmarks.report.grid import AVERAGE, Column, GridRow, grid
from benchmarks.report.grid_page import grid_markdown
from benchmarks.report.render import metric_name, page


@dataclass(frozen=True)
class TextTable:
    """One page: rows by metrics of one task at one scale."""

    name: str  # of its files
    scale: str
    title: str
    about: str
    notes: str
    rows: tuple[GridRow, ...]
    columns: tuple[Column, ...]


def _columns(task: str, *metrics: str) -> tuple[Column, ...]:
    return tuple(Column(metric_name(metric), task, metric) for metric in metrics)


E2E_COLUMNS = _columns("e2e", "bleu", "nist", "meteor", "rouge_l", "cider", "loss", "cut_off")
XSUM_COLUMNS = _columns("xsum", "rouge1", "rouge2", "rougeL", "loss", "cut_off")
_PREFIX = "prefix_tuning/table4_"
E2E_MICRO_ROWS = (
    GridRow("GPT-2, random start", "controls/gpt2_scratch"),
    GridRow("full fine-tuning", "prefix_tuning/table1_medium_full"),
    GridRow("FT-top2", "prefix_tuning/table1_medium_ft_top2"),
    GridRow("adapters (3%)", "prefix_tuning/table1_medium_adapter_3pct"),
    GridRow("adapters (0.1%)", "prefix_tuning/table1_medium_adapter_0_1pct"),
    GridRow("Adapter^H", "lora/table3_gpt2_medium_adapter_h"),
    GridRow("LoRA", "lora/table3_gpt2_medium_lora"),
    GridRow("PREFIX", f"{_PREFIX}prefix"),
    *(GridRow(f"INFIX-{n}", f"{_PREFIX}infix_{n}") for n in (1, 10, 20)),
    *(GridRow(f"EMB-{n}", f"{_PREFIX}emb_{n}") for n in (1, 10, 20)),
)
XSUM_MICRO_ROWS = (
    GridRow("BART, frozen", "prefix_tuning/xsum_frozen"),
    GridRow("BART, random start", "controls/bart_scratch"),
    GridRow("full fine-tuning", "prefix_tuning/table2_bart_full"),
    GridRow("PREFIX (2%)", "prefix_tuning/table2_bart_prefix_2pct"),
    GridRow("PREFIX (0.1%)", "prefix_tuning/table2_bart_prefix_0_1pct"),
)
_NAMES = {"full": "full fine-tuning", "lora": "LoRA", "houlsby": "Houlsby", "prefix": "PREFIX"}
E2E_SMALL_ROWS = (
    *(GridRow(label, f"small/e2e_{name}") for name, label in _NAMES.items()),
    *(GridRow(f"INFIX-{n}", f"small/e2e_infix_{n}") for n in (1, 10, 20)),
    *(GridRow(f"EMB-{n}", f"small/e2e_emb_{n}") for n in (1, 10, 20)),
)
_E2E_NOTES = (
    "BLEU, METEOR, ROUGE-L in points; NIST and CIDEr in their own units; loss: nats per token of the references; "
    "cut off: percent of outputs that came to no end. The official E2E script's metrics, Python backend."
)
TABLES = (
    TextTable(
        "micro_e2e",
        "micro",
        "Li & Liang 2021 and Hu et al. 2021 (LoRA) on E2E, at micro scale",
        "The papers' methods on a stand-in GPT-2 and a generated data-to-text task, both made here. Never to be "
        "compared with the printed scores: read down a column.",
        _E2E_NOTES,
        E2E_MICRO_ROWS,
        E2E_COLUMNS,
    ),
    TextTable(
        "small_e2e",
        "small",
        "E2E with a small GPT-2 of our own",
        "The real E2E test set (630 inputs, 4,693 references, whitespace-tokenised as in both papers), but a "
        "GPT-2 of 3.4M parameters pretrained on 29 MB of text, and a part of the training rows. True numbers, not "
        "comparable to the printed ones.",
        _E2E_NOTES,
        E2E_SMALL_ROWS,
        E2E_COLUMNS,
    ),
    TextTable(
        "micro_xsum",
        "micro",
        "Li & Liang 2021 on XSUM, at micro scale",
        "Prefix tuning of a stand-in BART on a generated task: four sentences and their headline. Never to be compared "
        "with the printed scores: read down a column.",
        "ROUGE: F of stemmed words, in points; loss: nats per token of the headline; cut off: percent of outputs that "
        "came to no end. The prefix of 2% has 20 positions here.",
        XSUM_MICRO_ROWS,
        XSUM_COLUMNS,
    ),
)


def text_cells(frame: pd.DataFrame, table: TextTable, settings: str = "paper") -> pd.DataFrame:
    """The cells of the table (see `grid.grid`), on the test split."""
    cells = grid(frame, table.rows, table.columns, table.scale, settings, "test")
    return cells[cells["column"] != AVERAGE].reset_index(drop=True)


def text_page(cells: pd.DataFrame, table: TextTable) -> str:
    """The page of the table."""
    settings = cells["settings"].iloc[0]
    notes = [
        table.notes,
        "Each run at its evaluation with the lowest validation loss.",
        "trained: parameters, the MLPs of prefix, infix and embedding-only included.",
    ]
    title = table.title if settings == "paper" else f"{table.title} ({settings} settings)"
    return page(title, table.about, grid_markdown(cells, notes))
