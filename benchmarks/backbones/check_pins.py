"""`peft-bench pins`: the table of pins, and what the hub says of it: its metadata, no weights and no data."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..config.pins import TABLE, Pin, pins

SAME, DIFFERS, MISSING = "same", "differs", "missing"
_WEIGHTS = (".safetensors", ".bin", ".parquet")  # of what is not pinned yet, the files whose hashes are worth having


@dataclass(frozen=True)
class Finding:
    """One line of the check. what: the commit, or a file; state: same, differs or missing (nobody has pinned it)."""

    repository: str
    what: str
    state: str
    pinned: str
    hub: str


def main(argv: Sequence[str]) -> int:
    """`peft-bench pins`. 1 where the hub differs or cannot be asked, else 0."""
    parser = argparse.ArgumentParser(
        prog="peft-bench pins",
        description="Which commits and file hashes of published checkpoints and data sets are known (conf/pins.yaml).",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="ask the hub whether the pinned commits and hashes are its own, and what it has that is not pinned yet; "
        "metadata alone",
    )
    options = parser.parse_args(argv)
    if not options.check:
        _print_pins()
        return 0
    try:
        findings = [finding for pin in pins().values() for finding in check(pin, HfApi())]
    except Exception as error:  # no network, offline mode, too many questions: the library has a class for each
        print(
            f"peft-bench pins: the hub cannot be asked ({type(error).__name__}: {_first_line(error)}); expected a "
            "machine with network, without HF_HUB_OFFLINE",
            file=sys.stderr,
        )
        return 1
    _print_findings(findings)
    counts = {state: sum(finding.state == state for finding in findings) for state in (SAME, DIFFERS, MISSING)}
    print(", ".join(f"{number} {state}" for state, number in counts.items()) + f"; {TABLE}")
    return 1 if counts[DIFFERS] else 0


def check(pin: Pin, api: HfApi) -> Iterator[Finding]:
    """What the hub has of a repository, beside its pin; of one without a commit what main has, to be pinned."""
    ask = api.model_info if pin.kind == "models" else api.dataset_info
    try:
        info: Any = ask(pin.repository, revision=pin.revision, files_metadata=True)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code not in (401, 403, 404):
            raise
        yield Finding(pin.repository, "commit", DIFFERS, pin.revision or "", f"not there: {_first_line(error)}")
        return
    state = MISSING if pin.revision is None else SAME if info.sha == pin.revision else DIFFERS
    yield Finding(pin.repository, "commit", state, pin.revision or "", str(info.sha))
    there = {file.rfilename: file for file in info.siblings or ()}
    for name, expected in pin.files.items():
        if (file := there.get(name)) is None:
            yield Finding(pin.repository, name, DIFFERS, expected.sha256, "no such file")
            continue
        pinned, found = expected.sha256, file.lfs and file.lfs.sha256
        if found is None:  # of small files the hub names no SHA-256
            pinned, found = f"{expected.bytes} bytes", f"{file.size} bytes"
        if file.lfs is not None or expected.bytes is not None:
            yield Finding(pin.repository, name, SAME if pinned == found else DIFFERS, pinned, found)
    for name, file in there.items():
        if name not in pin.files and name.endswith(_WEIGHTS) and file.lfs is not None:
            yield Finding(pin.repository, name, MISSING, "", f"{{sha256: {file.lfs.sha256}, bytes: {file.size}}}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _print_pins() -> None:
    lines = []
    for pin in pins().values():
        sources = f"{pin.sources} sources" if pin.sources > 1 else "1 source" if pin.sources else ""
        lines.append([pin.repository, pin.revision or "not known", sources, str(len(pin.files) or "")])
    _print([["repository", "commit", "named by", "files with a hash"], *lines])
    print(f"{TABLE}; `peft-bench pins --check` compares it with the hub")


def _print_findings(findings: Sequence[Finding]) -> None:
    """What differs or is missing, value by value; of the rest only that it is the same."""
    lines = [[f.repository, f.what, f.state, *(("", "") if f.state == SAME else (f.pinned, f.hub))] for f in findings]
    _print([["repository", "what", "state", "pinned", "on the hub"], *lines])


def _print(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
