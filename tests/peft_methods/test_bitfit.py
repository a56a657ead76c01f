"""BitFit against direct training of the biases themselves."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from peft_methods.attach import attach
from peft_methods.bitfit import BitFit
from peft_methods.heads import ClassificationHead
from peft_methods.sites import Sites

STEPS, LEARNING_RATE = 20, 1e-3


def subset(name: str) -> bool:
    """The query's bias and the first feed-forward projection's (section 3)."""
    return name.endswith(("query.bias", "intermediate.dense.bias"))


@pytest.mark.parametrize("biases", ["all", "query_ffn_in"])
def test_twenty_steps_equal_training_the_biases(architecture, biases, tiny_backbone, tiny_batch):
    """Offsets and the biases themselves get the same gradients, hence the same AdamW steps (biases do not decay)."""
    backbone = tiny_backbone(architecture)
    theirs, start = deepcopy(backbone), deepcopy(backbone)
    attached = attach(backbone, [BitFit(biases)], [lambda: ClassificationHead(backbone.config, 3)])
    their_head: Any = deepcopy(attached.run(0).head)
    theirs.requires_grad_(False)
    trained = {n: p for n, p in theirs.named_parameters() if n.endswith("bias") and (biases == "all" or subset(n))}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    ours_step = torch.optim.AdamW(attached.run(0).trained().values(), lr=LEARNING_RATE, weight_decay=0.0)
    their_step = torch.optim.AdamW([*trained.values(), *their_head.parameters()], lr=LEARNING_RATE, weight_decay=0.0)
    labels = torch.arange(6) % 3
    for step in range(STEPS):
        batch = tiny_batch(architecture, rows=6, width=10, seed=step)
        (logits,) = attached([batch])
        outputs = theirs(**batch)
        expected = their_head(outputs.last_hidden_state, outputs.pooler_output)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5, msg=f"step {step}: {{}}".format)
        for optimizer, loss in (
            (ours_step, F.cross_entropy(logits, labels)),
            (their_step, F.cross_entropy(expected, labels)),
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    table = Sites(backbone)
    offsets = {f"{table.by_name[key.replace('/', '.')].path}.bias": m.bias for key, m in attached.run(0).sites.items()}
    assert set(offsets) == set(trained)
    for name, offset in offsets.items():
        if name.endswith("key.bias"):
            continue  # no gradient but rounding, which AdamW blows up to a step; no logit depends on it
        frozen = start.get_parameter(name)
        torch.testing.assert_close(frozen + offset, trained[name], rtol=0, atol=1e-5, msg=f"{name}: {{}}".format)
        assert (trained[name] - frozen).abs().max() > 5 * LEARNING_RATE, f"{name} hardly moved: too little is compared"


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("bert", {}), ("roberta", {}), pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama")],
)
def test_every_bias_of_the_backbone_is_covered(architecture, changes, tiny_backbone):
    """Llama's norms have none, its linear maps where the configuration says so."""
    backbone = tiny_backbone(architecture, **changes)
    attached = attach(backbone, [BitFit("all")])
    table = Sites(backbone)
    covered = {f"{table.by_name[key.replace('/', '.')].path}.bias" for key in attached.run(0).sites}
    assert covered == {name for name, _ in table.base.named_parameters() if name.endswith("bias")}
