"""The verb `run`: one run, composed by Hydra from the overrides that follow the verb."""

import logging
import os
import sys
import textwrap
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from ..config.compose import CONFIGURATION_ERRORS, choices, explain, register, typed
from ..config.multirun import expand_globs
from ..config.schema import CONF_DIR

HELP = """\
usage: peft-bench run [-m] [OVERRIDE ...] [HYDRA FLAGS]

One run is one seed of one setting on one task. OVERRIDE is Hydra's group=option or key=value:

  experiment=NAME      one printed row of a paper's table, or a figure's: `peft-bench list` names them
  task=NAME            {tasks}
  backbone=NAME        {backbones}
  method=NAME          {methods}
  scale=NAME           micro (default), small, paper
  settings=NAME        paper (default) or script: whose value, where the paper and its released code disagree
  decoding=NAME        how texts are searched for: {decodings} (task=e2e; docs/e2e.md)
  hand_written=NAME start_words=NAME   prompts, and words a prefix starts from: conf/hand_written/, conf/start_words/
  low_data=prefix/50   training rows of a low-data run, and its steps: conf/low_data/
  in_context=NAME      instructions and examples that a frozen backbone reads first: conf/in_context/
  tracking=NAME        disabled (default), offline, online: Weights & Biases
  seed=0 device=auto|cpu|cuda threads=N force=true results_dir=results
  data_dir=DIR         data in hub layout: DIR/glue/rte/train.parquet; without it: the hub
  backbone_dir=DIR     a checkpoint folder, or a folder of them: DIR/FacebookAI/roberta-base; without it: the hub
  trainer.learning_rate=5e-4 trainer.max_steps=100 method.rank=4 ...   every key: peft-bench run --cfg job

-m sweeps: 'task=glob(glue/*)', seed=0,1,2 or 'seed=range(5)' (quote them), method.rank=1,2,4. The same as
   peft-bench sweep, whose --help says more: packs, workers, budget. An experiment file brings its own sweep
   (tasks, grid, seeds) when it is the only experiment.
hydra/launcher=slurm sends the runs to Slurm (extra: pip install -e .[slurm]; docs/cluster.md).
Also: --cfg job prints the composed configuration, --info defaults the files it came from."""

_LOOKS = {"--cfg", "-c", "--info", "-i"}  # Hydra prints something and ends


def main(argv: Sequence[str]) -> int:
    """0, or 1 where the run failed or another process makes it; exits with 2 for bad input."""
    if "--help" in argv or "-h" in argv:
        print(_help())
        return 0
    launcher = next((word for word in argv if word.startswith("hydra/launcher=")), None)
    if launcher is not None and not _LOOKS & {*argv}:
        raise ValueError(f"{launcher} applies to a multirun only: add -m (without it Hydra would run here)")
    statuses: list[int] = []

    def task(cfg: DictConfig) -> None:  # Hydra gives no task's value back
        statuses.append(_one_run(cfg))

    register()
    sys.argv = ["peft-bench run", *expand_globs(argv)]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # the exception itself, instead of an exit from within Hydra
    hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(task)()
    return max(statuses, default=0)


def is_multirun(argv: Sequence[str]) -> bool:
    """Whether many runs are asked for (-m): a sweep, and no look at a configuration."""
    return bool({"-m", "--multirun"} & {*argv}) and not {"--help", "-h", *_LOOKS} & {*argv}


def _one_run(cfg: DictConfig) -> int:
    """One run and its line: 0, or 1 where it failed. Bad input exits here, before Hydra prints what it was given."""
    from .run import run

    for noisy in ("httpx", "datasets", "filelock", "accelerate", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        outcome = run(typed(cfg))
    except CONFIGURATION_ERRORS as error:  # of a parent
        print(f"peft-bench run: {explain(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    except (ValueError, OSError) as error:
        print(f"peft-bench run: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    named = f"{outcome.experiment} {outcome.task} seed {outcome.seed} at scale {cfg.scale.name}"
    text = f"{outcome.status}: {named} [{outcome.run_id}]"
    score = "" if outcome.score is None else f" {cfg.task.selection_metric} {outcome.score:.4f}"
    line = f"{text}{score} {outcome.seconds:.1f} s {outcome.message}".rstrip()
    failed = outcome.status in ("failed", "busy")
    print(line, file=sys.stderr if failed else sys.stdout, flush=True)
    return int(failed)


def _help() -> str:
    def wrapped(group: str) -> str:
        return textwrap.fill(", ".join(choices(group)), 118, subsequent_indent=" " * 23)

    return HELP.format(
        tasks=wrapped("task"),
        backbones=wrapped("backbone"),
        methods=wrapped("method"),
        decodings=wrapped("decoding"),
    )
