"""The command `peft-bench` (also `python -m peft_bench`): one verb per stage. Errors become its exit status."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple


class Verb(NamedTuple):
    """target: module:function, given the words after the verb; returns the exit status. about: what the help says."""

    target: str
    group: str
    about: str


# fmt: off
VERBS = {
    "run": Verb("runs.command:main", "make", """one run, or a Hydra multirun with -m. Overrides follow the verb:
              peft-bench run experiment=lora/table2_roberta_base_lora task=glue/rte
              peft-bench run -m experiment=lora/table2_roberta_base_lora 'task=glob(glue/*)' 'seed=range(5)'
              peft-bench run scale=paper data_dir=~/data backbone_dir=~/models experiment=..."""),
    "sweep": Verb("sweeps.command:main", "make",
                  "a named sweep in local worker processes: peft-bench sweep quickstart"),
    "plan": Verb("sweeps.command:plan", "make",
                 "what a sweep has to do: runs by state, packs, predicted time, memory and disk"),
    "status": Verb("sweeps.status:main", "make",
                   "what is done, running, planned, failed (with its cause) and stale"),
    "verify": Verb("runs.verify:main", "make",
                   "a recorded run again: bit by bit, or within its tolerance on another machine"),
    "list": Verb("report.printed_rows:main", "read",
                 "the printed rows with their experiments: backbone, trained parameters, what has been run"),
    "report": Verb("report.main:main", "read", "the papers' tables beside our runs, and the micro tables"),
    "merge": Verb("report.other_machine:main", "read",
                  "the records of another machine, checked and taken over, and the cells that they change"),
    "params": Verb("studies.params:main", "read",
                   "trainable-parameter counts beside the printed ones, from configurations alone"),
    "tuning": Verb("report.tuning:main", "read",
                   "which learning rate a tuning sweep chose: peft-bench tuning outputs/tuning"),
    "score": Verb("studies.score_files:main", "measure",
        "the five official scores of texts in files: peft-bench score e2e --predictions FILE --references FILE"),
    "latency": Verb("studies.latency:main", "measure",
                    "time of a forward pass, bytes stored and memory in training of the methods beside the backbone"),
    "ensemble": Verb("studies.ensemble:main", "measure",
                     "several prompts on one backbone: their majority vote, in one pass, and what it costs"),
    "nearest": Verb("studies.nearest:main", "measure",
                    "the vocabulary entries nearest to each learned prompt token"),
    "errata": Verb("studies.e2e_gap:main", "measure",
                   "trained runs decoded and scored in other ways: what each is worth (peft-bench errata e2e_gap)"),
    "pretrain": Verb("pretraining.command:main", "prepare",
                     "the micro backbones from the generated language, or a small GPT-2 or T5 from real text"),
    "pins": Verb("backbones.check_pins:main", "prepare",
                 "the commits and hashes of published checkpoints and data; --check asks the hub, for metadata alone"),
    "rehearse": Verb("rehearsal.command:main", "prepare",
                     "every experiment at scale=paper for two steps, offline, on stand-ins"),
}
# fmt: on
NOTES = """\
Scales: micro (default: no network, no account, no GPU), small, paper. A record is one JSON file per run under
results/records/; a run whose record exists is left out. Bad input exits with 2, a failed run with 1."""
INTERRUPTED = (
    "interrupted; finished runs stay, the same command goes on with the others at their last checkpoint (every "
    "checkpoint_seconds), without one at step 0"
)
MULTIRUN = "sweeps.command:multirun"  # of `peft-bench run -m`


def usage() -> str:
    """The text of --help: the verbs by group."""
    lines = ["usage: peft-bench VERB [arguments]      peft-bench VERB --help says more"]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines += ["", group, *(f"  {name:<9} {verb.about}" for name, verb in VERBS.items() if verb.group == group)]
    return "\n".join([*lines, "", NOTES])


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to the verb; returns the exit status: 0, 1 (a run failed) or 2 (bad input)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or file that is not UTF-8 gets a question mark, not an end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    verb, words = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"peft-bench: no verb {verb!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return _function(verb, words)(words)
    except _configuration_errors() as error:  # first: some are ValueErrors or OSErrors, too
        from .config.compose import explain

        sentence = explain(error)
    except BrokenPipeError:  # `| head` has seen enough; what was to be written to files is written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).split())
    except AssertionError as error:
        from .config.compose import explain, reaches_into_null

        if not reaches_into_null(error):
            raise
        sentence = explain(error)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    print(f"peft-bench {verb}: {sentence}", file=sys.stderr)
    return 2


def _function(verb: str, words: list[str]) -> Callable[[list[str]], int]:
    target = VERBS[verb].target
    if verb == "run":
        from .runs.command import is_multirun

        target = MULTIRUN if is_multirun(words) else target
    module, _, name = target.partition(":")
    function: Callable[[list[str]], int] = getattr(import_module(f".{module}", __package__), name)
    return function


def _configuration_errors() -> tuple[type[Exception], ...]:
    """What reading YAML files and overrides can raise; imported only when something was raised."""
    from .config.compose import CONFIGURATION_ERRORS

    return CONFIGURATION_ERRORS
