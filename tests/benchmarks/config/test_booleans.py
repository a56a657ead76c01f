"""Words that YAML reads as booleans are refused where a text is expected, with their file and key."""

from pathlib import Path

import pytest

from peft_bench.config import booleans
from peft_bench.config.booleans import check_booleans
from peft_bench.config.compose import compose_run

TASK = "text: {source: '{sentence}', labels: [%s]}\npublic_test: true\n"
CASES = [
    ("task/mine.yaml", TASK % "no, yes", "text.labels"), ("task/mine.yaml", TASK % "'no', \"yes\"", ""),
    ("task/mine.yaml", TASK % "true, false", "text.labels"), ("task/mine.yaml", "prompt_words: [on]", "prompt_words"),
    ("task/mine.yaml", "text: {source: s, labels: [a], replace: {a: off}}", "text.replace"),
    ("task/mine.yaml", "cut_by: yes", "cut_by"), ("task/mine.yaml", "public_test: yes", ""),
    ("decoding/greedy.yaml", "banned: [no]", "banned"), ("decoding/greedy.yaml", "clean_up: no", ""),
    ("experiment/exp.yaml", f"task: {{{TASK.splitlines()[0] % 'no'}}}", "task.text.labels"),
    ("recipe/paper/exp/mine.yaml", "trainer: {schedule: off}", "trainer.schedule"),
    ("at/micro/exp.yaml", "task: {micro_text: {source: s, labels: [Off]}}", "task.micro_text.labels"),
    ("at/micro/task/mine.yaml", "trainer: {backbone_dropout: 0.0, group_by_length: yes}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content", "key"), CASES)
def test_a_boolean_in_place_of_a_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, key: str
) -> None:
    cfg = compose_run(["decoding=greedy"])
    cfg.experiment = "exp"
    monkeypatch.setattr(booleans, "CONF_DIR", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    if not key:
        check_booleans(cfg, ["mine"])
        return
    with pytest.raises(ValueError, match=rf"conf/{file}: {key} is a text, and YAML .*: put the word in quotes"):
        check_booleans(cfg, ["mine"])
