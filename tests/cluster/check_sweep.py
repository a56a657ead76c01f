"""Run a small sweep through `hydra/launcher=slurm` and prove that Slurm ran it (make test-cluster).

Started by one_node_slurm.sh, which sets SLURM_TEST_DIR: slurmctld writes one line there per job that ended.
Four micro-scale runs go in; out must come four records, and for each of them a task of one Slurm job array, which Hydra
noted in the run's folder and slurmctld counted as completed. Exit status 0 only then.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

EXPERIMENT = "lora/table2_roberta_base_lora"
TASKS = ("sst2", "cola")  # without a parent run
SEEDS = (0, 1)
TIMEOUT_S = 500  # submitit waits forever for a job that died on a cluster without accounting, as this one is


def sweep(results_dir: Path, sweep_dir: Path) -> None:
    """Run the sweep as a user would, on CPUs."""
    command = [sys.executable, "-m", "benchmarks", "run", "-m", "hydra/launcher=slurm"]
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


def recorded_runs(results_dir: Path) -> set[tuple[str, int]]:
    """(task, seed) of every finished record."""
    records = [json.loads(path.read_text()) for path in (results_dir / "records" / EXPERIMENT).glob("*.json")]
    return {(r["task"], r["seed"]) for r in records if r["status"] == "done" and r["scores"]}


def array_tasks(sweep_dir: Path) -> dict[tuple[str, int], str]:
    """(task, seed) of every run -> the Slurm array task that Hydra noted for it, such as 1_3."""
    tasks = {}
    for path in sweep_dir.glob("*/.hydra/hydra.yaml"):
        job = yaml.safe_load(path.read_text())["hydra"]["job"]
        overrides = dict(override.split("=", 1) for override in job["override_dirname"].split(","))
        tasks[overrides["task"].removeprefix("glue/"), int(overrides["seed"])] = str(job["id"])
    return tasks


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
        recorded, tasks, completed = recorded_runs(results_dir), array_tasks(sweep_dir), completed_jobs(len(wanted))
    checks = {
        f"records of {sorted(wanted)}: found {sorted(recorded)}": recorded == wanted,
        f"one array task each: {tasks}": set(tasks) == wanted
        and all(re.fullmatch(r"\d+_\d+", task) for task in tasks.values())
        and len(set(tasks.values())) == len(wanted),
        f"completed jobs by Slurm's own count: {completed}": completed == len(wanted),
    }
    for check, passed in checks.items():
        print("passed" if passed else "FAILED", check)
    print(f"{sum(checks.values())} passed, {len(checks) - sum(checks.values())} failed")
    print(f"{len(wanted)} runs through Slurm in {time.monotonic() - start:.0f} s")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
