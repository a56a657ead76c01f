"""The micro tables: the papers' rows on the small stand-in backbones and the generated tasks, beside their controls."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pandas as pd

from ...config.schema import CONF_DIR
from ..render import page
from .calibration import calibration_markdown
from .grid import Column, GridRow, glue_columns, grid
from .grid_page import grid_markdown

SCALE = "micro"


@dataclass(frozen=True)
class MicroTable:
    """A paper's table at micro scale."""

    name: str  # of its files
    title: str
    metrics: str
    columns: list[Column]
    rows: list[GridRow]


def _controls(backbone: str) -> list[GridRow]:
    return [
        GridRow("majority class", "controls/majority"),
        GridRow("bag of words", "controls/bag_of_words"),
        GridRow("head only", f"controls/{backbone}_head_only"),
        GridRow("full, random start", f"controls/{backbone}_scratch"),
    ]


MICRO_TABLES = [
    MicroTable(
        "micro_houlsby2019_table1",
        "Houlsby et al. 2019, Table 1, at micro scale",
        "Matthews correlation for CoLA, F1 for MRPC and QQP, Spearman for STS-B, accuracy for the others.",
        glue_columns(mrpc="f1", stsb="spearman", qqp="f1"),
        [
            *_controls("bert"),
            GridRow("full fine-tuning", "houlsby2019/table1_full"),
            GridRow("adapters (8-256)", "houlsby2019/table1_adapters_8_256"),
            GridRow("adapters (64)", "houlsby2019/table1_adapters_64"),
        ],
    ),
    MicroTable(
        "micro_lora_table2",
        "Hu et al. 2021 (LoRA), Table 2, RoBERTa-base rows at micro scale",
        "Matthews correlation for CoLA, Pearson for STS-B, accuracy for the others.",
        glue_columns(mrpc="accuracy", stsb="pearson", qqp="accuracy"),
        [
            *_controls("roberta"),
            GridRow("full fine-tuning", "lora/table2_roberta_base_full"),
            GridRow("BitFit", "lora/table2_roberta_base_bitfit"),
            GridRow("Adapter^D 0.9M", "lora/table2_roberta_base_adapter_d_0_9m"),
            GridRow("LoRA", "lora/table2_roberta_base_lora"),
        ],
    ),
]


GRID = CONF_DIR / "experiment" / "grid"
_GRID_TITLES = {
    "classification": "Methods x backbones x tasks: BERT and RoBERTa classify, at micro scale",
    "text_to_text": "Methods x tasks: T5 answers in text, at micro scale",
    "generation": "Methods x tasks: GPT-2 answers behind the text, at micro scale",
    "lora_ablation": "LoRA's targets and ranks (Hu et al. 2021, section 7) on RoBERTa, at micro scale",
}


def grid_tables() -> list[MicroTable]:
    """One table per folder of conf/experiment/grid, one row per file."""
    return [
        MicroTable(
            f"grid_{kind}",
            title,
            "Matthews correlation for CoLA, Pearson for STS-B, accuracy for the others.",
            glue_columns(mrpc="accuracy", stsb="pearson", qqp="accuracy"),
            [
                GridRow(file.stem.replace("_", " "), f"grid/{kind}/{file.stem}")
                for file in sorted((GRID / kind).glob("*.yaml"), key=lambda file: _natural(file.stem))
            ],
        )
        for kind, title in _GRID_TITLES.items()
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """q_r8 before q_r64."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def micro_table(frame: pd.DataFrame, table: MicroTable, settings: str = "paper") -> pd.DataFrame:
    """The cells of a micro table (see `grid.grid`)."""
    return grid(frame, table.rows, table.columns, SCALE, settings, "test")


def micro_page(cells: pd.DataFrame, table: MicroTable) -> str:
    """The page of a micro table: what it is, the cells, how they were made."""
    settings = cells["settings"].iloc[0]
    about = (
        "The papers' methods on a stand-in backbone and generated tasks, both made here. Never to be compared with the "
        "printed scores: read down a column."
    )
    notes = [
        table.metrics,
        "Each run at its best evaluation on validation; scored on the labelled test split. A row that sweeps takes, "
        "per task, the setting of its best run on validation, then all seeds of that setting.",
        "Avg: mean over the eight tasks, MNLI's halves averaged first; WNLI is not included.",
        "trained: parameters per task, head excluded. Adapter sizes and ranks keep the paper's names and are scaled to "
        "the stand-in.",
    ]
    title = table.title if settings == "paper" else f"{table.title} ({settings} settings)"
    calibration = "" if table.name.startswith("grid_") else calibration_markdown(cells)
    return page(title, about, grid_markdown(cells, notes), calibration)
