"""docs/methods.md says what the contract's cases say."""

from pathlib import Path

from tests.conftest import ALL_ARCHITECTURES
from tests.peft_methods.test_contract import DEBERTA_ALONE, METHODS


def test_the_table_of_methods_and_architectures_is_the_contracts():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert cells[0][1:] == list(ALL_ARCHITECTURES)
    found = {line[0]: dict(zip(ALL_ARCHITECTURES, line[1:], strict=True)) for line in cells[2:]}
    expected = {}
    for case in METHODS:
        alone = [a for a in case.on if case.in_place or (a == "deberta_v2" and case.name in DEBERTA_ALONE)]
        expected[case.name] = {
            a: "–" if a not in case.on else "alone" if a in alone else "pack" for a in ALL_ARCHITECTURES
        }
    assert found == expected
