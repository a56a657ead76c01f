"""Full fine-tuning and the head alone, against the same training written without this package."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from peft_methods.attach import attach
from peft_methods.baselines import Full, HeadOnly
from peft_methods.heads import ClassificationHead


@pytest.mark.parametrize("method", [Full(), HeadOnly()], ids=["full", "head_only"])
def test_ten_steps_equal_plain_fine_tuning(architecture, method, tiny_backbone, tiny_batch):
    backbone = tiny_backbone(architecture, torch.float64)
    theirs = deepcopy(backbone)
    attached = attach(backbone, [method], [lambda: ClassificationHead(backbone.config, 3)])
    their_head: Any = deepcopy(attached.run(0).head)
    theirs.requires_grad_(isinstance(method, Full))
    their_parameters = [*theirs.parameters(), *their_head.parameters()]
    # SGD with momentum: AdamW would turn the key biases' rounding noise into steps.
    ours_step = torch.optim.SGD(attached.run(0).trained().values(), lr=0.05, momentum=0.9)
    their_step = torch.optim.SGD([p for p in their_parameters if p.requires_grad], lr=0.05, momentum=0.9)
    labels = torch.arange(4) % 3
    for step in range(10):
        batch = tiny_batch(architecture, rows=4, width=8, seed=step)
        (logits,) = attached([batch])
        outputs = theirs(**batch)
        expected = their_head(outputs.last_hidden_state, outputs.pooler_output)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        for optimizer, output in ((ours_step, logits), (their_step, expected)):
            optimizer.zero_grad()
            F.cross_entropy(output, labels).backward()
            optimizer.step()
    for ours, their in zip(backbone.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, their, rtol=0, atol=1e-10)


def test_full_trains_what_the_backbone_names(architecture, tiny_backbone):
    backbone = tiny_backbone(architecture)
    attached = attach(backbone, [Full()])
    assert set(attached.run(0).trained()) == {f"backbone.{name}" for name, _ in backbone.named_parameters()}
    assert all(attached.run(0).trained()[f"backbone.{n}"] is p for n, p in backbone.named_parameters())
