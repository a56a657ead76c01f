"""Sweeps of two steps a run, carried out in this process."""

from peft_bench.config.many import compose_all
from peft_bench.config.multirun import expand
from peft_bench.sweeps.plan import make_plan
from peft_bench.sweeps.workers import make_lines, run_all

LORA = "experiment=lora/table2_roberta_base_lora"
SHORT = ["trainer.max_steps=2", "trainer.evaluate_every_steps=2", "device=cpu"]


def cells(tmp_path, *words):
    """The configurations of a multirun of two steps each."""
    return compose_all(expand([*SHORT, f"results_dir={tmp_path}", *words]))


def states(plan):
    return [cell.state for cell in plan.cells]


class InThisProcess:
    """A pool without processes: for tests that patch."""

    def __init__(self):
        self.made = []

    def make(self, packs):
        for pack in packs:
            self.made.append([cell.label for cell in pack.cells])
            yield pack, make_lines([cell.cfg for cell in pack.cells], pack.whole)


def carry_out(cfgs, pool=None, size=None, retry=False):
    pool = pool or InThisProcess()
    return run_all(cfgs, make_plan(cfgs, size, retry=retry), pool, 1, size, retry), pool
