"""Every metric of a task at once, and answers that are no label."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from peft_bench.config.compose import compose_run
from peft_bench.metrics.scores import ILLEGAL, has_illegal, label_scores


def test_macro_f1_counts_illegal_answers_as_missed():
    task = compose_run(["task=super_glue/cb", "scale=small"]).task
    labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, ILLEGAL, 1, 0, 2])
    found = label_scores(task, predictions, labels)
    f1 = [2 / (2 + 1 + 1), 2 / (2 + 0 + 1), 1.0]  # 2 TP / (2 TP + FP + FN) of each class
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predictions, labels=range(3), average="macro"))
    assert found["mean"] == pytest.approx((found["macro_f1"] + 0.6) / 2)


def test_an_illegal_answer_is_a_wrong_one():
    task = compose_run(["task=glue/mrpc"]).task
    labels = np.array([1, 1, 0, 0])
    found = label_scores(task, np.array([1, ILLEGAL, ILLEGAL, 0]), labels)
    assert found["accuracy"] == 0.5
    assert found["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))  # one hit, one miss, one false alarm
    assert has_illegal(task, np.array([1, ILLEGAL]))
    assert not has_illegal(task, labels)
