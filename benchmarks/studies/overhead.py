"""What is not training: a run's overhead, packs, workers, status, plan and report (make bench).

Every figure comes from one process or one run of this command on one machine; ratios stand beside what they compare.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

EXPERIMENT = "lora/table2_roberta_base_lora"
STEPS = 60
CELLS = 10_000


def main() -> int:
    """Print every figure."""
    with tempfile.TemporaryDirectory(prefix="peft-bench-bench-") as name:
        folder = Path(name)
        overhead(folder)
        packs(folder)
        workers(folder)
        states_and_plans(folder)
    for number in (10_000, 100_000):
        subprocess.run([sys.executable, "-m", "peft_bench.studies.report_overhead", str(number)], check=True)
    return 0


def _runs(folder: Path, seeds: int, *words: str) -> list[list[str]]:
    common = [f"experiment={EXPERIMENT}", "task=glue/sst2", f"results_dir={folder}", "device=cpu"]
    return [[*common, f"seed={seed}", *words] for seed in range(seeds)]


def overhead(folder: Path) -> None:
    """Seconds of a run in a process that has its backbone and data, apart from its own training and evaluation."""
    from ..config.many import compose_all
    from ..records.store import read_record, record_path
    from ..runs.run import How, run

    beyond = []
    for cfg in compose_all(_runs(folder / "overhead", 8, f"trainer.max_steps={STEPS}")):
        start = time.perf_counter()
        outcome = run(cfg, How(show_progress=False))
        seconds = time.perf_counter() - start
        cost = read_record(record_path(cfg.results_dir, cfg.experiment, outcome.run_id))["cost"]
        beyond.append(seconds - (cost["train_seconds"] or 0) - (cost["eval_seconds"] or 0))
    rest = beyond[1:]  # the first loads and composes
    print(
        f"overhead of a run beyond training and evaluation: {statistics.median(rest):.2f} s (median of {len(rest)}, "
        f"{min(rest):.2f} to {max(rest):.2f}); of the first in a process: {beyond[0]:.1f} s",
        flush=True,
    )


def packs(folder: Path) -> None:
    """Eight runs one by one against packs of 2, 4 and 8, interleaved, one thread."""
    import torch

    from ..config.many import compose_all
    from ..runs.run import How, run_pack

    seconds: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: []}
    with _one_thread(torch):
        for repeat in range(3):
            for size, found in seconds.items():
                cfgs = compose_all(_runs(folder / f"packs{repeat}.{size}", 8, f"trainer.max_steps={STEPS}"))
                start = time.perf_counter()
                for i in range(0, len(cfgs), size):
                    run_pack(cfgs[i : i + size], How(show_progress=False))
                found.append(time.perf_counter() - start)
    alone = statistics.median(seconds[1])
    listed = ", ".join(f"{size}: {alone / statistics.median(found):.2f}" for size, found in seconds.items() if size > 1)
    print(f"8 micro runs one by one take {alone:.1f} s (1 thread); times as fast in packs of {listed}", flush=True)


@contextlib.contextmanager
def _one_thread(torch: object) -> Iterator[None]:
    before = torch.get_num_threads()  # type: ignore[attr-defined]
    torch.set_num_threads(1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before)  # type: ignore[attr-defined]


def workers(folder: Path) -> None:
    """The same sweep in one process of two threads and in two of one thread, interleaved."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(2):
        for number, found in seconds.items():
            words = [f"experiment={EXPERIMENT}", "task=glue/sst2,glue/cola", "seed=range(8)", "trainer.max_steps=100"]
            words += [f"results_dir={folder / f'workers{repeat}.{number}'}", "--workers", str(number)]
            found.append(_command("sweep", *words, *(["threads=2"] if number == 1 else [])))
    one, two = (statistics.median(found) for found in seconds.values())
    print(
        f"16 micro runs, one two-thread worker: {one:.0f} s; two one-thread workers: {two:.0f} s, "
        f"{one / two:.2f} times as fast",
        flush=True,
    )


def _command(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "peft_bench", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def states_and_plans(folder: Path) -> None:
    """status on 10,000 records, and plan of 10,000 runs, as commands."""
    from .report_overhead import fill

    results = folder / "many"
    fill(results, CELLS)
    _command("status", "--results", str(results))  # the files are in the page cache, as after writing them
    seconds = min(_command("status", "--results", str(results)) for _ in range(3))
    print(f"status of {CELLS:,} records: {seconds:.2f} s, the command as a whole", flush=True)
    words = ["experiment=lora/table2_roberta_base_lora,lora/table2_roberta_base_bitfit", "task=glue/sst2,glue/cola"]
    words += ["seed=range(50)", f"trainer.learning_rate={','.join(f'{i}e-5' for i in range(1, 51))}"]
    seconds = _command("plan", *words, f"results_dir={results}")
    print(f"plan of {CELLS:,} runs beside them: {seconds:.1f} s, the command as a whole", flush=True)


if __name__ == "__main__":
    sys.exit(main())
