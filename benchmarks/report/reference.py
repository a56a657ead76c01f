"""The papers' printed numbers, read from results/reference (its README describes the columns)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

DIRECTORY = Path(__file__).resolve().parents[2] / "results" / "reference"
TABLES = {
    "houlsby2019_table1": "Houlsby et al. 2019, Table 1",
    "lora_table2": "Hu et al. 2021 (LoRA), Table 2",
    "lora_table3": "Hu et al. 2021 (LoRA), Table 3",
    "prefix_e2e": "Li & Liang 2021 (arXiv v1), E2E of tables 1 and 4",
    "prefix_e2e_acl": "Li & Liang 2021 (ACL), E2E of tables 2 and 5",
    "prefix_xsum": "Li & Liang 2021, XSUM (arXiv v1 table 2, ACL table 3)",
    "prompt_tuning_table1": "Lester et al. 2021, Table 1",
    "prompt_tuning_table2": "Lester et al. 2021, Table 2",
    "prompt_tuning_table3": "Lester et al. 2021, Table 3",
    "prompt_tuning_released": "Released prompts of T5 Base (google-research/prompt-tuning)",
    "prompt_design": "Lester et al. 2021, prompt design in its introduction (GPT-3)",
}
_NUMBERS = ("value", "std", "n_seeds", "rows", "params")


@dataclass(frozen=True)
class Reference:
    """Everything under results/reference."""

    tables: dict[str, pd.DataFrame]  # by the names in TABLES, one line per printed cell, in print order
    params: pd.DataFrame  # printed parameter counts
    splits: dict[tuple[str, str], float]  # (task, split) -> examples in the published data
    backbones: dict[str, float]  # name -> parameters of the published backbone


def read_reference(directory: Path | str = DIRECTORY) -> Reference:
    """Read the reference files; text columns hold "" where a file has nothing, number columns NaN."""
    directory = Path(directory)
    tables = {name: _read(directory / f"{name}.csv") for name in TABLES}
    splits = _read(directory / "splits.csv")
    sizes = dict(zip(zip(splits["task"], splits["split"], strict=True), splits["rows"], strict=True))
    backbones = _read(directory / "backbones.csv")
    shapes = dict(zip(backbones["backbone"], backbones["params"], strict=True))
    return Reference(tables, _read(directory / "param_counts.csv"), sizes, shapes)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: expected the papers' numbers; give --reference DIR")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in _NUMBERS:
        if name in frame:
            frame[name] = pd.to_numeric(frame[name].replace("", None)).astype("float64")
    return frame
