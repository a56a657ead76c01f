"""One table of verbs: what the help prints, and what is called."""

import inspect
import io
import sys
from importlib import import_module

import pytest

from peft_bench import cli
from peft_bench.cli import MULTIRUN, VERBS, main, usage


def test_the_help_names_every_verb_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed == usage() + "\n"
    groups = [block.split("\n") for block in printed.split("\n\n")[1:-1]]
    verbs = {lines[0]: [line.split()[0] for line in lines[1:] if line[:3] != "   "] for lines in groups}
    assert verbs == {
        "make": ["run", "sweep", "plan", "status", "verify"],
        "read": ["list", "report", "merge", "params", "tuning"],
        "measure": ["score", "latency", "ensemble", "nearest", "errata"],
        "prepare": ["pretrain", "pins", "rehearse"],
    }
    assert max(map(len, printed.split("\n"))) <= 120


@pytest.mark.parametrize("target", [MULTIRUN, *(verb.target for verb in VERBS.values())])
def test_every_verb_is_a_function_of_the_words_that_returns_the_exit_status(target: str) -> None:
    module, _, name = target.partition(":")
    signature = inspect.signature(getattr(import_module(f"peft_bench.{module}"), name))
    signature.bind(["word"])
    assert signature.return_annotation in (int, "int")


def test_no_verb_and_an_unknown_one_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: peft-bench VERB" in capsys.readouterr().out
    assert main(["runn"]) == 2
    assert "no verb 'runn'; expected one of run, sweep, plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "nosuch"], "peft-bench plan: no sweep 'nosuch'"),
        (["run", "task=nosuch"], "peft-bench run: task=nosuch: no file conf/task/nosuch.yaml"),
        (["run", "-m", "pack=0", "seed=0"], "peft-bench run: pack=0: expected a number of at least 1"),
        (["run", "init_from.seeds=[0]"], "peft-bench run: an override reaches into a part that is null here"),
    ],
)
def test_bad_input_exits_with_2_and_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_a_terminal_that_is_not_utf_8_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(cli, "_function", lambda verb, words: lambda words: print("32.3ᶜ ± 1") or 0)
    assert cli.main(["report"]) == 0
    written.seek(0)
    assert written.read() == "32.3? ? 1\n"


def test_an_interrupted_run_is_not_said_to_go_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was written where no checkpoint was due."""

    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_function", lambda verb, words: interrupted)
    assert cli.main(["run"]) == 130
    assert "at their last checkpoint (every checkpoint_seconds), without one at step 0" in capsys.readouterr().err
