"""Which runs train together, and why the others go alone."""

import dataclasses

import pytest
import torch

from peft_bench.config.compose import build_method, compose_run
from peft_bench.records.store import read_record, record_path
from peft_bench.runs.run import run
from peft_bench.sweeps.packs import footprint, memory_bytes, pack_runs
from peft_methods.attach import attach
from tests.benchmarks.sweeps.carrying import cells
from tests.conftest import ENCODER_DECODERS


class TestPacks:
    def test_follow_from_the_runs_alone(self, tmp_path):
        cfgs = cells(tmp_path, "method=lora", "task=glue/sst2,glue/cola", "seed=range(6)")
        packs = [pack.runs for pack in pack_runs(cfgs)]
        assert packs == [(0, 1, 2, 3), (4, 5), (6, 7, 8, 9), (10, 11)]  # CPU: 4 at most
        assert [pack.runs for pack in pack_runs(cfgs, 100)] == [tuple(range(6)), tuple(range(6, 12))]
        assert [len(pack.runs) for pack in pack_runs(cfgs, 1)] == [1] * 12

    def test_what_cannot_share_one_goes_alone_and_says_why(self, tmp_path):
        words = ["task=glue/sst2", "seed=0,1"]
        cfgs = [c for m in ("full", "lora", "majority") for c in cells(tmp_path, f"method={m}", *words)]
        packs = pack_runs(cfgs)
        assert [pack.runs for pack in packs] == [(0,), (1,), (2, 3), (4,), (5,)]
        assert "trains the backbone in place" in packs[0].why
        assert "control" in packs[4].why

    def test_methods_mix_where_steps_and_batches_agree(self, tmp_path):
        cfgs = [c for m in ("lora", "bitfit") for c in cells(tmp_path, f"method={m}", "task=glue/sst2")]
        assert [pack.runs for pack in pack_runs(cfgs)] == [(0, 1)]
        other = dataclasses.replace(cfgs[1], trainer=dataclasses.replace(cfgs[1].trainer, batch_size=8))
        assert [pack.runs for pack in pack_runs([cfgs[0], other])] == [(0,), (1,)]

    def test_memory_bounds_them(self, tmp_path, monkeypatch):
        cfgs = cells(tmp_path, "method=lora", "task=glue/sst2", "seed=range(4)")
        one, three = memory_bytes(cfgs[0]), memory_bytes(cfgs[0], 3)
        memory = type("Memory", (), {"total": int(three / 0.6) + 1000})
        monkeypatch.setattr("peft_bench.sweeps.packs.psutil.virtual_memory", lambda: memory)
        assert [pack.runs for pack in pack_runs(cfgs)] == [(0, 1, 2), (3,)]
        assert [len(pack.runs) for pack in pack_runs(cfgs, workers=2)] == [1] * 4
        assert one < three
        assert footprint(cfgs[0]).trained == run_counts(cfgs[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta_v2", "gpt2", "t5", "bart", "llama"])
def test_attention_scores_are_estimated_as_they_are_kept(architecture, precision, tiny_backbone, tmp_path, monkeypatch):
    """What grows with the square of the length, of one more layer: between what autograd keeps and a half above."""
    cfg = compose_run(["task=e2e", "method=lora", "trainer.batch_size=4", f"trainer.precision={precision}"])

    def backbone(layers, dropout):
        return tiny_backbone(architecture, dropout=dropout, num_hidden_layers=layers, max_position_embeddings=200)

    def kept(layers, tokens, dropout):
        attached = attach(backbone(layers, dropout), [build_method(cfg.method)]).train()
        ids = torch.full((4, tokens), 5)
        both = {"decoder_input_ids": ids} if architecture in ENCODER_DECODERS else {}
        sizes = {}

        def keep(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            attached([{"input_ids": ids, "attention_mask": torch.ones_like(ids), **both}])
        return sum(sizes.values())

    def estimated(layers, tokens, dropout):
        folder = tmp_path / f"{layers}.{dropout}"
        monkeypatch.setattr("peft_bench.sweeps.packs.folder_of", lambda *_: folder)
        monkeypatch.setattr("peft_bench.sweeps.packs.empty_backbone", lambda *_: (backbone(layers, dropout), None))
        return memory_bytes(dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, max_length=tokens)))

    def square_part(size, dropout):
        short, middle, long = (size(3, n, dropout) - size(2, n, dropout) for n in (32, 96, 160))
        return short - 2 * middle + long

    exact = square_part(kept, 0.1)
    assert exact < square_part(estimated, 0.1) < 1.5 * exact
    if architecture == "deberta_v2":  # it computes its attention itself, dropout or not
        assert exact / 2 < square_part(kept, 0.0) < square_part(estimated, 0.0)
    else:
        assert square_part(estimated, 0.0) == 0
        assert square_part(kept, 0.0) < 0.1 * exact  # T5's position bias


def run_counts(cfg):
    """Trained parameters as a record of the run counts them."""
    record = read_record(record_path(cfg.results_dir, cfg.experiment, run(cfg).run_id))
    return record["params"]["method"] + record["params"]["head"]
