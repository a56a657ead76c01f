"""The papers' printed numbers, read from results/reference (its README describes the columns)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from .layouts import read_layouts

DIRECTORY = Path(__file__).resolve().parents[2] / "results" / "reference"
_NUMBERS = ("value", "std", "n_seeds", "rows", "params")


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper (conf/table/paper.yaml, which says what its keys are)."""

    name: str  # of its files
    title: str
    about: str
    sweep: str = ""


def paper_tables() -> tuple[PaperTable, ...]:
    """The papers' tables, in print order."""
    return read_layouts("paper", PaperTable)


@dataclass(frozen=True)
class Reference:
    """Everything under results/reference."""

    tables: dict[str, pd.DataFrame]  # by name (conf/table/paper.yaml), one line per printed cell, in print order
    params: pd.DataFrame  # printed parameter counts
    splits: dict[tuple[str, str], float]  # (task, split) -> examples in the published data
    backbones: dict[str, float]  # name -> parameters of the published backbone
    without_rate: frozenset[str]  # experiments whose learning rate nobody published: runs of ours have another row's


def read_reference(directory: Path | str = DIRECTORY) -> Reference:
    """Read the reference files; text columns hold "" where a file has nothing, number columns NaN."""
    directory = Path(directory)
    tables = {table.name: _read(directory / f"{table.name}.csv") for table in paper_tables()}
    splits = _read(directory / "splits.csv")
    sizes = dict(zip(zip(splits["task"], splits["split"], strict=True), splits["rows"], strict=True))
    backbones = _read(directory / "backbones.csv")
    shapes = dict(zip(backbones["backbone"], backbones["params"], strict=True))
    return Reference(
        tables, _read(directory / "param_counts.csv"), sizes, shapes, _without_rate(directory / "settings")
    )


def _without_rate(directory: Path) -> frozenset[str]:
    """Whose learning rate the table of settings has as unpublished, by the paper."""
    found = set()
    for path in sorted(directory.glob("*.yaml")):
        table = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for experiment, settings in table["rows"].items():
            row = settings["paper"]
            entries = [table["groups"][group] for group in row["groups"]] + [row.get("values", {})]
            rates = [part["trainer.learning_rate"] for part in entries if "trainer.learning_rate" in part]
            if rates and "unpublished" in rates[-1]:
                found.add(experiment)
    return frozenset(found)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: expected the papers' numbers; give --reference DIR")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in _NUMBERS:
        if name in frame:
            frame[name] = pd.to_numeric(frame[name].replace("", None)).astype("float64")
    return frame
