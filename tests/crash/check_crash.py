"""Kill a sweep at random moments, begin it again, and prove that nothing is lost (make test-crash).

A sweep of packs, single runs and children of parents is made once without disturbance. Then the same sweep is killed
(SIGKILL to the whole process group) at --kills random moments: while it trains, evaluates, writes checkpoints, tensors
and records. It is begun again after each kill, and left to end. Records, trained tensors, predictions and tables must
equal those of the undisturbed sweep byte by byte; only times, memory and host are set aside. Then come a full disk and
a read-only folder, where this machine lets us make them. Exit status 0 only if all of it holds.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "peft_bench"]
STEPS, EVERY = 24, 6
COMMON = [f"trainer.max_steps={STEPS}", f"trainer.evaluate_every_steps={EVERY}", "device=cpu", "checkpoint_seconds=0"]
LORA = "lora/table2_roberta_base_lora"
SWEEPS = [
    ["method=lora,bitfit", "task=glue/sst2", "seed=range(3)"],  # two packs of 4 and 2, methods mixed
    ["method=full", "task=glue/cola", "seed=0"],  # alone
    [f"experiment={LORA}", "task=glue/rte", "seed=0,1", f'init_from.overrides=["trainer.max_steps={STEPS}"]'],
]
WORKERS = ["--workers", "2"]


def command(words: list[str], results: Path) -> list[str]:
    return [*COMMAND, "sweep", *words, *COMMON, f"results_dir={results}", *WORKERS]


def begin(words: list[str], results: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen(command(words, results), stdout=out, stderr=out, start_new_session=True)


def make_all(results: Path, log: Path) -> float:
    """The sweeps to their end; returns the seconds they took."""
    start = time.monotonic()
    for words in SWEEPS:
        if begin(words, results, log).wait(600) != 0:
            sys.exit(f"a sweep failed:\n{log.read_text()[-3000:]}")
    return time.monotonic() - start


def content(results: Path) -> dict[str, str]:
    """Name -> digest of every record (times aside), predictions file, trained tensor and table."""
    found = {}
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        if not path.is_file() or name.split("/")[0] not in ("records", "trained", "tables"):
            continue
        data = path.read_bytes()
        if name.startswith("records/") and name.endswith(".json"):
            data = json.dumps(without(json.loads(data)), sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def without(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if key != "cost"}
    kept["provenance"] = {key: value for key, value in record["provenance"].items() if key != "created"}
    return kept


def tables(results: Path) -> None:
    words = [*COMMAND, "report", "--results", str(results), "--output", str(results / "tables")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def kill_at_random(results: Path, kills: int, seed: int, log: Path, duration: float) -> dict[str, int]:
    """Kill each sweep after random times until `kills` are used up, then let it end. What was going on: counts."""
    chance = random.Random(seed)
    moments: dict[str, int] = {}
    done = 0
    for i, words in enumerate(SWEEPS):
        share = kills * (i + 1) // len(SWEEPS)
        while True:
            sweep = begin(words, results, log)
            if done >= share:
                if sweep.wait(600) != 0:
                    sys.exit(f"the sweep did not end well after {done} kills:\n{log.read_text()[-3000:]}")
                break
            started, left = time.monotonic(), unfinished(results)
            # Half of the kills come at once after a file has appeared, the others at any moment.
            wait_for_file = chance.random() < 0.5
            before = set(results.rglob("*"))
            limit = chance.uniform(0.0, duration / len(SWEEPS))
            while sweep.poll() is None:
                late = time.monotonic() - started > limit
                if late and (not wait_for_file or set(results.rglob("*")) - before):
                    break
                before = before if not late else before & set(results.rglob("*"))
                time.sleep(0.002)
            if sweep.poll() is not None:
                if sweep.returncode != 0:
                    sys.exit(f"the sweep failed after {done} kills:\n{log.read_text()[-3000:]}")
                break
            os.killpg(sweep.pid, signal.SIGKILL)
            sweep.wait()
            done += 1
            moment = going_on(results, left)
            moments[moment] = moments.get(moment, 0) + 1
    moments["kills"] = done
    return moments


def unfinished(results: Path) -> set[Path]:
    """Hidden temporary files: what was being written when a process was killed."""
    return {path for path in results.rglob(".*") if re.search(r"\.(tmp|\d+)$", path.name) and path.is_file()}


def going_on(results: Path, left: set[Path]) -> str:
    """What the kill interrupted, from the files it left; `left`: by those before it."""
    if unfinished(results) - left:
        return "writing a file"
    return "training or scoring" if any((results / "running").rglob("*.json")) else "between packs"


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    return [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]


def fields(calm: Path, killed: Path, name: str) -> str:
    """Which parts of a record differ, and how."""
    if not name.endswith(".json") or not (calm / name).exists() or not (killed / name).exists():
        return ""
    before, now = (leaves(without(json.loads((folder / name).read_text()))) for folder in (calm, killed))
    changed = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    return f" ({'; '.join(f'{key}: {before.get(key)!r}, now {now.get(key)!r}' for key in sorted(changed)[:5])})"


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value."""
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, inner in value.items() for name, leaf in leaves(inner, f"{path}.{key}").items()}


def full_disk(folder: Path, log: Path) -> str:
    """A sweep on a disk that fills up: refused in one sentence, nothing half-written, and it goes on with more room."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        return "skipped: cannot mount a tmpfs here"
    try:
        results = disk / "results"
        words = ["method=lora", "task=glue/sst2", "seed=range(4)"]
        sweep = subprocess.run(command(words, results), capture_output=True, text=True, timeout=600)
        if sweep.returncode == 0 or "No space left" not in sweep.stdout + sweep.stderr:
            return f"FAILED: no word of a full disk:\n{(sweep.stdout + sweep.stderr)[-1500:]}"
        if "Traceback" in sweep.stdout + sweep.stderr:
            return f"FAILED: a traceback:\n{(sweep.stdout + sweep.stderr)[-1500:]}"
        for path in results.rglob("*.json"):
            if path.parts[-3:-1] != () and "records" in path.parts:
                json.loads(path.read_text())
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = subprocess.run(command(words, results), capture_output=True, text=True, timeout=600)
        if again.returncode != 0 or "4 runs" not in again.stdout:
            return f"FAILED to go on with more room:\n{(again.stdout + again.stderr)[-1500:]}"
        whole = folder / "whole"
        subprocess.run(command(words, whole), check=True, capture_output=True, timeout=600)
        wrong = differences(content(whole), content(results))
        return f"FAILED: {wrong} differ" if wrong else "passed"
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def read_only(folder: Path) -> str:
    """A results folder on a read-only file system is refused in one sentence before anything is trained."""
    source, target = folder / "source", folder / "read-only"
    source.mkdir()
    target.mkdir()
    bind = ["mount", "--bind", str(source), str(target)]
    if os.geteuid() != 0 or subprocess.run(bind, capture_output=True).returncode != 0:
        return "skipped: cannot bind a folder here"
    try:
        if subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], capture_output=True).returncode != 0:
            return "skipped: cannot make a folder read-only here"
        sweep = subprocess.run(command(SWEEPS[0], target), capture_output=True, text=True, timeout=600)
        said = sweep.stderr.strip().splitlines()
        if sweep.returncode != 2 or len(said) != 1 or "cannot write there (Read-only file system)" not in said[0]:
            return f"FAILED: exit {sweep.returncode}, {sweep.stderr[-1500:]}"
        status = subprocess.run([*COMMAND, "status", "--results", str(target)], capture_output=True, text=True)
        return "passed" if status.returncode == 0 else f"FAILED: status of a read-only folder: {status.stderr}"
    finally:
        subprocess.run(["umount", str(target)], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, help="of the random moments (default: a new one, which is printed)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    failed = False
    with tempfile.TemporaryDirectory(prefix="peft-bench-crash-") as name:
        folder = Path(name)
        seconds = make_all(folder / "calm", folder / "calm.log")
        tables(folder / "calm")
        wanted = content(folder / "calm")
        print(f"undisturbed: {len(wanted)} files in {seconds:.0f} s", flush=True)
        kills = 0
        for turn in range(options.kills):  # a sweep that ends before it is killed leaves kills for another turn
            if kills >= options.kills:
                break
            results, start = folder / f"killed{turn}", time.monotonic()
            moments = kill_at_random(results, options.kills - kills, seed + turn, folder / "killed.log", seconds)
            kills += moments["kills"]
            tables(results)
            if left := unfinished(results):
                print(f"FAILED, half-written files are left: {', '.join(map(str, left))}", flush=True)
                failed = True
            wrong = [name + fields(folder / "calm", results, name) for name in differences(wanted, content(results))]
            print(f"turn {turn}, --seed {seed}: {moments} in {time.monotonic() - start:.0f} s", flush=True)
            print(
                f"FAILED, these differ: {', '.join(wrong)}" if wrong else "passed: every file is the same", flush=True
            )
            failed = failed or bool(wrong)
        if kills < options.kills:
            print(f"FAILED: {kills} of {options.kills} kills came before a sweep had ended", flush=True)
            failed = True
        if failed and (log := folder / "killed.log").exists():
            shutil.copy(log, Path(tempfile.gettempdir()) / "peft-bench-crash.log")
        for what, verdict in (("full disk", full_disk(folder, folder / "disk.log")), ("read-only", read_only(folder))):
            print(f"{what}: {verdict}", flush=True)
            failed = failed or verdict.startswith("FAILED")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
