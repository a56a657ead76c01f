"""What `peft-bench latency` compares is what it says; no figure of a clock is tested."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from peft_bench.config.compose import register
from peft_bench.studies import latency, memory
from peft_bench.studies.candidates import CANDIDATES, make_method, random_backbone, some_batch
from peft_bench.studies.latency import Timing, median_interval, prepared
from peft_methods.attach import attach
from peft_methods.state import save_trained


@pytest.fixture(scope="module")
def backbone():
    register()
    return random_backbone("small", torch.device("cpu"))


@pytest.mark.parametrize("n", [6, 15, 25, 100])
def test_the_interval_holds_the_median_with_95_percent(n: int):
    """Order statistics r and s hold it with probability P(r <= Binomial(n, 1/2) < s); one step narrower is too few."""
    low, high = median_interval(np.random.default_rng(0).permutation(n).astype(float))
    assert low + high == n - 1
    r, s = int(low) + 1, int(high) + 1

    def holds(r: int, s: int) -> float:
        return float(stats.binom.cdf(s - 1, n, 0.5) - stats.binom.cdf(r - 1, n, 0.5))

    assert holds(r, s) >= 0.95 > holds(r + 1, s - 1)


def test_every_candidate_is_timed_against_the_backbone(backbone):
    timings = latency.measure(backbone, 1, 8, 6)
    assert list(timings) == list(CANDIDATES)
    assert timings["backbone"].ratio == timings["backbone"].low == timings["backbone"].high == 1
    assert all(t.low <= t.ratio <= t.high and t.milliseconds > 0 for t in timings.values())


def test_merged_is_the_same_model_and_nothing_stays_behind(backbone):
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    batch = some_batch(backbone, 2, 8)
    attached = attach(backbone, [make_method("LoRA", 256)], [None])
    with torch.no_grad():
        for parameter in attached.run(0).trained().values():
            parameter.normal_(std=0.1)
        apart = latency._logits(attached, batch)
        attached.merge()
        torch.testing.assert_close(latency._logits(attached, batch), apart, rtol=1e-4, atol=1e-4)
    attached.detach()
    for name in CANDIDATES:
        with prepared(name, backbone) as forward, torch.no_grad():
            assert forward(batch).shape == (2, 8, 1000)
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())


def test_the_stored_bytes_are_those_of_the_file(backbone, tmp_path: Path):
    _, found = memory.storage_table(backbone)
    assert list(found) == memory.METHODS
    for name in ("LoRA", "prefix", "prompt", "Adapter^L"):
        attached = attach(backbone, [make_method(name, 256)], [None])
        save_trained(attached, tmp_path / "x.safetensors")
        attached.detach()
        assert sum(tensor.nbytes for tensor in load_file(tmp_path / "x.safetensors").values()) == found[name]
    assert found["prefix"] == 2 * 4 * 5 * 256 * 4  # keys and values of four layers, without the MLP
    assert found["full"] == sum(p.nbytes for p in backbone.parameters())


def test_the_papers_figures_stand_only_beside_their_shapes():
    for batch_size, length in ((32, 512), (16, 256), (1, 128)):
        cells = latency.printed("gpt2_medium", batch_size, length)
        assert set(cells) == {"LoRA merged", "Adapter^L", "Adapter^H"}
    assert latency.printed("gpt2_medium", 32, 512)["Adapter^H"] == "1492.2 ms (+3%)"
    assert latency.printed("gpt2_medium", 32, 128) == latency.printed("small", 32, 512) == {}
    timing = Timing(1.0, 1.0, 1.0, 1.0)
    assert "paper" not in latency.latency_table({"LoRA": timing}, {})


BAD = [
    (["--backbone", "gpt3"], "--backbone gpt3: expected one of small, gpt2"),
    (["--batch", "0"], "expected at least 1 each"),
    (["--repeats", "5"], "expected at least 6"),
    (["--length", "1000"], "1024 positions hold 924"),
    (["--device", "tpu"], "expected cpu, or cuda"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_sentence(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        latency.main(words)


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(memory, "METHODS", ["full", "LoRA"])  # a process each
    words = ["--batch", "1", "--length", "8", "--repeats", "6", "--output", str(tmp_path / "x.json")]
    assert latency.main(words) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert set(result["latency"]) == set(CANDIDATES)
    assert set(result["training_memory"]) in ({"full", "LoRA"}, set())
    assert all(own > 0 for own in result["training_memory"].values())
    text = capsys.readouterr().out
    assert "95% interval" in text
    assert "backbone + 9" in text
