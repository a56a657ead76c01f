"""Real English text for pretraining: parquet files with a column `text`, a paragraph a row.

<folder>/<collection>/train.parquet          what is trained on: every collection that has one
<folder>/<collection>/validation.parquet     what the loss is measured on: those with a train split beside it
"""

from itertools import groupby
from pathlib import Path

from pyarrow import parquet

PARAGRAPHS = 20  # of a document: consecutive ones of one source


def collections(folder: Path) -> list[Path]:
    """The folders with text to train on. Raises ValueError where there is none."""
    found = sorted(path.parent for path in folder.expanduser().glob("*/train.parquet"))
    if not found:
        raise ValueError(f"no text in {folder}: expected <collection>/train.parquet with a column text; change --text")
    return found


def read_documents(folder: Path, split: str) -> list[list[str]]:
    """Documents of at most PARAGRAPHS paragraphs, one after the other in one source, each a list of paragraphs."""
    documents: list[list[str]] = []
    for collection in collections(folder):
        if not (file := collection / f"{split}.parquet").exists():
            continue
        table = parquet.read_table(file)
        if "text" not in table.column_names:
            raise ValueError(f"{file} has the columns {', '.join(table.column_names)}; expected one named text")
        texts = table["text"].to_pylist()
        sources = table["source"].to_pylist() if "source" in table.column_names else [""] * len(texts)
        for _, rows in groupby(zip(texts, sources, strict=True), key=lambda row: row[1]):
            paragraphs = [text.strip() for text, _ in rows if text and text.strip()]
            documents += [paragraphs[i : i + PARAGRAPHS] for i in range(0, len(paragraphs), PARAGRAPHS)]
    if not documents:
        raise ValueError(f"no {split}.parquet beside a train.parquet in {folder}; add one to measure the loss on")
    return documents
