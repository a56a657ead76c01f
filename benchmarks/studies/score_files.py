"""`peft-bench score`: the official scores of texts in files."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..report.render import markdown_table

HELP = """\
The five official scores of the E2E challenge (the script's Python backend, which both papers ran).

PREDICTIONS: one text a line. REFERENCES: one text a line, and an empty line after each input's last one; a file without
any empty line has one reference an input. UTF-8. METEOR needs Java; a score that cannot be had is `null`."""


def main(argv: Sequence[str]) -> int:
    """Print the scores. Raises ValueError with the file and the line for input that cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="peft-bench score", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metric", choices=["e2e"])
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE")
    parser.add_argument("--references", required=True, type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    predictions = read_predictions(arguments.predictions)
    references = read_references(arguments.references)
    if len(predictions) != len(references):
        raise ValueError(
            f"{arguments.predictions} has {len(predictions)} predictions, {arguments.references} references for "
            f"{len(references)} inputs; expected as many: one prediction a line, an empty line after each input's "
            "last reference"
        )
    from ..metrics.e2e import score_texts  # not before the files are read: it takes a second

    scores = score_texts(predictions, references)
    if arguments.json:
        print(json.dumps({"inputs": len(predictions), **scores}))
    else:
        cells = [[name, "no Java" if value is None else f"{value:.4f}"] for name, value in scores.items()]
        print(markdown_table(["", f"{len(predictions)} inputs"], cells))
    return 0


def read_predictions(path: Path) -> list[str]:
    """One text a line. An empty line is an empty output."""
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} is empty; expected one prediction a line")
    return lines


def read_references(path: Path) -> list[list[str]]:
    """The references of each input."""
    lines = _lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; expected one reference a line")
    if "" not in lines:
        return [[line] for line in lines]
    groups: list[list[str]] = [[]]
    for number, line in enumerate(lines, 1):
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
        else:
            raise ValueError(
                f"{path}, line {number}: a second empty line, so input {len(groups)} has no reference; expected one "
                "empty line between inputs"
            )
    return groups


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; expected a text file") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    lines = [line.strip() for line in content.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
