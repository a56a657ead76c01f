"""The task layer against Hugging Face's own classification models."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    DebertaV2ForSequenceClassification,
    RobertaForSequenceClassification,
)

from peft_methods.attach import attach
from peft_methods.baselines import HeadOnly
from peft_methods.heads import ClassificationHead


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_logits_equal_hugging_face(architecture, labels, tiny_backbone, tiny_batch, randomize):
    backbone, batch = tiny_backbone(architecture), tiny_batch(architecture)
    kind = BertForSequenceClassification if architecture == "bert" else RobertaForSequenceClassification
    config = deepcopy(backbone.config)
    config.num_labels = labels
    theirs = kind(config)
    setattr(theirs, architecture, deepcopy(backbone))
    randomize(theirs.classifier)
    attached = attach(backbone, [HeadOnly()], [lambda: ClassificationHead(backbone.config, labels)])
    head: Any = attached.run(0).head
    weights = theirs.classifier.state_dict()
    head.load_state_dict(weights if architecture == "roberta" else {f"out_proj.{n}": w for n, w in weights.items()})
    (logits,) = attached([batch])
    assert logits.shape == (3, labels)
    torch.testing.assert_close(logits, theirs.eval()(**batch).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("labels", [1, 3])
def test_deberta_logits_and_gradients_equal_hugging_face(labels, tiny_backbone, tiny_batch, randomize):
    """Its head's dense layer is the pooler there, with GELU."""
    backbone, batch = tiny_backbone("deberta_v2", torch.float64), tiny_batch("deberta_v2")
    config = deepcopy(backbone.config)
    config.num_labels = labels
    theirs: Any = DebertaV2ForSequenceClassification(config).double().eval()
    theirs.deberta = deepcopy(backbone)
    randomize(theirs.pooler)
    randomize(theirs.classifier, seed=1)
    attached = attach(backbone, [HeadOnly()], [lambda: ClassificationHead(backbone.config, labels)])
    head: Any = attached.run(0).head
    pairs = [(head.dense, theirs.pooler.dense), (head.out_proj, theirs.classifier)]
    for ours, their in pairs:
        ours.load_state_dict(their.state_dict())
    (logits,), expected = attached([batch]), theirs(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for ours, their in pairs:
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, their.get_parameter(name).grad, rtol=1e-9, atol=1e-9)


def test_start_is_small_and_unbiased(architecture, tiny_config):
    head = ClassificationHead(tiny_config(architecture, hidden_size=256), 200)
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("classifier_dropout", [None, 0.0, 0.4])
def test_dropout_rate_is_the_classifiers_or_else_the_hidden_one(architecture, classifier_dropout, tiny_config):
    head = ClassificationHead(tiny_config(architecture, dropout=0.2, classifier_dropout=classifier_dropout), 2)
    expected = 0.2 if classifier_dropout is None else classifier_dropout
    assert head.dropout.p == expected
    assert head.inner_dropout is None or head.inner_dropout.p == expected


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta_v2"])
def test_a_rate_of_its_own_is_that_before_the_output_layer_alone(architecture, tiny_config):
    """DeBERTa's cls_dropout, which LoRA's scripts set by task; nothing stands between it and the output layer."""
    config = tiny_config(architecture)
    plain, changed = ClassificationHead(config, 2), ClassificationHead(config, 2, 0.37)
    last = "dropout" if architecture == "bert" else "inner_dropout"
    rates = {name: module.p for name, module in plain.named_modules() if name.endswith("dropout")}
    assert {name: module.p for name, module in changed.named_modules() if name.endswith("dropout")} == rates | {
        last: 0.37
    }


def test_a_bert_head_needs_the_pooler(tiny_config):
    head = ClassificationHead(tiny_config("bert"), 2)
    with pytest.raises(ValueError, match="load the backbone with its pooler"):
        head(torch.zeros(1, 4, 16), None)
