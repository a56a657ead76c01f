"""`peft-bench errata e2e_gap`: a trained run decoded and scored in every combination, once."""

import pandas as pd
import pytest

from peft_bench.config.compose import compose_run
from peft_bench.rehearsal.standin_data import make_task
from peft_bench.rehearsal.standins import make_backbone
from peft_bench.report.pages.e2e_gap import read_gap
from peft_bench.runs.run import How, run
from peft_bench.studies import e2e_gap

LEVELS = ["--levels", "beams=[1,2]", "--levels", "length_penalty=[1.0]", "--levels", "ends=[[]]"]


def test_a_run_is_decoded_once_and_scored_in_every_way(tmp_path, monkeypatch, capsys):
    folders = [
        "backbone.other_shape=true",
        f"backbone_dir={tmp_path / 'b'}",
        f"data_dir={tmp_path / 'd'}",
        f"results_dir={tmp_path / 'r'}",
    ]
    short = ["trainer.max_steps=2", "decoding.beams=2", "decoding.max_new_tokens=4", "decoding.ends=[]"]
    cfg = compose_run(["experiment=errata/e2e_gap", "scale=small", *folders, *short])
    make_backbone(tmp_path / "b", cfg.backbone)
    make_task(tmp_path / "d", cfg.task)
    assert run(cfg, How(show_progress=False)).status == "done"
    places = [
        "--results",
        str(tmp_path / "r"),
        "--data-dir",
        str(tmp_path / "d"),
        "--backbone-dir",
        str(tmp_path / "b"),
    ]
    assert e2e_gap.main(["e2e_gap", *places, *LEVELS]) == 0
    table = read_gap(tmp_path / "r")
    assert table is not None
    # beams, length_counts, no_repeat_ngram; clean_up, references, metric
    assert len(table) == 2 * 2 * 2 * 2 * 2 * 2
    factors = ["beams", "length_counts", "no_repeat_ngram", "clean_up", "references", "metric"]
    assert (table[factors].nunique() == 2).all()
    assert not table.duplicated(factors).any()
    assert "| references " in capsys.readouterr().out

    def again(*args):
        raise AssertionError("decoded before")

    monkeypatch.setattr(e2e_gap, "_decode", again)
    assert e2e_gap.main(["e2e_gap", *places, *LEVELS]) == 0
    repeated = read_gap(tmp_path / "r")
    assert repeated is not None
    pd.testing.assert_frame_equal(repeated, table)
    next((tmp_path / "r" / "trained").rglob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="the trained tensors stay where the run was made"):
        e2e_gap.main(["e2e_gap", *places, "--levels", "beams=[3]"])
