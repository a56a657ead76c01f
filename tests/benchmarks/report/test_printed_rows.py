"""The list of printed rows: each with the experiment that makes it, and nothing left out."""

from pathlib import Path

import pytest

from peft_bench.config.published import PAPERS
from peft_bench.config.schema import CONF_DIR
from peft_bench.report.printed_rows import main
from peft_bench.report.reference import read_reference


def lines(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]


def test_every_printed_row_and_every_experiment_of_the_papers_is_listed(tmp_path: Path, capsys) -> None:
    assert main(["--results", str(tmp_path)]) == 0
    listed = lines(capsys.readouterr().out)
    rows = {(row[0], row[1]) for row in listed}
    for table in read_reference().tables.values():
        assert {*zip(table["experiment"], table["row"], strict=True)} <= rows
    files = [
        path.relative_to(CONF_DIR / "experiment").with_suffix("") for path in (CONF_DIR / "experiment").rglob("*.yaml")
    ]
    assert {path.as_posix() for path in files if path.parts[0] in PAPERS} <= {row[0] for row in listed}


def test_a_row_says_backbone_counts_runs_and_cells(tmp_path: Path, capsys) -> None:
    assert main(["lora_table2", "prompt", "--results", str(tmp_path)]) == 0
    rows = {row[0]: row[1:] for row in lines(capsys.readouterr().out)}
    name = "lora/table2_deberta_xxl_lora"
    assert rows[name] == ["DeB_XXL (LoRA)", "deberta_v2_xxlarge", "4.7M", "4,718,592", "0", "9 of 9"]
    assert rows["lora/table2_roberta_base_bitfit"][-1] == "0 of 9"
    assert rows["prompt_tuning/domain_shift_model"][1] == "not stated"
    assert rows["prompt_tuning/gpt3_few_shot"][4] == "no file"
    assert rows["prompt_tuning/size"] == ["Lester et al. 2021, figure 1: prompt tuning of every size"]
    assert "houlsby2019/table1_full" not in rows


@pytest.mark.parametrize("words", [["nope"], ["--reference", "/nowhere"]])
def test_bad_input_is_one_sentence(words: list[str], tmp_path: Path, capsys) -> None:
    assert main([*words, "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("peft-bench list: ")
