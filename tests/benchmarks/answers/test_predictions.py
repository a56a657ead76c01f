"""What predictions of each kind are scored, flagged and written as."""

import math

import numpy as np
import pytest

from peft_bench.answers.predictions import Labels, Texts, Words
from peft_bench.config.compose import compose_run
from peft_bench.metrics.scores import ILLEGAL
from peft_bench.tasks.examples import Gold

LABELS = np.array([1, 1, 0, 0])


def test_labels_stand_beside_the_gold_ones():
    task = compose_run(["task=glue/rte"]).task
    predictions = Labels(np.array([1, 0, 0, 0]))
    assert predictions.scores(task, Gold(LABELS)) == {"accuracy": (0.75, 4)}
    columns = predictions.columns(Gold(LABELS))
    assert [*columns] == ["prediction", "label"]
    assert columns["label"] is LABELS
    constant = Labels(np.ones(4))
    assert constant.flags(task, selects=True) == ["one_class_predictions"]
    assert constant.flags(task, selects=False) == predictions.flags(task, selects=True) == []


def test_illegal_words_are_counted_and_flagged_on_every_split():
    task = compose_run(["task=glue/rte"]).task
    predictions = Words(np.array([1, ILLEGAL, ILLEGAL, 0]))
    assert predictions.scores(task, Gold(LABELS)) == {"accuracy": (0.5, 4), "illegal": (0.5, 4)}
    assert predictions.flags(task, selects=False) == ["illegal_answers"]
    assert Words(np.full(4, ILLEGAL)).flags(task, selects=True) == ["one_class_predictions", "illegal_answers"]


def test_texts_have_a_loss_of_their_pairs_and_scores_of_their_inputs():
    task = compose_run(["task=squad", "backbone=t5_v1_1_small"]).task
    gold = Gold(np.array([0, 0, 1]), references=[["Ada", "Bob"], ["rain"]])
    predictions = Texts(["Ada", "snow"], [True, False], 1.5)
    scores = predictions.scores(task, gold)
    assert [*scores] == [*task.metrics, "cut_off"]
    assert task.metrics[0] == "loss"
    assert (scores["loss"], scores["squad_em"], scores["cut_off"]) == ((1.5, 3), (0.5, 2), (0.5, 2))
    assert predictions.flags(task, selects=True) == ["outputs_cut_off"]
    assert predictions.flags(task, selects=False) == []
    assert Texts(["x", "x"], [True, True], math.nan).flags(task, selects=True) == ["one_text_throughout"]
    assert predictions.columns(gold) == {"prediction": ["Ada", "snow"], "ended": [True, False]}
    with pytest.raises(ValueError, match="2 outputs for 1"):
        predictions.scores(task, Gold(np.zeros(1), references=[["Ada"]]))
