"""Votes of several prompts in one pass, and batches that mix tasks."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from scipy import stats

from peft_bench.answers.words import WordAnswers
from peft_bench.backbones.loading import load_backbone
from peft_bench.config.compose import compose_job, register
from peft_bench.records.places import RECORDS
from peft_bench.records.store import read_predictions, read_record
from peft_bench.runs.attach import attach_pack
from peft_bench.runs.parents import prepare_all
from peft_bench.runs.run import How, run_pack
from peft_bench.studies.ensemble import main, vote

SHORT = ["experiment=prompt_tuning/table3", "trainer.max_steps=30", "trainer.evaluate_every_steps=30", "threads=1"]


def test_most_votes_win_ties_go_to_the_first_and_no_label_is_no_vote():
    assert vote([[1, 0, -1, -1, 2], [0, 0, 1, -1, 1], [1, 1, -1, -1, 2]], no_vote=-1) == [1, 0, 1, -1, 2]
    assert vote([["b"], ["a"], ["a"], ["b"]]) == ["b"]
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 2, (5, 200))  # an odd number of voters and two labels: no ties, scipy's mode
    assert vote(answers.tolist()) == stats.mode(answers, axis=0).mode.tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("votes")
    register()
    words = [*SHORT, "task=glue/sst2", f"results_dir={results}"]
    run_pack([compose_job([*words, f"seed={seed}"]) for seed in range(3)], How(show_progress=False))
    return results


def test_three_prompts_vote_in_one_pass_as_their_records_would(made: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--results", str(made), "--voters", "3", "--repeats", "1"]) == 0
    assert "vote" in capsys.readouterr().out
    found = json.loads(next((made / "ensembles").rglob("*.json")).read_text())
    records = [read_record(path) for path in sorted((made / RECORDS).rglob("*.json"))]
    assert sorted(found["run_ids"]) == sorted(record["run_id"] for record in records)
    assert found["changed_answers"] == 0
    old = [read_predictions(made, records[0]["experiment"], run_id)["test"] for run_id in found["run_ids"]]
    answers, labels = np.array([one["prediction"] for one in old]), np.array(old[0]["label"])
    by_hand = {
        "average": float((answers == labels).mean()),
        "best": float((answers == labels).mean(1).max()),
        "vote": float((stats.mode(answers, axis=0).mode == labels).mean()),
    }
    if (answers == -1).any():
        del by_hand["vote"]  # scipy counts them
    line = next(line for line in found["scores"] if (line["split"], line["metric"]) == ("test", "accuracy"))
    assert {name: line[name] for name in by_hand} == pytest.approx(by_hand)
    width = 64
    assert found["prompt_bytes"] == 3 * 20 * width * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--voters", "4"], "has 4 finished seeds; make them: peft-bench run -m experiment=prompt_tuning/table3"),
        (["--experiment", "prompt_tuning/none"], "no setting of prompt_tuning/none"),
        (["--voters", "1"], "--voters 1 --repeats 5: expected at least 2 prompts"),
        (["--repeats", "0"], "--voters 5 --repeats 0: expected at least 2 prompts, and 1 timed pass"),
    ],
)
def test_too_few_voters_are_named(made: Path, words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        main(["--results", str(made), *words])


def test_lost_tensors_are_named(made: Path):
    trained = sorted((made / "trained").rglob("*.safetensors"))[0]
    kept = trained.read_bytes()
    trained.unlink()
    try:
        with pytest.raises(
            ValueError, match=r"is not here: the trained tensors .*'seed=range\(3\)' results_dir=outputs/votes"
        ):
            main(["--results", str(made), "--voters", "3"])
    finally:
        trained.write_bytes(kept)


def test_a_batch_that_mixes_tasks_gives_the_answers_of_one_task_at_a_time(tmp_path: Path):
    """T32 of the claims: every example with the prompt of its own task, in one pass."""
    register()
    words = [*SHORT, f"results_dir={tmp_path}"]
    tasks = ("glue/sst2", "glue/mnli", "glue/rte")
    runs = prepare_all([compose_job([*words, f"task={task}", "seed=1"]) for task in tasks])
    first = runs[0].cfg
    backbone = load_backbone(first.backbone, first.scale, None, torch.device("cpu"), first.seed)
    pack = attach_pack(runs, backbone)
    attached, jobs = pack.attached, pack.jobs
    try:
        attached.eval()
        splits = ["validation", "validation_matched", "validation"]
        rows = [np.arange(start, start + n) for start, n in ((0, 24), (5, 7), (50, 13))]
        asked = [(job.scored[s].answers, job.scored[s].split) for job, s in zip(jobs, splits, strict=True)]
        batches = [
            cast(WordAnswers, answers).question_batch(split.questions, r)
            for (answers, split), r in zip(asked, rows, strict=True)
        ]
        mixed = attached.generate(batches, max_new_tokens=6, do_sample=False)
        for k, own in enumerate(batches):
            alone = attached.generate([own if i == k else None for i in range(3)], max_new_tokens=6, do_sample=False)
            together, separate = mixed[k], alone[k]
            assert together is not None
            assert separate is not None
            width = separate.shape[1]  # the others may write longer; what follows its end is padding
            assert together[:, :width].equal(separate)
            assert not together[:, width:].any()
            assert len({tuple(row) for row in separate.tolist()}) > 1
    finally:
        attached.detach()
