"""Claims: two workers never do one run, a lost one is taken over, and clocks do not matter."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from peft_bench.records import leases
from peft_bench.records.leases import Busy, ClaimLost, claim_runs, read_claims

A, B, C = ("lora/x", "a" * 16), ("lora/x", "b" * 16), ("other", "c" * 16)


def age(results_dir, key, seconds):
    path = results_dir / "running" / key[0] / f"{key[1]}.json"
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_all_runs_of_a_pack_are_claimed_or_none(tmp_path):
    held = claim_runs(tmp_path, [A, B])
    assert {key: alive for key, (_, alive) in read_claims(tmp_path).items()} == {A: True, B: True}
    with pytest.raises(Busy, match=f"is being made by process {os.getpid()} on"):
        claim_runs(tmp_path, [C, B])
    assert C not in read_claims(tmp_path)
    held.release()
    assert read_claims(tmp_path) == {}
    claim_runs(tmp_path, [C, B]).release()


def test_one_of_many_threads_gets_a_run(tmp_path):
    won, barrier = [], threading.Barrier(8)

    def attempt():
        barrier.wait()
        with contextlib.suppress(Busy):
            won.append(claim_runs(tmp_path, [A]))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()


def test_the_claim_of_a_process_that_is_gone_expires_at_once(tmp_path):
    claim = f"claim_runs({str(tmp_path)!r}, [{A!r}, {B!r}])"
    code = f"import os; from peft_bench.records.leases import claim_runs; {claim}; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    ((first, alive), _) = read_claims(tmp_path).values()
    assert not alive
    assert first.members == (A, B)  # what the pack was
    claim_runs(tmp_path, [A]).release()


def test_a_process_that_has_ended_and_was_not_asked_why_is_gone(tmp_path):
    code = f"from peft_bench.records.leases import claim_runs; claim_runs({str(tmp_path)!r}, [('x', 'y')])._stop.set()"
    child = subprocess.Popen([sys.executable, "-c", code])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    ((_, alive),) = read_claims(tmp_path).values()
    assert not alive
    child.wait()


def test_a_claim_of_another_machine_expires_by_the_clock_of_the_files(tmp_path, monkeypatch):
    held = claim_runs(tmp_path, [A])
    path = held.paths[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "another machine", "host": "far"}))
    monkeypatch.setattr(time, "time", lambda: 0.0)  # our own clock may be wrong by years
    assert read_claims(tmp_path)[A][1]
    monkeypatch.undo()
    age(tmp_path, A, leases.CLAIM_SECONDS + 5)
    assert not read_claims(tmp_path)[A][1]
    held.release()


def test_a_held_claim_is_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "CLAIM_SECONDS", 1.2)
    held = claim_runs(tmp_path, [A])
    age(tmp_path, A, 100)
    time.sleep(0.5)
    assert read_claims(tmp_path)[A][1]
    held.release()


def test_a_process_that_stood_still_may_write_no_more(tmp_path):
    late = claim_runs(tmp_path, [A])
    path = late.paths[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "another machine"}))
    age(tmp_path, A, leases.CLAIM_SECONDS + 5)
    new = claim_runs(tmp_path, [A])
    with pytest.raises(ClaimLost, match="another process has taken over"):
        late.check()
    late.release()
    new.check()  # the late owner's release has left it alone
    new.release()


def test_another_version_of_the_suite_is_refused_politely(tmp_path, monkeypatch):
    held = claim_runs(tmp_path, [A])
    monkeypatch.setattr(leases, "suite_version", lambda: "9.9, record schema 9")
    with pytest.raises(ValueError, match=r"works there with peft-bench .* this is 9.9, .*wait until it has ended"):
        claim_runs(tmp_path, [C])
    held.release()
    claim_runs(tmp_path, [C]).release()


def test_foreign_files_claim_nothing(tmp_path):
    folder = tmp_path / "running" / "lora"
    folder.mkdir(parents=True)
    for name, content in (("a.json", "{"), ("b.json", "[]"), ("c.json", '{"token": 1}'), ("notes.txt", "x")):
        (folder / name).write_text(content)
    assert read_claims(tmp_path) == {}
    assert read_claims(tmp_path / "nowhere") == {}


def test_a_claim_is_plain_data(tmp_path):
    held = claim_runs(tmp_path, [A])
    stored = json.loads(held.paths[0].read_text())
    assert stored == json.loads(json.dumps(dataclasses.asdict(held.claim)))
    held.release()


def test_what_a_killed_process_had_half_written_is_removed(tmp_path):
    mine, other = ("lora/x", "a" * 16), ("lora/x", "b" * 16)
    held = leases.claim_runs(tmp_path, [mine])
    left = []
    for folder in ("records", "trained", "checkpoints", "running"):
        (tmp_path / folder / "lora/x").mkdir(parents=True, exist_ok=True)
        left += [tmp_path / folder / "lora/x" / f".{key[1]}.json.77.tmp" for key in (mine, other)]
    for path in left:
        path.touch()
    (path,) = held.paths
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": 0.0}))
    again = leases.claim_runs(tmp_path, [mine])
    assert [path for path in left if path.exists()] == left[1::2]
    held._stop.set()
    again.release()
