"""(IA)^3 against Hugging Face peft: whole models, logits and gradients."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, get_peft_model

from peft_methods.attach import attach
from peft_methods.ia3 import IA3
from peft_methods.lora import Lora

KEY_VALUE, FFN_OUT = r".*\.attention\.self\.(key|value)", r".*\.layer\.\d+\.output\.dense"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls it
def test_hidden_states_and_gradients_equal_peft(architecture, tiny_backbone, tiny_batch, randomize):
    backbone, batch = tiny_backbone(architecture), tiny_batch(architecture, rows=5, width=11)
    reference = IA3Config(target_modules=f"({KEY_VALUE})|({FFN_OUT})", feedforward_modules=FFN_OUT)
    theirs: Any = get_peft_model(deepcopy(backbone), reference).eval()
    attached = attach(backbone, [IA3()])
    randomize(attached.run(0))
    pairs: dict[str, tuple[Any, Any]] = {}
    for key, module in dict[str, Any](attached.run(0).sites.items()).items():
        path = key.replace("/", ".").removesuffix("_input").replace("layer.", "encoder.layer.")
        path = path.replace(".key", ".attention.self.key").replace(".value", ".attention.self.value")
        vector = theirs.get_submodule(f"base_model.model.{path.replace('.ffn_out', '.output.dense')}").ia3_l["default"]
        pairs[key] = (module.scale, vector)
        with torch.no_grad():
            vector.copy_(module.scale.view_as(vector))
    assert len(pairs) == sum(name.endswith("ia3_l.default") for name, _ in theirs.named_parameters()) == 6

    (ours,) = attached([batch])
    expected = theirs(**batch).last_hidden_state
    real = batch["attention_mask"].bool()  # positions of padding are counted in another way, and seen by nobody
    ours, expected = ours[real], expected[real]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    for hidden in (ours, expected):
        F.mse_loss(hidden, torch.ones_like(hidden)).backward()
    for key, (mine, vector) in pairs.items():
        torch.testing.assert_close(mine.grad, vector.grad.view_as(mine), rtol=0, atol=1e-5, msg=f"{key}: {{}}".format)


def test_scalings_stay_within_their_run(architecture, tiny_backbone, tiny_batch, randomize):
    """(IA)^3 scales the rows of its own run only; LoRA on the same projection in another run sees its own input."""
    batches = [tiny_batch(architecture, rows, 7, rows) for rows in (2, 3)]

    def logits(methods: list[Any], which: list[int]) -> list[torch.Tensor]:
        attached = attach(tiny_backbone(architecture, torch.float64), methods, seeds=which)
        for k, i in enumerate(which):
            randomize(attached.run(k), seed=i)
        with torch.no_grad():
            return attached([batches[i] for i in which])

    methods = [IA3(), Lora(2, 4.0, 0.0, ("ffn_out",), "normal_0.02")]
    packed = logits(methods, [0, 1])
    for i in (0, 1):
        torch.testing.assert_close(packed[i], logits([methods[i]], [i])[0], rtol=0, atol=1e-12)
