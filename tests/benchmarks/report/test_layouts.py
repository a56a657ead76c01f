"""conf/table: every key and experiment in it means something, and every file is some page's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from peft_bench.config.compose import choices
from peft_bench.report import layouts
from peft_bench.report.layouts import FOLDER, read_layouts
from peft_bench.report.main import make_pages
from peft_bench.report.page import Inputs
from peft_bench.report.pages.claims import read_papers
from peft_bench.report.pages.curves import read_curves
from peft_bench.report.pages.worth import Worth
from peft_bench.report.reference import DIRECTORY, paper_tables, read_reference
from peft_bench.report.rows import frame_of
from peft_bench.report.table import Table, read_tables


@dataclass(frozen=True)
class Entry:
    name: str
    title: str
    seeds: int = 0
    open: bool = False
    x: str | None = None
    notes: tuple[str, ...] = ()


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(layouts, "FOLDER", tmp_path)

    def reading(text: str, kind: type = Entry) -> Any:
        (tmp_path / "page.yaml").write_text(text)
        read_layouts.cache_clear()
        return read_layouts("page", kind)

    yield reading
    read_layouts.cache_clear()


def test_an_entry_stands_under_its_name_and_a_value_alone_is_its_second_field(read: Any) -> None:
    assert read("a: {title: A, notes: [b, c], x: length}\nd: D") == (
        Entry("a", "A", x="length", notes=("b", "c")),
        Entry("d", "D"),
    )
    (table,) = read("t: {title: T, scale: micro, about: '', columns: {c: {task: k, metric: m}}, rows: {r: e/x}}", Table)
    assert (table.columns[0].task, table.rows[0].label, table.rows[0].experiment) == ("k", "r", "e/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: {title: A, tilte: B}",
            r"conf/table/page.yaml, a: unknown key 'tilte'; expected some of name, title",
        ),
        ("a: {seeds: 3}", r"conf/table/page.yaml, a: no key 'title'; expected name, title"),
        ("a: {title: A, seeds: three}", r"conf/table/page.yaml, a, seeds: expected int, got 'three'"),
        ("a: {title: A, seeds: true}", r"a, seeds: expected int, got True"),
        ("a: {title: A, notes: one}", r"a, notes: expected .*, got 'one'"),
        ("- a", r"conf/table/page.yaml: expected entries by name"),
    ],
)
def test_a_wrong_layout_is_refused_with_file_and_key(read: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_an_unknown_key_of_a_row_or_column_is_named_with_its_place(read: Any) -> None:
    text = "t: {title: T, scale: micro, about: '', columns: {CoLA: {task: cola, metrics: x}}}"
    with pytest.raises(ValueError, match=r"conf/table/page.yaml, t, columns, CoLA: unknown key 'metrics'"):
        read(text, Table)


def test_every_experiment_of_a_layout_exists() -> None:
    tables = [table for page in ("micro", "small", "texts") for table in read_tables(page)]
    named = {row.experiment for table in tables for row in table.rows}
    named |= {experiment for table in tables for experiment in table.expected}
    named |= {name for curve in read_curves() for name in (*curve.experiments, *curve.shared, *curve.labels)}
    named |= {name for curve in read_curves() for name in curve.values.get("experiment", {})}
    terms = [worth.unchanged for worth in read_layouts("worth", Worth)]
    settings = [setting for worth in read_layouts("worth", Worth) for setting in worth.settings]
    terms += [term for setting in settings for term in (setting.unchanged, *setting.otherwise.values()) if term]
    named |= {term.partition("[")[0] for term in terms}
    assert len(named) > 100
    assert named <= {*choices("experiment")}
    assert all(table.rows for table in tables if not table.open)
    for name in [table.name for table in paper_tables()] + [claims.name for claims in read_papers()]:
        assert (DIRECTORY / f"{name}.csv").is_file()


def test_every_layout_is_some_pages_and_every_page_has_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    load, reference = yaml.load, read_reference()

    def noted(text: str, *args: Any) -> Any:
        opened.append(text)
        return load(text, *args)

    monkeypatch.setattr(layouts.yaml, "load", noted)
    read_layouts.cache_clear()
    pages = make_pages(Inputs(frame_of([]), reference))
    assert sorted(opened) == sorted(file.read_text() for file in FOLDER.iterdir())
    names = [page.name for page in pages]
    assert len(set(names)) == len(names)
