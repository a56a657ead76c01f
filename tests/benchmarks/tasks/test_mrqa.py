"""MRQA's own files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from peft_bench.config.compose import compose_run
from peft_bench.config.schema import RunConfig
from peft_bench.tasks.examples import DataError
from peft_bench.tasks.loading import load_task


def config(*words: str) -> RunConfig:
    return compose_run(["backbone=t5_v1_1_small", "method=prompt", "decoding=greedy", "scale=small", *words])


def mrqa(path: Path, *lines: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_every_question_of_an_mrqa_file_is_a_row(tmp_path: Path):
    asked = [
        {"qid": "1", "question": "Who?", "answers": ["Ada"]},
        {"qid": "2", "question": "When?", "answers": ["now"]},
    ]
    mrqa(
        tmp_path / "mrqa" / "BioASQ.jsonl.gz", {"header": {"dataset": "BioASQ"}}, {"context": "Ada, now.", "qas": asked}
    )
    cfg = config("task=mrqa/bioasq", f"data_dir={tmp_path}")
    data = load_task(cfg.task, cfg.scale, cfg.data_dir, trains=False)
    assert data.inputs["BioASQ"] == [f"question: {q} ? context: Ada , now ." for q in ("Who", "When")]
    assert data.references["BioASQ"] == [["Ada"], ["now"]]
    (tmp_path / "other" / "mrqa").mkdir(parents=True)
    (tmp_path / "other" / "mrqa" / "BioASQ.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"BioASQ.jsonl.gz, line 0: BadGzipFile"):
        load_task(cfg.task, cfg.scale, str(tmp_path / "other"), trains=False)
    mrqa(tmp_path / "wrong" / "mrqa" / "BioASQ.jsonl.gz", {"header": {"dataset": "DuoRC.ParaphraseRC"}})
    with pytest.raises(DataError, match=r"says that this is DuoRC.ParaphraseRC, its name that it is BioASQ"):
        load_task(cfg.task, cfg.scale, str(tmp_path / "wrong"), trains=False)
    for place, lines in (
        ("no answer", [{"context": "Ada.", "qas": [{"question": "Who?", "answers": []}]}]),
        ("no question in all of the file", []),
    ):
        mrqa(tmp_path / place / "mrqa" / "BioASQ.jsonl.gz", {"header": {"dataset": "BioASQ"}}, *lines)
        with pytest.raises(DataError, match=f"{place}|answers .* are no list of texts"):
            load_task(cfg.task, cfg.scale, str(tmp_path / place), trains=False)
    with pytest.raises(DataError, match=r"no file .*DROP.jsonl.gz \(found: BioASQ"):
        load_task(config("task=mrqa/drop").task, cfg.scale, str(tmp_path), trains=False)
