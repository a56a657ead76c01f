"""Named sweeps: several Hydra multiruns as one, from conf/sweep/<name>.yaml, in local worker processes.

A sweep file lists multiruns; each is a list of Hydra overrides, sweeps included ("task=glob(glue/*)", "seed=range(5)").
"""

import argparse
import time
from collections.abc import Sequence

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob

from benchmarks.compose import choices
from benchmarks.config import CONF_DIR


def expand(multirun: Sequence[str]) -> list[list[str]]:
    """The override lists of the single runs of one multirun, in Hydra's order."""
    parsed = OverridesParser.create().parse_overrides(expand_globs(multirun))
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]


def expand_globs(overrides: Sequence[str]) -> list[str]:
    """`task=glob(glue/*)` becomes `task=glue/cola,glue/mnli,...`: Hydra's own glob does not look into subfolders and
    expands to nothing without a word."""
    expanded = []
    for word in overrides:
        if word.startswith(("recipe=", "tuned=")):  # Hydra would take a name without a file for "no file"
            raise ValueError(f"{word}: it follows from experiment, task, settings and scale; change values one by one")
        if "=glob(" not in word:
            expanded.append(word)
            continue
        override = OverridesParser.create().parse_override(word)
        group, value = override.key_or_group, override.value()
        names = choices(group)
        chosen: list[str] = value.filter(names) if isinstance(value, Glob) else []
        if not chosen:
            raise ValueError(f"{word} matches nothing (conf/{group} has: {', '.join(names) or 'no such group'})")
        expanded.append(f"{group}={','.join(chosen)}")
    return expanded


def load_sweep(name: str) -> list[list[str]]:
    """The multiruns of conf/sweep/<name>.yaml."""
    path = CONF_DIR / "sweep" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ValueError(f"no sweep {name!r}: expected one of {known}, or a new file {path.name} in conf/sweep/")
    multiruns = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(multiruns, list) or not all(
        isinstance(multirun, list) and multirun and all(isinstance(word, str) for word in multirun)
        for multirun in multiruns
    ):
        raise ValueError(f"conf/sweep/{name}.yaml: expected a list of lists of Hydra overrides, each a text")
    return multiruns


def main(argv: Sequence[str]) -> int:
    """`peft-bench sweep NAME [overrides]`."""
    parser = argparse.ArgumentParser(
        prog="peft-bench sweep",
        description="Run a named sweep (conf/sweep/NAME.yaml) in local worker processes. Runs that are done are left "
        "out, so the same command continues an interrupted sweep.",
    )
    parser.add_argument("name", help="file name in conf/sweep, without .yaml (quickstart, ...)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every run, sweeps included: 'seed=range(3)'")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default %(default)s)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}: expected at least 1")

    from benchmarks.workers import run_all, summary

    start = time.monotonic()
    jobs = [job for multirun in load_sweep(arguments.name) for job in expand([*multirun, *arguments.overrides])]
    print(f"sweep {arguments.name}: {len(jobs)} runs in {arguments.workers} processes", flush=True)
    lines = run_all(jobs, arguments.workers)
    print(summary(lines, time.monotonic() - start))
    return int(any(line.status == "failed" for line in lines))
