"""The command `peft-bench` (also `python -m peft_bench`): one verb per stage."""

import os
import sys
from collections.abc import Callable, Sequence

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
    """What reading YAML files and overrides can raise; imported only when something was raised."""
    from .config.compose import CONFIGURATION_ERRORS

    return CONFIGURATION_ERRORS


def _run(argv: Sequence[str]) -> int:
    from .runs.command import is_multirun, main

    return _run_many(argv) if is_multirun(argv) else main(argv)


def _run_many(argv: Sequence[str]) -> int:
    from .config.multirun import main

    return main([word for word in argv if word not in ("-m", "--multirun")], "run -m")


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
