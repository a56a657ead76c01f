"""What the package says about itself: its snippet runs, its map names every file."""

import re
from pathlib import Path
from typing import Any

import torch

import peft_methods
from peft_methods.attach import attached_to

ROOT = Path(__file__).parents[2]
DOCSTRING = str(peft_methods.__doc__)
(SNIPPET,) = re.findall(r"```python\n(.*?)```", DOCSTRING, flags=re.DOTALL)


def test_the_snippet_attaches_trains_saves_loads_and_merges(tiny_backbone, tiny_batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, batch = tiny_backbone("bert"), tiny_batch("bert")
    names: dict[str, Any] = {"model": model, "batch": batch, "loss": lambda output: output.square().mean()}
    exec(compile(SNIPPET, "peft_methods/__init__.py", "exec"), names)
    trained, served = names["attached"].run(0).trained(), names["served"]
    assert attached_to(model) is names["served"]
    assert all(p.any() for name, p in trained.items() if name.endswith(".B")), "nothing has trained"
    assert all(torch.equal(p, trained[name]) for name, p in served.run(0).trained().items())
    merged = served([batch])[0]
    served.unmerge()
    torch.testing.assert_close(served([batch])[0], merged)
    assert not torch.equal(served.detach()(**batch).last_hidden_state, merged)


def test_readme_has_the_same_snippet():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert all(block == SNIPPET for block in blocks if "peft_methods" in block)


def test_the_map_names_every_file_once():
    """But for methods, which register themselves in conf/method/: theirs may stand there."""
    lines = DOCSTRING.rpartition("```")[2].strip().splitlines()
    named = [name for line in lines for name in re.split(r"\s{2,}", line)[0].split(", ")]
    files = {
        path.stem
        for path in (ROOT / "peft_methods").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    targets = [path.read_text("utf-8").partition("_target_: ")[2] for path in (ROOT / "conf/method").glob("*.yaml")]
    methods = {target.split(".")[1] for target in targets if target.startswith("peft_methods.")}
    assert len(named) == len({*named})
    assert files - {"__init__"} - methods <= {*named} <= files
