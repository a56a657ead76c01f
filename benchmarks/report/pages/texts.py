"""The tables of backbones that answer in texts at our own scales: E2E by the official five metrics, XSUM by ROUGE, and
tables 1 and 2 of prompt tuning."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ...config.metrics import metric as metric_of
from ..render import page
from .grid import AVERAGE, Column, GridRow, grid
from .grid_page import grid_markdown


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
    split: str = "test"
    chosen: str = "Each run at its evaluation with the lowest validation loss."


def _columns(task: str, *metrics: str) -> tuple[Column, ...]:
    return tuple(Column(metric_of(metric).title, task, metric) for metric in metrics)


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
_PROMPT_OR_MODEL = (("prompt", "prompt tuning"), ("model", "model tuning"))
_BEST = "Each run at its best evaluation on the validation split of the task that it is trained on."


def _shift(name: str, title: str, about: str, columns: tuple[Column, ...]) -> TextTable:
    """Table 1 or a half of table 2 of Lester et al. 2021 at micro scale: a prompt, or all of the model, scored on
    another task as it is."""
    rows = tuple(GridRow(label, f"prompt_tuning/{name}_{kind}") for kind, label in _PROMPT_OR_MODEL)
    return TextTable(
        f"micro_{name}",
        "micro",
        f"Lester et al. 2021, {title}, at micro scale",
        f"{about} Stand-in T5 (LM-adapted for the prompt) and generated tasks. Never to be compared with the printed "
        "scores: read down a column.",
        "An answer that is no label, or not the answer's words, counts as wrong; illegal: percent of the answers "
        "that are no label.",
        rows,
        columns,
        chosen=_BEST,
    )


def _transfer(source: str, target: str) -> TextTable:
    names = {"qqp": "QQP", "mrpc": "MRPC"}
    columns = [
        Column(
            f"{names[task]} {metric_of(metric).title}", source, metric, split="" if task == source else f"{task}/test"
        )
        for task in (source, target)
        for metric in ("accuracy", "f1", "illegal")
    ]
    title = f"table 2, {names[source]} to {names[target]}"
    return _shift(f"transfer_{source}_{target}", title, f"Trained on {names[source]}.", tuple(columns))


SHIFTS = (
    _shift(
        "domain_shift",
        "table 1",
        "Trained on questions about a town, scored on those and on questions about the sea.",
        (
            Column("the town, EM", "squad", "squad_em"),
            Column("the town, F1", "squad", "squad_f1"),
            Column("the sea, EM", "squad", "squad_em", split="squad_sea/validation"),
            Column("the sea, F1", "squad", "squad_f1", split="squad_sea/validation"),
        ),
    ),
    _transfer("qqp", "mrpc"),
    _transfer("mrpc", "qqp"),
)
SMALL_PROMPTS = TextTable(
    "small_prompt_tuning",
    "small",
    "Prompt tuning of a small T5 of our own on SuperGLUE and SQuAD",
    "Real text, but a T5 of 6M parameters pretrained on 29 MB of it (results/pretraining/), and 300 steps at one "
    "setting (the prompt's rate was chosen on COPA, the model's not at all). True numbers, like no printed ones.",
    "Development splits; SQuAD: 7 of the 48 articles of its validation split, of which 34 were trained on. An answer "
    "that is no label counts as wrong; illegal: percent of them.",
    (
        GridRow("majority class", "controls/majority"),
        GridRow("prompt tuning (20 tokens)", "small/t5_prompt"),
        GridRow("model tuning", "small/t5_model"),
    ),
    (
        Column("BoolQ", "boolq", "accuracy"),
        Column("BoolQ illegal", "boolq", "illegal"),
        Column("CB acc", "cb", "accuracy"),
        Column("CB F1", "cb", "macro_f1"),
        Column("CB illegal", "cb", "illegal"),
        Column("COPA", "copa", "accuracy"),
        Column("COPA illegal", "copa", "illegal"),
        Column("RTE", "rte", "accuracy"),
        Column("RTE illegal", "rte", "illegal"),
        Column("WiC", "wic", "accuracy"),
        Column("WiC illegal", "wic", "illegal"),
        Column("SQuAD EM", "squad_by_title", "squad_em", split="test"),
        Column("SQuAD F1", "squad_by_title", "squad_f1", split="test"),
    ),
    split="validation",
    chosen=_BEST + " On the same split, so a little optimistic, but for SQuAD.",
)
TABLES = (
    *SHIFTS,
    SMALL_PROMPTS,
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
    """The cells of the table (see `grid.grid`)."""
    cells = grid(frame, table.rows, table.columns, table.scale, settings, table.split)
    return cells[cells["column"] != AVERAGE].reset_index(drop=True)


def text_page(cells: pd.DataFrame, table: TextTable) -> str:
    """The page of the table."""
    settings = cells["settings"].iloc[0]
    notes = [
        table.notes,
        table.chosen,
        "trained: parameters, the MLPs of prefix, infix and embedding-only included.",
    ]
    title = table.title if settings == "paper" else f"{table.title} ({settings} settings)"
    return page(title, table.about, grid_markdown(cells, notes))
