"""The tables of E2E at our own scales: both papers' rows by the official five metrics."""

from __future__ import annotations

import pandas as pd

from benchmarks.report.grid import AVERAGE, Column, GridRow, grid
from benchmarks.report.grid_page import grid_markdown
from benchmarks.report.render import page

TASK = "e2e"
COLUMNS = [
    Column("BLEU", TASK, "bleu"),
    Column("NIST", TASK, "nist"),
    Column("METEOR", TASK, "meteor"),
    Column("ROUGE-L", TASK, "rouge_l"),
    Column("CIDEr", TASK, "cider"),
    Column("loss", TASK, "loss"),
    Column("cut off", TASK, "cut_off"),
]
_PREFIX = "prefix_tuning/table4_"
MICRO_ROWS = [
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
]
_NAMES = {"full": "full fine-tuning", "lora": "LoRA", "houlsby": "Houlsby", "prefix": "PREFIX"}
SMALL_ROWS = [
    *(GridRow(label, f"small/e2e_{name}") for name, label in _NAMES.items()),
    *(GridRow(f"INFIX-{n}", f"small/e2e_infix_{n}") for n in (1, 10, 20)),
    *(GridRow(f"EMB-{n}", f"small/e2e_emb_{n}") for n in (1, 10, 20)),
]
TABLES = {"micro": ("micro_e2e", MICRO_ROWS), "small": ("small_e2e", SMALL_ROWS)}
_TITLES = {
    "micro": "Li & Liang 2021 and Hu et al. 2021 (LoRA) on E2E, at micro scale",
    "small": "E2E with a small GPT-2 of our own",
}
_ABOUT = {
    "micro": "The papers' methods on a stand-in GPT-2 and a generated data-to-text task, both made here. Never to be "
    "compared with the printed scores: read down a column.",
    "small": "The real E2E test set (630 inputs, 4,693 references, whitespace-tokenised as in both papers), but a "
    "GPT-2 of 3.4M parameters pretrained on 29 MB of text, and a part of the training rows. True numbers, not "
    "comparable to the printed ones.",
}


def e2e_table(frame: pd.DataFrame, scale: str, settings: str = "paper") -> pd.DataFrame:
    """The cells of the table at this scale (see `grid.grid`), on the test split."""
    cells = grid(frame, TABLES[scale][1], COLUMNS, scale, settings, "test")
    return cells[cells["column"] != AVERAGE].reset_index(drop=True)


def e2e_page(cells: pd.DataFrame, scale: str) -> str:
    """The page of the table."""
    settings = cells["settings"].iloc[0]
    notes = [
        "BLEU, METEOR, ROUGE-L in points; NIST and CIDEr in their own units; loss: nats per token of the references; "
        "cut off: percent of outputs that came to no end. The official E2E script's metrics, Python backend.",
        "Each run at its evaluation with the lowest validation loss.",
        "trained: parameters, the MLPs of prefix, infix and embedding-only included.",
    ]
    title = _TITLES[scale] if settings == "paper" else f"{_TITLES[scale]} ({settings} settings)"
    return page(title, _ABOUT[scale], grid_markdown(cells, notes))
