"""The table of what lies under results/, beside its page, the folders themselves and what git leaves out."""

import re
from pathlib import Path

from peft_bench.records.places import PLACES, TABLES

ROOT = Path(__file__).parents[3]


def test_the_page_says_the_same() -> None:
    lines = re.findall(r"^\| `([^`]+?)/?` \| (.*) \| (yes|no) \|$", (ROOT / "results" / "README.md").read_text(), re.M)
    assert lines == [(name, place.holds, "yes" if place.committed else "no") for name, place in PLACES.items()]


def test_git_leaves_out_what_is_not_committed_and_nothing_else() -> None:
    ignored = re.findall(r"^/results/([^/\n]+)/?$", (ROOT / ".gitignore").read_text(), re.M)
    assert sorted(ignored) == sorted(name for name, place in PLACES.items() if not place.committed)


def test_nothing_lies_there_that_the_table_does_not_know() -> None:
    there = {path.name for path in (ROOT / "results").iterdir()} - {"README.md"}
    assert there <= PLACES.keys()
    assert there >= {name for name, place in PLACES.items() if place.committed}
    assert TABLES in there


def test_no_code_spells_a_folder_that_the_table_names() -> None:
    """But for words that mean something else, too: reference, tables, tuning."""
    spelt = re.compile(r"/ [\"'](records|trained|checkpoints|running|plans|ensembles|errata|nearest)[\"']")
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert files
    assert [path.name for path in files if spelt.search(path.read_text())] == []
