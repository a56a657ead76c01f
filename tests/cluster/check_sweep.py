"""Run a small sweep through `hydra/launcher=slurm` and prove that Slurm ran it (make test-cluster).

Started by one_node_slurm.sh, which sets SLURM_TEST_DIR: slurmctld writes one line there per job that ended.
Four micro-scale runs go in; out must come four records in two packs, and for each pack a task of one Slurm job array,
which left its log and which slurmctld counted as completed. Exit status 0 only then.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENT = "lora/table2_roberta_base_lora"
TASKS = ("sst2", "cola")  # without a parent run
SEEDS = (0, 1)
TIMEOUT_S = 500  # submitit waits forever for a job that died on a cluster without accounting, as this one is


def sweep(results_dir: Path, sweep_dir: Path) -> None:
    """Run the sweep as a user would, on CPUs."""
    command = [sys.executable, "-m", "peft_bench", "run", "-m", "hydra/launcher=slurm"]
    command += ["hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
    command += [f"hydra.sweep.dir={sweep_dir}", f"results_dir={results_dir}"]
    command += [f"experiment={EXPERIMENT}", "scale=micro", "trainer.max_steps=20"]
    command += ["task=" + ",".join(f"glue/{task}" for task in TASKS), "seed=" + ",".join(map(str, SEEDS))]
    print("+", " ".join(command), flush=True)
    try:
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
    except subprocess.SubprocessError as error:
        for log in sorted(sweep_dir.glob(".submitit/*/*_log.*")):
            print(f"--- end of {log.name}", *log.read_text().splitlines()[-25:], sep="\n")
        sys.exit(f"the sweep failed: {error}")


def recorded_runs(results_dir: Path) -> dict[tuple[str, int], list[str]]:
    """(task, seed) of every finished record -> the run ids of its pack."""
    records = [json.loads(path.read_text()) for path in (results_dir / "records" / EXPERIMENT).glob("*.json")]
    done = [r for r in records if r["status"] == "done" and r["scores"]]
    return {(r["task"], r["seed"]): r["numerics"]["members"] for r in done}


def array_tasks(sweep_dir: Path) -> set[str]:
    """The Slurm array tasks that left a log, such as 1_3."""
    return {path.name.split("_0_log")[0] for path in sweep_dir.rglob("*_0_log.out")}


def completed_jobs(expected: int) -> int:
    """How many jobs slurmctld counts as completed; it may write its line a moment after the job's result is there."""
    log = Path(os.environ["SLURM_TEST_DIR"]) / "completed_jobs.txt"
    for _ in range(50):
        completed = len(re.findall(r"Name=peft-bench JobState=COMPLETED", log.read_text() if log.exists() else ""))
        if completed >= expected:
            break
        time.sleep(0.2)
    return completed


def main() -> None:
    """Run the sweep, then check records, array tasks and Slurm's own count."""
    wanted = {(task, seed) for task in TASKS for seed in SEEDS}
    with tempfile.TemporaryDirectory(prefix="cluster-sweep-") as folder:
        results_dir, sweep_dir = Path(folder, "results"), Path(folder, "sweep")
        start = time.monotonic()
        sweep(results_dir, sweep_dir)
        recorded, tasks = recorded_runs(results_dir), array_tasks(sweep_dir)
        packs = {tuple(members) for members in recorded.values()}
        completed = completed_jobs(len(packs))
        again = time.monotonic()
        sweep(results_dir, sweep_dir)  # everything is done: nothing is submitted
        seconds_again = time.monotonic() - again
        array_tasks_unchanged = array_tasks(sweep_dir) == tasks
    checks = {
        f"records of {sorted(wanted)}: found {sorted(recorded)}": set(recorded) == wanted,
        f"a pack a task of GLUE, of both seeds: {sorted(map(len, packs))}": sorted(map(len, packs)) == [2, 2],
        f"one array task a pack: {sorted(tasks)}": len(tasks) == len(packs)
        and all(re.fullmatch(r"\d+_\d+", task) for task in tasks),
        f"completed jobs by Slurm's own count: {completed}": completed == len(packs),
        f"the same command again submits nothing ({seconds_again:.0f} s)": array_tasks_unchanged,
    }
    for check, passed in checks.items():
        print("passed" if passed else "FAILED", check)
    print(f"{sum(checks.values())} passed, {len(checks) - sum(checks.values())} failed")
    print(f"{len(wanted)} runs through Slurm in {time.monotonic() - start:.0f} s")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
