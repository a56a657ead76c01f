"""Every committed record still has the run id that its own configuration and result versions give.

A code change that moves an id makes the record behind a printed number stale without a word. The versions are the
record's own: a version raised on purpose makes runs to be made again, but no id of an old record wrong.
"""

from collections import Counter
from pathlib import Path

import pytest

from peft_bench.config.recorded import run_config
from peft_bench.records.store import read_record
from peft_bench.runs.identity import identity, run_id

RECORDS = Path(__file__).parents[3] / "results" / "records"
FILES = sorted(path for path in RECORDS.rglob("*.json") if path.name.count(".") == 1)


@pytest.fixture(scope="module")
def recomputed():
    """Per record: the record, and its identity as the code of today says it."""
    records = [read_record(path) for path in FILES]
    return [(r, identity(run_config(r["config"]), r["identity"]["data"], r["parents"], digests(r))) for r in records]


def digests(record):
    """What its backbone was: nothing where a shipped one stood in, in older records without its files."""
    return {name: record["identity"][name] for name in ("weights", "files") if name in record["identity"]}


def test_every_record_keeps_its_run_id(recomputed):
    moved: Counter[tuple[str, str]] = Counter()
    for record, of_today in recomputed:
        if run_id(of_today | {"versions": record["identity"]["versions"]}) != record["run_id"]:
            moved[record["experiment"], record["scale"]] += 1
    assert len(recomputed) >= 700
    assert not moved, f"{moved.total()} of {len(recomputed)} run ids moved: {dict(moved)}"


def test_stale_records_are_counted_by_cause(recomputed, capsys):
    """Records of a lower result version are runs to be made again; of a higher one, a version was taken back."""
    stale: Counter[str] = Counter()
    ahead = []
    for record, of_today in recomputed:
        own = record["identity"]["versions"]
        for part, version in of_today["versions"].items():
            if own[part] != version:
                stale[f"{part} {own[part]} -> {version}"] += 1
            if isinstance(version, int) and own[part] > version:
                ahead.append(record["run_id"])
    with capsys.disabled():
        print(f"\n{len(recomputed)} records, stale by result version: {dict(stale) or 'none'}")
    assert not ahead
