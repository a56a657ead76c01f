"""Notebooks run from the committed records alone, and are committed without outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))


def test_the_tables_beside_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    names: dict[str, Any] = {}
    for cell in code_cells(FOLDER / "01_tables_beside_papers.ipynb"):
        exec("".join(cell["source"]), names)
    assert names["problems"] == []
    houlsby = names["houlsby"]
    assert len(houlsby) == len(names["reference"].tables["houlsby2019_table1"])
    assert houlsby["value"].notna().all()
    ours = houlsby.loc[(houlsby["experiment"] == "houlsby2019/table1_adapters_64") & (houlsby["task"] == "rte")]
    assert ours["seeds"].tolist() == [3]
    assert ours["ours"].between(40, 100).all()
    assert set(names["means"].index.get_level_values("table")) == {"Houlsby et al. 2019, table 1", "LoRA, table 2"}
