"""`peft-bench rehearse`: every experiment at scale=paper for two steps, offline, on stand-ins in hub layout.

What a user with a GPU and the hub will run (composition with the published recipe, loading, tokenizing at the
published length, training, evaluation, record, report) is executed for every experiment file and each of its tasks,
with the paper's settings and, where conf/recipe/script has them, the script's; but that texts of any length are scored
at 128 tokens, and all in small batches. They read local folders; some runs are then repeated as if the hub had been
used, from its cache. The scores mean nothing; that each run is recorded, and the report made, without one attempt to
reach a network, is what is checked.
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .offline import OFFLINE, no_network


def main(argv: Sequence[str]) -> int:
    """The verb. 0 if everything passed, 1 if not."""
    os.environ.update(OFFLINE)  # read by the libraries when they are imported, which the next lines do
    from .acts import STEPS, plan
    from .hub_cache import conversions_in
    from .rehearse import perform_acts

    parser = argparse.ArgumentParser(
        prog="peft-bench rehearse",
        description=f"Run experiments at scale=paper for {STEPS} steps, offline, on stand-ins of the published "
        "backbones and data; those of the grid at scale=micro, one task each.",
    )
    parser.add_argument("experiments", nargs="*", help="names or patterns of experiments ('lora/*'); all without any")
    parser.add_argument("--task", default="*", help="a task name or pattern (rte); all without it")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the experiments (1)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave stand-ins, records and tables in this new folder"
    )
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: expected 1 or more")
    acts = plan(options.experiments or ["*"], options.task)
    with contextlib.ExitStack() as stack:
        if options.keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peft-bench-rehearsal-")))
        else:
            options.keep.mkdir(parents=True)
            folder = options.keep.resolve()
        stack.enter_context(conversions_in(folder / "conversions"))
        attempts = stack.enter_context(no_network())
        return perform_acts(acts, folder, attempts, options.workers)
