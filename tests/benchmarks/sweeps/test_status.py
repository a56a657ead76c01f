"""status: every state from file names."""

from peft_bench.records.files import write_files
from peft_bench.records.leases import claim_runs
from peft_bench.records.made import made_record
from peft_bench.records.store import record_path, write_record
from peft_bench.sweeps.status import main, states_by_experiment

FULL = "houlsby2019/table1_full"


def test_every_state_is_told_from_names(tmp_path, capsys):
    for seed in range(2):
        write_record(tmp_path, made_record(FULL, "rte", seed, 0.7))
    failed = made_record(FULL, "cola", 0, None, failed="diverged")
    write_record(tmp_path, failed)
    record_path(tmp_path, FULL, "0" * 16).write_text("names are enough")
    held = claim_runs(tmp_path, [(FULL, "a" * 16), (FULL, failed["run_id"])])  # begun again
    plan = {"name": "x", "planned": {FULL: ["0" * 16, "a" * 16, "b" * 16]}, "stale": {FULL: ["0" * 16]}}
    write_files({tmp_path / "plans" / "x.json": __import__("json").dumps(plan).encode()})
    assert main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == "experiment done running planned interrupted failed stale set aside".split()
    assert out[1].split() == [FULL, "2", "2", "1", "1"]  # done, running, planned, stale
    held.release()
    assert main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 diverged" in out
    assert f"{FULL} cola seed 0 [{failed['run_id']}]: diverged: the run diverged" in out


def test_bad_plans_and_folders_are_named(tmp_path, capsys):
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "x.json").write_text("{")
    assert main(["--results", str(tmp_path)]) == 1
    assert "is no plan" in capsys.readouterr().err
    assert states_by_experiment(tmp_path)[0] == {}
