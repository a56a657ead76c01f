"""The command `peft-bench` (also `python -m benchmarks`): one verb per stage."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

HELP = """\
usage: peft-bench VERB [arguments]      peft-bench VERB --help says more

  run       one run, or a Hydra multirun with -m. Overrides follow the verb:
              peft-bench run experiment=lora/table2_roberta_base_lora task=glue/rte
              peft-bench run -m experiment=lora/table2_roberta_base_lora 'task=glob(glue/*)' 'seed=range(5)'
              peft-bench run scale=paper data_dir=~/data backbone_dir=~/models experiment=...
  sweep     a named sweep in local worker processes: peft-bench sweep quickstart
  status    what is done, failed (with its cause) and flagged
  report    the papers' tables beside our runs, and the micro tables
  params    trainable-parameter counts beside the printed ones, from configurations alone
  latency   time of a forward pass, bytes stored and memory in training of the methods beside the backbone
  pretrain  the micro backbones, from the generated language
  rehearse  every experiment at scale=paper for two steps, offline, on stand-ins

Scales: micro (default: no network, no account, no GPU), small, paper. A record is one JSON file per run under
results/records/; a run whose record exists is left out. Bad input exits with 2, a failed run with 1."""

RUN_HELP = """\
usage: peft-bench run [-m] [OVERRIDE ...] [HYDRA FLAGS]

One run is one seed of one setting on one task. OVERRIDE is Hydra's group=option or key=value:

  experiment=NAME      one printed row of a paper's table: {experiments}
  task=glue/NAME       {tasks}
  backbone=NAME        {backbones}
  method=NAME          {methods}
  scale=NAME           micro (default), small, paper
  settings=NAME        paper (default) or script: whose value, where the paper and its released code disagree
  tracking=NAME        disabled (default), offline, online: Weights & Biases
  seed=0 device=auto|cpu|cuda threads=N force=true results_dir=results
  data_dir=DIR         data in hub layout: DIR/glue/rte/train.parquet; without it: the hub
  backbone_dir=DIR     a checkpoint folder, or a folder of them: DIR/FacebookAI/roberta-base; without it: the hub
  trainer.learning_rate=5e-4 trainer.max_steps=100 method.rank=4 ...   every key: peft-bench run --cfg job

-m sweeps: 'task=glob(glue/*)', seed=0,1,2 or 'seed=range(5)' (quote them), method.rank=1,2,4.
   An experiment file brings its own sweep (tasks, grid, seeds) when it is the only experiment.
hydra/launcher=slurm sends the runs to Slurm (extra: pip install -e .[slurm]; docs/cluster.md).
Also: --cfg job prints the composed configuration, --info defaults the files it came from."""

_failures: list[str] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to the verb; returns the exit status: 0, 1 (a run failed) or 2 (bad input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"peft-bench: no verb {verb!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return VERBS[verb](rest) or 0
    except _configuration_errors() as error:  # first: some are ValueErrors or OSErrors, too
        from benchmarks.compose import explain

        print(f"peft-bench {verb}: {explain(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; what was to be written to files is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"peft-bench {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except AssertionError as error:
        if "Unexpected type for root" not in str(error):
            raise
        print(
            f"peft-bench {verb}: an override reaches into a part that is null here; init_from.* is only for tasks that "
            "start from a parent (name them in task=...)",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _configuration_errors() -> tuple[type[Exception], ...]:
    """What reading YAML files and overrides can raise; evaluated only when something was raised."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    return HydraException, OmegaConfBaseException, YAMLError


def _run(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(_run_help())
        return 0
    _check_slurm(argv)
    import hydra

    from benchmarks.compose import register
    from benchmarks.config import CONF_DIR
    from benchmarks.sweep import expand_globs

    register()
    sys.argv = ["peft-bench run", *expand_globs(argv)]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # the exception itself, instead of an exit from within Hydra
    hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(task)()
    return int(bool(_failures))


def _check_slurm(argv: Sequence[str]) -> None:
    """Hydra ignores a launcher without -m, and reports a missing plug-in or a missing Slurm with a traceback."""
    if "hydra/launcher=slurm" not in argv:
        return
    plugins = ("submitit", "hydra_plugins", "hydra_plugins.hydra_submitit_launcher")
    if not all(find_spec(name) for name in plugins):
        raise ValueError(
            "hydra/launcher=slurm needs hydra-submitit-launcher, which is not installed: "
            "pip install -c constraints.txt -e .[slurm]"
        )
    if not {"-m", "--multirun"} & set(argv):
        raise ValueError("hydra/launcher=slurm applies to a multirun only: add -m (without it Hydra would run here)")
    if {"--cfg", "-c", "--info", "-i"} & set(argv):
        return
    missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
    if missing:
        raise ValueError(
            f"hydra/launcher=slurm: {' and '.join(missing)} not found in PATH; run it on a login node of a Slurm "
            "cluster, or leave the launcher out"
        )


def task(cfg: Any) -> None:
    """Hydra's task function: one run. A failure ends a single run with its exit status; in a local multirun the
    others go on; in a job of another launcher it is raised, so that the launcher sees it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from benchmarks.compose import explain, typed
    from benchmarks.run import run

    for noisy in ("httpx", "datasets", "filelock", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        outcome = run(typed(cfg))
        named = f"{outcome.experiment} {outcome.task} seed {outcome.seed} at scale {cfg.scale.name}"
        text = f"{outcome.status}: {named} [{outcome.run_id}]"
        score = "" if outcome.score is None else f" {cfg.task.selection_metric} {outcome.score:.4f}"
        line = f"{text}{score} {outcome.seconds:.1f} s {outcome.message}".rstrip()
        failed = outcome.status == "failed"
    except _configuration_errors() as error:  # of a parent
        line, failed = f"peft-bench run: {explain(error)}", True
    except (ValueError, OSError) as error:
        line, failed = f"peft-bench run: {' '.join(str(error).split())}", True
    if not failed:
        print(line, flush=True)
        return
    _failures.append(line)
    print(line, file=sys.stderr, flush=True)
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and not hydra_config.launcher._target_.endswith("BasicLauncher"):
        raise RuntimeError(line)
    if hydra_config.mode == RunMode.RUN and line.startswith("peft-bench run:"):
        raise SystemExit(2)


def _run_help() -> str:
    from benchmarks.compose import choices

    def wrapped(group: str) -> str:
        import textwrap

        return textwrap.fill(", ".join(choices(group)), 118, subsequent_indent=" " * 23)

    return RUN_HELP.format(
        experiments=wrapped("experiment"),
        tasks=wrapped("task"),
        backbones=wrapped("backbone"),
        methods=wrapped("method"),
    )


def _sweep(argv: Sequence[str]) -> int:
    from benchmarks.sweep import main

    return main(argv)


def _status(argv: Sequence[str]) -> int:
    from benchmarks.report.main import status_main

    return status_main(argv) or 0


def _report(argv: Sequence[str]) -> int:
    from benchmarks.report.main import main

    return main(argv) or 0


def _params(argv: Sequence[str]) -> int:
    from benchmarks.params import main

    return main(argv) or 0


def _latency(arguments: Sequence[str]) -> int:
    from benchmarks.latency import main as latency

    return latency(arguments)


def _pretrain(argv: Sequence[str]) -> int:
    from benchmarks.pretraining import main

    return main(argv) or 0


def _rehearse(argv: Sequence[str]) -> int:
    from benchmarks.rehearse import main

    return main(argv) or 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "sweep": _sweep,
    "status": _status,
    "report": _report,
    "params": _params,
    "latency": _latency,
    "pretrain": _pretrain,
    "rehearse": _rehearse,
}
