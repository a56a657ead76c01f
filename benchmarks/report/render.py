"""Numbers and tables as text. The only place where a score is multiplied by 100."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..config.metrics import metric
from ..records.files import write_files

HOLE = "—"


def points(score: float, name: str = "", signed: bool = False) -> str:
    """A score as the papers print it, a fraction in points with one decimal; NaN as such."""
    if math.isnan(score):
        return "NaN"
    kind = metric(name)
    return f"{kind.unit * score:{'+' if signed else ''}.{kind.decimals}f}"


def count(number: float) -> str:
    """A number of parameters with thousands separators; a hole where it is unknown."""
    return HOLE if math.isnan(number) else f"{number:,.0f}"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose source is aligned too; the first `left` columns to the left, the others to the right."""
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(3, *(len(line[number]) for line in cells)) for number in range(len(header))]
    rule = [("-" * width) if number < left else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    padded = [
        [cell.ljust(width) if number < left else cell.rjust(width) for number, (cell, width) in enumerate(pairs)]
        for pairs in (zip(line, widths, strict=True) for line in [cells[0], rule, *cells[1:]])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def page(title: str, *parts: str) -> str:
    """A Markdown page: the title and its non-empty parts, a blank line between."""
    return "\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n"


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list; "" if there is nothing to list."""
    return "\n".join(f"- {line}" for line in lines)


def write(folder: Path, name: str, text: str, table: pd.DataFrame) -> list[Path]:
    """Write a page as <name>.md and its numbers, one cell a line, as <name>.csv; return both paths."""
    markdown, csv = folder / f"{name}.md", folder / f"{name}.csv"
    numbers = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_files({markdown: text.encode(), csv: numbers.encode()})
    return [markdown, csv]
