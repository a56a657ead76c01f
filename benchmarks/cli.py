"""The command `peft-bench` (also `python -m peft_bench`): one verb per stage."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

HELP = """\
usage: peft-bench VERB [arguments]      peft-bench VERB --help says more

  run       one run, or a Hydra multirun with -m. Overrides follow the verb:
              peft-bench run experiment=lora/table2_roberta_base_lora task=glue/rte
              peft-bench run -m experiment=lora/table2_roberta_base_lora 'task=glob(glue/*)' 'seed=range(5)'
              peft-bench run scale=paper data_dir=~/data backbone_dir=~/models experiment=...
  sweep     a named sweep in local worker processes: peft-bench sweep quickstart
  plan      what a sweep has to do: runs by state, packs, predicted time, memory and disk
  status    what is done, running, planned, failed (with its cause) and stale
  verify    a recorded run again: bit by bit, or within its tolerance on another machine
  score     the five official scores of texts in files: peft-bench score e2e --predictions FILE --references FILE
  errata    trained runs decoded and scored in other ways: what each is worth (peft-bench errata e2e_gap)
  ensemble  several prompts on one backbone: their majority vote, in one pass, and what it costs
  nearest   the vocabulary entries nearest to each learned prompt token
  report    the papers' tables beside our runs, and the micro tables
  params    trainable-parameter counts beside the printed ones, from configurations alone
  latency   time of a forward pass, bytes stored and memory in training of the methods beside the backbone
  pretrain  the micro backbones from the generated language, or a small GPT-2 or T5 from real text
  rehearse  every experiment at scale=paper for two steps, offline, on stand-ins

Scales: micro (default: no network, no account, no GPU), small, paper. A record is one JSON file per run under
results/records/; a run whose record exists is left out. Bad input exits with 2, a failed run with 1."""

RUN_HELP = """\
usage: peft-bench run [-m] [OVERRIDE ...] [HYDRA FLAGS]

One run is one seed of one setting on one task. OVERRIDE is Hydra's group=option or key=value:

  experiment=NAME      one printed row of a paper's table: {experiments}
  task=NAME            {tasks}
  backbone=NAME        {backbones}
  method=NAME          {methods}
  scale=NAME           micro (default), small, paper
  settings=NAME        paper (default) or script: whose value, where the paper and its released code disagree
  decoding=NAME        how texts are searched for: {decodings} (task=e2e; docs/e2e.md)
  hand_written=NAME start_words=NAME   prompts, and words a prefix starts from: conf/hand_written/, conf/start_words/
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
        from .config.compose import explain

        print(f"peft-bench {verb}: {explain(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; what was to be written to files is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"peft-bench {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except AssertionError as error:
        from .config.compose import explain, reaches_into_null

        if not reaches_into_null(error):
            raise
        print(f"peft-bench {verb}: {explain(error)}", file=sys.stderr)
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
    multirun = {"-m", "--multirun"}
    looks = {"--cfg", "-c", "--info", "-i"} & set(argv)  # Hydra prints something and ends
    if multirun & set(argv) and not looks:
        from .config.multirun import main as sweep

        return sweep([word for word in argv if word not in multirun], "run -m")
    if "hydra/launcher=slurm" in argv and not looks:
        raise ValueError("hydra/launcher=slurm applies to a multirun only: add -m (without it Hydra would run here)")
    import hydra

    from .config.compose import register
    from .config.multirun import expand_globs
    from .config.schema import CONF_DIR

    register()
    sys.argv = ["peft-bench run", *expand_globs(argv)]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # the exception itself, instead of an exit from within Hydra
    _failures.clear()
    hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(task)()
    return int(bool(_failures))


def task(cfg: Any) -> None:
    """Hydra's task function: one run. Bad input ends it here, before Hydra prints what it was given; a run that failed
    is remembered for the exit status."""
    from .config.compose import explain, typed
    from .runs.run import run

    for noisy in ("httpx", "datasets", "filelock", "accelerate", "absl"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        outcome = run(typed(cfg))
    except _configuration_errors() as error:  # of a parent
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
    if failed:
        _failures.append(line)


def _run_help() -> str:
    from .config.compose import choices

    def wrapped(group: str) -> str:
        import textwrap

        return textwrap.fill(", ".join(choices(group)), 118, subsequent_indent=" " * 23)

    return RUN_HELP.format(
        experiments=wrapped("experiment"),
        tasks=wrapped("task"),
        backbones=wrapped("backbone"),
        methods=wrapped("method"),
        decodings=wrapped("decoding"),
    )


def _sweep(argv: Sequence[str]) -> int:
    from .config.multirun import main

    return main(argv)


def _plan(argv: Sequence[str]) -> int:
    from .config.multirun import plan_main

    return plan_main(argv)


def _status(argv: Sequence[str]) -> int:
    from .sweeps.status import main

    return main(argv)


def _verify(argv: Sequence[str]) -> int:
    from .runs.verify import main

    return main(argv)


def _report(argv: Sequence[str]) -> int:
    from .report.main import main

    return main(argv) or 0


def _score(argv: Sequence[str]) -> int:
    from .studies.score import main

    return main(argv)


def _errata(argv: Sequence[str]) -> int:
    from .studies.e2e_gap import main

    return main(argv)


def _ensemble(argv: Sequence[str]) -> int:
    from .studies.ensemble import main

    return main(argv)


def _nearest(argv: Sequence[str]) -> int:
    from .studies.nearest import main

    return main(argv)


def _params(argv: Sequence[str]) -> int:
    from .studies.params import main

    return main(argv) or 0


def _latency(arguments: Sequence[str]) -> int:
    from .studies.latency import main as latency

    return latency(arguments)


def _pretrain(argv: Sequence[str]) -> int:
    from .pretraining.command import main

    return main(argv) or 0


def _rehearse(argv: Sequence[str]) -> int:
    from .rehearsal.offline import OFFLINE

    os.environ.update(OFFLINE)  # read by the libraries when they are imported, which the next line does
    from .rehearsal.rehearse import main

    return main(argv) or 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "sweep": _sweep,
    "plan": _plan,
    "status": _status,
    "verify": _verify,
    "score": _score,
    "errata": _errata,
    "ensemble": _ensemble,
    "nearest": _nearest,
    "report": _report,
    "params": _params,
    "latency": _latency,
    "pretrain": _pretrain,
    "rehearse": _rehearse,
}
