"""Who is making which run: claims that expire, so that two workers never do one run and a lost one is taken over.

    results/running/<experiment>/<run_id>.json      one file per run; the runs of a pack name each other in it

A claim lives as long as its owner touches it. It has expired when its file is older than `CLAIM_SECONDS`, by the clock
of the file system (the clocks of two machines may differ), or when its owner was a process of this machine that is
gone. An expired claim is not deleted: it says which runs formed a pack, and the pack is taken up again whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
import psutil
from filelock import FileLock, Timeout

from .files import files_below, write_files
from .places import CHECKPOINTS, RECORDS, RUNNING, TRAINED
from .schema import SCHEMA

CLAIM_SECONDS = 120.0  # a claim that nobody has touched for so long has expired
TOUCHES = 6  # of a claim in that time
_LOCK_SECONDS = 60.0
Key = tuple[str, str]  # experiment, run_id


class Busy(RuntimeError):
    """Another process is making one of these runs."""


class ClaimLost(RuntimeError):
    """The claim was taken over while this process stood still: nothing more may be written for the run."""


@dataclass(frozen=True)
class Claim:
    """Who makes a run. members: the runs of its pack, in order. place: what a process number is unique in."""

    token: str
    members: tuple[Key, ...]
    host: str
    place: str
    pid: int
    started: float  # of the process, so that a process number that is used again is noticed
    suite: str

    def owner_is_gone(self) -> bool:
        """Whether the owner was a process of this machine and has ended; False where that cannot be known."""
        if self.place != _place():
            return False
        try:
            process = psutil.Process(self.pid)
            ended = process.status() == psutil.STATUS_ZOMBIE  # nobody has asked for its exit status yet
            return ended or abs(process.create_time() - self.started) > 2.0
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def suite_version() -> str:
    """What two processes that share a results folder must have in common."""
    try:
        package = version("peft-bench")
    except PackageNotFoundError:
        package = "0"
    return f"{package}, record schema {SCHEMA}"


def read_claims(results_dir: Path | str) -> dict[Key, tuple[Claim, bool]]:
    """Every claim under `results_dir`, and whether it is alive."""
    folder = Path(results_dir) / RUNNING
    found: dict[Key, tuple[Claim, bool]] = {}
    now: float | None = None
    for path in sorted(files_below(folder)):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        try:
            raw = orjson.loads(path.read_bytes())
            claim = Claim(**raw | {"members": tuple((e, r) for e, r in raw["members"])})
            touched = path.stat().st_mtime
        except FileNotFoundError:  # released meanwhile
            continue
        except (ValueError, TypeError, KeyError):  # a foreign file claims nothing
            continue
        now = _clock(folder) if now is None else now
        key = (path.parent.relative_to(folder).as_posix(), path.stem)
        found[key] = claim, now - touched < CLAIM_SECONDS and not claim.owner_is_gone()
    return found


class Held:
    """Claims that this process holds, kept alive by a thread until `release`."""

    def __init__(self, results_dir: Path, claim: Claim):
        self.results_dir, self.claim = results_dir, claim
        self.paths = [_path(results_dir, key) for key in claim.members]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Before anything is written for a run. Raises ClaimLost."""
        for path in self.paths:
            try:
                token = orjson.loads(path.read_bytes())["token"]
            except (OSError, ValueError, KeyError):
                token = None
            if token != self.claim.token:
                raise ClaimLost(f"another process has taken over {path.stem} while this one stood still")

    def release(self) -> None:
        """The runs are recorded, or given up. Claims that were taken over stay their new owner's."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError, Busy), locked(self.results_dir):
            for path in self.paths:
                with contextlib.suppress(OSError, ValueError, KeyError):
                    if orjson.loads(path.read_bytes())["token"] == self.claim.token:
                        path.unlink()

    def _touch(self) -> None:
        while not self._stop.wait(CLAIM_SECONDS / TOUCHES):
            for path in self.paths:
                with contextlib.suppress(OSError):
                    os.utime(path)  # the file system's clock, not ours


def claim_runs(results_dir: Path | str, members: Sequence[Key]) -> Held:
    """Claim all of these runs or none. Raises Busy where another process makes one, and ValueError where a process of
    another version of the suite works in this folder."""
    results_dir = Path(results_dir)
    process = psutil.Process()
    mine = Claim(
        uuid.uuid4().hex,
        tuple(members),
        socket.gethostname(),
        _place(),
        process.pid,
        process.create_time(),
        suite_version(),
    )
    with locked(results_dir):
        there = read_claims(results_dir)
        for key, (claim, alive) in there.items():
            if alive and claim.suite != mine.suite:
                raise ValueError(
                    f"results_dir={results_dir}: {claim} works there with peft-bench {claim.suite}, this is "
                    f"{mine.suite}; wait until it has ended, or name another folder"
                )
            if alive and key in mine.members:
                raise Busy(f"{key[0]} [{key[1]}] is being made by {claim}")
        content = json.dumps(asdict(mine)).encode()
        for key in members:
            _sweep_up(results_dir, key, was_begun=key in there)
            write_files({_path(results_dir, key): content})
    return Held(results_dir, mine)


def _sweep_up(results_dir: Path, key: Key, was_begun: bool) -> None:
    """Remove what a killed process had not finished writing for a run: hidden files with its id."""
    for folder in (RUNNING, RECORDS, TRAINED, CHECKPOINTS) if was_begun else (RUNNING,):
        for path in (results_dir / folder / key[0]).glob(f".{key[1]}*"):
            path.unlink(missing_ok=True)


def drop_claims(results_dir: Path | str, keys: Sequence[Key]) -> None:
    """Remove expired claims that say nothing any more: of runs that are given up."""
    with locked(Path(results_dir)):
        for key, (_, alive) in read_claims(results_dir).items():
            if key in keys and not alive:
                _path(Path(results_dir), key).unlink(missing_ok=True)


def _path(results_dir: Path, key: Key) -> Path:
    return results_dir / RUNNING / key[0] / f"{key[1]}.json"


@contextlib.contextmanager
def locked(results_dir: Path) -> Iterator[None]:
    """One process at a time looks at the claims and writes them."""
    folder = results_dir / RUNNING
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout as error:
        raise Busy(f"{folder}/.lock has been held for {_LOCK_SECONDS:.0f} s by another process") from error


def _clock(folder: Path) -> float:
    """Now, by the clock that dates the files of this folder; our own where the folder is read-only."""
    probe = folder / ".clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()


def _place() -> str:
    """Machine, boot and process namespace: within it, a process number means one process."""
    parts: list[Any] = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.stat("/proc/self/ns/pid").st_ino)
    return " ".join(map(str, parts))
