"""What learned prompt tokens are near to: against scikit-learn's cosines and prompts made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from peft_bench.records.store import record_path
from peft_bench.report.pages.nearest import nearest_page, settings_table
from peft_bench.studies.nearest import NEIGHBORS, RANDOM, beside, main, measure


def test_neighbors_and_cohesion_are_scikit_learns_cosines():
    torch.manual_seed(3)
    vocabulary, rows = torch.randn(60, 16), torch.randn(7, 16) * 40  # a prompt's norm is far from the vocabulary's
    line, near = measure(rows, vocabulary, [])
    cosines = cosine_similarity(rows.numpy(), vocabulary.numpy())
    order = np.argsort(-cosines, axis=1)[:, :NEIGHBORS]
    assert near.indices.tolist() == order.tolist()
    assert near.values.numpy() == pytest.approx(np.take_along_axis(cosines, order, 1), abs=1e-5)
    among = [cosine_similarity(vocabulary[ids].numpy())[~np.eye(NEIGHBORS, dtype=bool)].mean() for ids in order]
    assert line["cohesion"] == pytest.approx(np.mean(among), abs=1e-5)
    assert line["unique"] == len({*order[:, 0].tolist()}) / 7
    assert line["label_rows"] is None
    assert line["other_rows"] is None
    assert RANDOM * len(rows) == 140
    assert abs(line["random_cohesion"] - line["cohesion"]) < 0.2


def test_labels_that_stay_and_labels_that_left():
    vocabulary = torch.eye(12)
    rows = torch.stack([vocabulary[3], vocabulary[9], vocabulary[4] * 7, vocabulary[0] + vocabulary[1]])
    table = torch.cat([vocabulary, -vocabulary])  # nothing else is near
    line, _ = measure(rows, table, [[3], [5]])
    # Of an orthogonal vocabulary, ties fill up the five nearest: only strict neighbors tell.
    assert line["unique"] == 1.0
    spread = vocabulary + 0.05 * torch.randn(12, 12, generator=torch.Generator().manual_seed(1))
    own, _ = measure(spread[[3, 5, 8]], spread, [[3], [5]])
    assert own["label_rows"] == 1.0
    gone, near = measure(-spread[[3, 5]], spread, [[3], [5]])
    assert gone["label_rows"] == 0.0
    assert gone["other_rows"] is None
    assert not {3} & {*near.indices[0].tolist()}
    assert measure(spread[[2, 2, 2, 7]], spread, [])[0]["unique"] == 0.5


def test_what_was_measured_before_stays_while_its_record_does(tmp_path):
    def lines(**values: float) -> pd.DataFrame:
        return pd.DataFrame({"experiment": "a", "stands_for": "b", "run_id": [*values], "unique": [*values.values()]})

    for run in ("1", "2"):
        path = record_path(tmp_path, "a", run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    found = beside(lines(**{"1": 0.5}), lines(**{"1": 0.1, "2": 0.2, "3": 0.3}), tmp_path)
    assert found[["run_id", "unique"]].to_numpy().tolist() == [["1", 0.5], ["2", 0.2]]
    assert beside(lines(**{"1": 0.5}), None, tmp_path)["run_id"].tolist() == ["1"]


def test_the_page_says_what_a_setting_holds():
    setting = {"experiment": "prompt_tuning/length", "stands_for": "t5_large", "init": "class_labels", "scale": "micro"}
    setting |= {"target_prefix": "", "optimizer": "adafactor", "task": "sst2"}
    measured = {"learning_rate": 0.3, "label_rows": 1.0, "other_rows": 0.25, "cohesion": 0.3, "random_cohesion": 0.1}
    runs = [setting | measured | {"length": n, "unique": u} for n, u in ((20, 1.0), (20, 0.9), (100, 0.5), (100, 0.7))]
    runs[0]["experiment"] = runs[1]["experiment"] = "prompt_tuning/size"  # which has the default length
    runs[1]["label_rows"] = 0.5
    other = [runs[0] | {"target_prefix": "<extra_id_0>", "experiment": "prompt_tuning/pretraining"}]
    other += [runs[0] | {"learning_rate": 3.0, "experiment": "prompt_tuning/pretraining"}]
    table = settings_table(pd.DataFrame(runs + other))
    assert table.loc[table["experiment"] == "prompt_tuning/pretraining", "n"].tolist() == [1, 1]
    assert table.loc[table["experiment"] == "prompt_tuning/size", ["n", "t33", "t34"]].to_numpy().tolist() == [
        [2, 0.5, pytest.approx(0.2)]
    ]
    text = nearest_page(table, pd.DataFrame({"experiment": []}), "micro")
    assert "T35, t5_large: 0.60 with 100 tokens, 0.95 with 20: smaller." in text


def test_without_tensors_it_says_where_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"no clone has them\. Run this there, or make runs first"):
        main(["--results", str(tmp_path)])
    for pattern in ("", "/tmp"):
        with pytest.raises(ValueError, match="expected a name or pattern such as prompt_tuning/"):
            main(["--results", str(tmp_path), "--experiment", pattern])
