"""What is printed in results/tables and in the README is what the committed records say."""

import re
from pathlib import Path

import pandas as pd
import pytest

from peft_bench.report.main import main

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "results"


def table_lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path: Path) -> None:
    assert main(["--results", str(RESULTS), "--output", str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in (RESULTS / "tables").iterdir()}
    del committed["param_counts.csv"], committed["param_counts.md"]  # tests/benchmarks/studies/test_params.py
    assert written.keys() == committed.keys()
    figures = {name for name in written if name.endswith(".svg")}  # their bytes follow matplotlib's version, too
    assert {name: written[name] for name in written.keys() - figures} == {
        name: committed[name] for name in committed.keys() - figures
    }


def test_every_committed_page_of_our_runs_and_every_figure_has_its_numbers() -> None:
    """A hole is a row without runs (the eight splits of no validation, the average of a row that lacks a task)."""
    tables = RESULTS / "tables"
    ours = [path for path in tables.glob("*.csv") if path.name.startswith(("micro_", "small"))]
    assert len(ours) >= 25
    for path in ours:
        cells = pd.read_csv(path)
        (column, *_) = [name for name in ("mean", "score", "average", "difference", "cohesion") if name in cells]
        assert cells[column].notna().mean() > 0.75, path.name
        assert "conflict" not in "".join(table_lines(path.with_suffix(".md"))), path.name
    for figure in tables.glob("*.svg"):
        cells = pd.read_csv(figure.with_suffix(".csv"))
        assert cells[[name for name in ("mean", "difference") if name in cells]].notna().all(axis=None), figure.name


def test_the_readmes_tables_are_the_committed_ones() -> None:
    readme = table_lines(ROOT / "README.md")
    for name, first in (
        ("micro_lora_table2", "| majority class "),
        ("small", "| small/minilm_full "),
    ):
        start = next(number for number, line in enumerate(readme) if line.startswith(first)) - 2
        committed = table_lines(RESULTS / "tables" / f"{name}.md")
        until = next((n for n, line in enumerate(committed) if n > 1 and line.startswith("|  ")), len(committed))
        assert readme[start : start + until] == committed[:until]


def test_the_guides_table_of_what_settings_are_worth_is_the_committed_one() -> None:
    committed = table_lines(RESULTS / "tables" / "micro_prompt_worth.md")
    guide = table_lines(ROOT / "docs" / "prompt_tuning.md")
    start = guide.index(committed[0])
    assert guide[start : start + len(committed)] == committed


def test_the_readmes_table_of_prompt_tuning_is_what_the_curves_say() -> None:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_lines(ROOT / "README.md")]
    printed = {line[0]: line[1:] for line in cells}
    size, pretraining, words = (_scores(name) for name in ("prompt_size", "prompt_pretraining", "prompt_in_context"))
    for row, of_curve, series in (
        ("prompt tuning, LM-adapted", size, "prompt tuning, LM-adapted"),
        ("the same after span corruption alone", pretraining, "span corruption"),
        ("the beginning of an answer, in words", words, "micro_cloze"),
        ("model tuning", size, "model tuning"),
    ):
        assert printed[row] == of_curve[series]


def _scores(curve: str) -> dict[str, list[str]]:
    """The scores on the page of a curve, by series and in the order of sizes."""
    found: dict[str, list[str]] = {}
    for line in table_lines(RESULTS / "tables" / f"micro_{curve}.md")[2:]:
        series, _, _, score = (cell.strip() for cell in line.split("|")[1:5])
        found.setdefault(series, []).append(score)
    return found


def test_the_readmes_counts_are_the_committed_ones() -> None:
    counts = pd.read_csv(RESULTS / "tables" / "param_counts.csv")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_lines(ROOT / "README.md")]
    printed = [line for line in cells if len(line) == 6 and re.search(r"\d[Mk%x]?$", line[2]) and line[3] != "ours"]
    no = counts[counts["agrees"] == "no"]
    expected = [
        [row.row, row.configuration, row.printed, row.ours, f"{row.added_params:,}", f"{row.method_params:,}"]
        for row in no.itertuples()
    ]
    assert printed == expected
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(counts) - len(no)} of {len(counts)} readings" in readme


# Decimal numbers that stand beside a link to a page and are not of its runs -> what they are.
NO_SCORES = {
    "21.1": "of runs at another rate, before they were made again",
    "45.4": "likewise",
    "52.3": "of runs with more tokens than the backbone was pretrained to read, made again",
    "10.1": "likewise",
    "3.2": "a version of transformers",
    "3.4": "parameters, in millions",
    "6.1": "likewise",
    "5.7": "bytes, in millions",
    "14.3": "tokens, in millions",
    "20.2": "likewise",
    "1.5": "likewise",
    "1.1": "a version of T5",
    "4.48": "the loss of a pretraining: results/pretraining/small_gpt2.json",
}
PAGES_OF = re.compile(r"\]\((?:\.\./)?results/tables/(\w+)\.md\)")
DECIMAL = re.compile(r"(?<![\w.#/])\d+\.\d+(?![\w.]*\d)")


def paragraphs(text: str) -> list[str]:
    """Without tables and code; a list by its items."""
    parts = [part for part in text.split("\n\n") if not part.startswith(("|", "```"))]
    return [item for part in parts for item in re.split(r"\n(?=- )", part)]


def rounds_to(value: str, said: str) -> bool:
    """Whether a printed value is the said one, in as many digits."""
    digits = len(said.partition(".")[2])
    return len(value.partition(".")[2]) >= digits and f"{float(value):.{digits}f}" == said


def strangers(text: str) -> list[str]:
    """Decimal numbers of paragraphs that name pages of results/tables, and are on none of these."""
    found = []
    for paragraph in paragraphs(text):
        pages = [name for name in PAGES_OF.findall(paragraph) if name != "README"]
        printed = {
            value for name in pages for value in DECIMAL.findall((RESULTS / "tables" / f"{name}.md").read_text())
        }
        for said in DECIMAL.findall(re.sub(r"`[^`]*`", "", paragraph)) if pages else ():
            if said not in NO_SCORES and not any(rounds_to(value, said) for value in printed):
                found.append(said)
    return found


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_numbers_beside_a_link_to_a_page_are_on_that_page(path: Path) -> None:
    assert strangers(path.read_text(encoding="utf-8")) == []


def test_a_changed_number_in_a_guide_is_noticed() -> None:
    text = (ROOT / "docs" / "e2e.md").read_text(encoding="utf-8")
    assert strangers(text.replace("the top two layers 87.4", "the top two layers 87.3")) == ["87.3"]
    assert sum(len(DECIMAL.findall(part)) for part in paragraphs(text) if PAGES_OF.search(part)) >= 20
