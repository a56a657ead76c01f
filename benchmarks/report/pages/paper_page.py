"""The text of a paper's table: a line of printed values, a line of ours, and numbered reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ...config.metrics import metric
from ..reference import TABLES
from ..render import HOLE, bullets, markdown_table, page
from ..rules.comparability import command
from .grid_page import MARKS, OTHER_MARK

_ABOUT = {
    "houlsby2019_table1": "BERT_LARGE on the GLUE test server. Matthews correlation for CoLA, F1 for MRPC and QQP, "
    "Spearman for STS-B, accuracy for the others. Total: the server's score, not the mean of the columns.",
    "lora_table2": "GLUE dev sets. Matthews correlation for CoLA, Pearson for STS-B, accuracy for the others; MNLI is "
    "captioned as matched and mismatched together, but the numbers that can be checked are the matched set alone. "
    "Avg: mean of the eight columns. The paper does not define its ±, the CSV has it. "
    "* copied by its authors from earlier work, † run by them in a restricted setting.",
    "lora_table3": "GPT-2 medium and large on the E2E test set, the official script's scores with its Python backend, "
    "whitespace-tokenised references. Mean over 3 seeds of the best epoch. * copied from arXiv v1 of Li & Liang.",
    "prefix_e2e": "GPT-2 on the E2E test set, the official script's scores with its Python backend, "
    "whitespace-tokenised references. The number of seeds is not stated; the released code takes the last step.",
    "prefix_e2e_acl": "The same in the version of ACL 2021, which reran fine-tuning and PREFIX on GPT-2 medium.",
    "prompt_tuning_table1": "F1 of the answers. Trained on SQuAD, chosen on its validation split, scored as it is on "
    "the development sets of MRQA 2019. Mean of three runs, the CSV has their standard deviation; which size of T5 is "
    "not stated.",
    "prompt_tuning_table2": "Trained and chosen on one task of paraphrases, scored as it is on the other, labels "
    "translated. Mean of three runs, the CSV has their standard deviation; which size of T5 is not stated.",
    "prompt_tuning_table3": "T5 XXL after LM adaptation on the SuperGLUE dev sets: five prompts a task, their average, "
    "the best of them (of each metric its own; the paper does not say) and their vote (`peft-bench ensemble`). "
    "Avg: mean over the eight tasks, of two metrics their mean first.",
    "prompt_tuning_released": "T5 Base after LM adaptation on GLUE's dev sets, 100 rows: one prompt a task of its "
    "authors, the only printed scores of a smaller T5. How many were trained and how these were chosen is not said.",
    "prompt_design": "The scores that the paper prints of prompts in words, beside the first T5 (of Raffel et al. "
    "2020, not T5 1.1). In words only: a tuned prompt on T5 Small equals GPT-3 XL (over 16 times larger), one on T5 "
    "Large is above GPT-3 175B (over 220 times), and GPT-3's prompts on LM-adapted T5 are far below GPT-3. Prompts of "
    "our own on LM-adapted T5 and GPT-2 are `prompt_tuning/in_context*`, whose table is that of their scale.",
    "prefix_xsum": "BART-large on the XSUM test set, ROUGE F of stemmed words. The number of seeds is not stated; the "
    "released code takes the checkpoint that is best by validation ROUGE-2, the suite the one of the lowest validation "
    "loss. The fine-tuning row is quoted from Lewis et al. 2020.",
}


def paper_page(table: pd.DataFrame, name: str, parameters: str, settings: str = "paper") -> str:
    """The page of one paper's table (`tables.beside_paper`) with its parameter counts (text)."""
    reasons = _Reasons()
    lines: list[list[str]] = []
    columns = list(table["column"].drop_duplicates())
    for (label, params), of_row in table.groupby(["row", "printed_params"], sort=False):
        cells = of_row.to_dict("records")
        lines.append([f"{label} {params}", "printed", *(_printed(cell, reasons) for cell in cells)])
        lines.append(["", "ours", *(_ours(cell, reasons) for cell in cells)])
        if of_row["difference"].notna().any():
            lines.append(["", "difference", *(_difference(cell) for cell in cells)])
    return page(
        TABLES[name] if settings == "paper" else f"{TABLES[name]} ({settings} settings)",
        _ABOUT[name],
        markdown_table(["", "", *columns], lines, left=2),
        bullets([*_legend(table), *reasons.legend()]),
        *(["## Parameters", parameters] if parameters else []),
    )


class _Reasons:
    """Reasons by number, in the order in which the table mentions them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, reason: str) -> str:
        return f"[{self._numbers.setdefault(reason, len(self._numbers) + 1)}]"

    def legend(self) -> list[str]:
        return [f"[{number}] {reason}." for reason, number in self._numbers.items()]


def _printed(cell: Mapping[Any, Any], reasons: _Reasons) -> str:
    wrong_caption = cell["likely_metric"] and cell["likely_metric"] != cell["metric"]
    mark = reasons.mark(f"Likely {cell['likely_metric']}, not {cell['metric']} as captioned") if wrong_caption else ""
    return f"{cell['printed']:.{metric(cell['metric']).decimals}f}{' ' if mark else ''}{mark}"


def _ours(cell: Mapping[Any, Any], reasons: _Reasons) -> str:
    if cell["reason"].startswith("not run"):
        return HOLE
    text = [] if cell["ours"] != cell["ours"] else [f"{cell['ours']:.{metric(cell['metric']).decimals}f}"]
    if text and cell["std"] == cell["std"]:
        text[0] += f" ±{cell['std']:.{metric(cell['metric']).decimals}f}"
    if text:
        text[0] += "".join(MARKS.get(flag, (OTHER_MARK,))[0] for flag in cell["flags"].split())
        text.append(f"({cell['seeds']:.0f})")
    if cell["reason"]:
        text.append(reasons.mark(cell["reason"][0].upper() + cell["reason"][1:]))
    return " ".join(text)


def _difference(cell: Mapping[Any, Any]) -> str:
    return (
        "" if cell["difference"] != cell["difference"] else f"{cell['difference']:+.{metric(cell['metric']).decimals}f}"
    )


def _legend(table: pd.DataFrame) -> Sequence[str]:
    legend = []
    holes = table[table["reason"].str.startswith("not run")]
    blocked = holes[holes["reason"].str.startswith("not run (")]
    if not holes.empty:
        of_paper = str(table["experiment"].iloc[0])
        how = command(of_paper, str(table["task"].iloc[0])).replace(of_paper, "<experiment>")
        legend.append(f"{HOLE} not run. To run a row: `{how}`, experiments as in the CSV.")
    for reason, of_reason in blocked.groupby("reason", sort=False):
        legend.append(f"{', '.join(of_reason['row'].drop_duplicates())}: {reason}.")
    if table["ours"].notna().any():
        legend.append("Ours: the paper's selection rule, ± standard deviation over seeds, (seeds).")
    flags = dict.fromkeys(flag for flags in table["flags"] for flag in flags.split())
    legend += [f"{MARKS[flag][0]} {MARKS[flag][1]}." if flag in MARKS else f"{OTHER_MARK} {flag}." for flag in flags]
    return legend
