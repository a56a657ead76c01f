"""The out-of-domain sets of MRQA 2019 in their own format (github.com/mrqa/MRQA-Shared-Task-2019): gzipped lines of
JSON, a header first, then a context with all its questions in each:

    {"header": {"dataset": "BioASQ", "split": "dev"}}
    {"context": "...", "qas": [{"question": "...", "answers": ["...", ...]}, ...]}

Every question becomes a row. (The released prompt-tuning code keeps the first question of a context only.)
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

DATASET = "mrqa"
SETS = ("BioASQ", "DROP", "DuoRC", "RACE", "RelationExtraction", "TextbookQA")


def read_mrqa(path: Path) -> dict[str, list[Any]]:
    """context, question and answers of every question of a file. Raises ValueError with the line of what is wrong."""
    columns: dict[str, list[Any]] = {"context": [], "question": [], "answers": []}
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                found = json.loads(line)
                if number == 1:
                    if "dataset" not in found["header"]:
                        raise ValueError(f"a header without its dataset: {found['header']!r}")
                    _check_name(path, str(found["header"]["dataset"]))
                    continue
                for asked in found["qas"]:
                    columns["context"].append(found["context"])
                    columns["question"].append(asked["question"])
                    if not isinstance(asked["answers"], list) or not asked["answers"]:
                        raise TypeError(f"answers {asked['answers']!r} are no list of texts")
                    columns["answers"].append(asked["answers"])
        if not columns["question"]:
            raise ValueError("no question in all of the file")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}, line {number}: {type(error).__name__}: {error}; expected gzipped lines of JSON, a "
            "header with its dataset first, then context and qas"
        ) from error
    return columns


def _check_name(path: Path, said: str) -> None:
    """A file under the name of another set (two of them have 1,503 questions). Other spellings are let pass."""
    others = [name for name in SETS if not path.name.lower().startswith(name.lower())]
    if any(said.lower().startswith(name.lower()) for name in others):
        raise ValueError(f"its header says that this is {said}, its name that it is {path.name.partition('.')[0]}")
