"""Prompts on every architecture: a plain transformers model that is given the rows and the text as `inputs_embeds`.

prompt           [p_1 .. p_P, e(x_1) .. e(x_n)]
embedding-only   p = W_out tanh(W_in E + b_in) + b_out
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_methods.attach import attach
from peft_methods.heads import ClassificationHead
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from tests.conftest import ALL_ARCHITECTURES, DECODERS, ENCODER_DECODERS
from tests.peft_methods.oracle import Leaves, check, check_moved

LENGTH = 4


def prompt(mlp_hidden: int | None, length: int = LENGTH) -> Prompt:
    return Prompt(length, mlp_hidden, "normal", (), 0, ())


def rows_of(leaves: Leaves) -> Tensor:
    own = {name.removeprefix("sites.embeddings."): leaf for name, leaf in leaves.items()}
    if "rows" in own:
        return own["rows"]
    inside = torch.tanh(own["mlp.embedding"] @ own["mlp.inner.weight"].T + own["mlp.inner.bias"])
    return inside @ own["mlp.outer.weight"].T + own["mlp.outer.bias"]


def behind_rows(model: Any, batch: dict[str, Tensor], rows: Tensor) -> Any:
    """What the plain model gives for the rows and the text."""
    count = len(batch["input_ids"])
    embedded = torch.cat([rows.expand(count, -1, -1), model.get_input_embeddings()(batch["input_ids"])], dim=1)
    inputs = {"inputs_embeds": embedded, "attention_mask": F.pad(batch["attention_mask"], (len(rows), 0), value=1)}
    if "token_type_ids" in batch:
        inputs["token_type_ids"] = F.pad(batch["token_type_ids"], (len(rows), 0))
    if "decoder_input_ids" in batch:
        inputs["decoder_input_ids"] = batch["decoder_input_ids"]
    return model(**inputs)


@pytest.mark.parametrize("mlp_hidden", [None, 6], ids=["prompt", "embedding_only"])
@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_equals_the_rows_as_embeddings(architecture, mlp_hidden, tiny_backbone, tiny_batch, randomize):
    batch, backbone = tiny_batch(architecture, rows=4, width=9), tiny_backbone(architecture, torch.float64)
    attached = attach(tiny_backbone(architecture, torch.float64), [prompt(mlp_hidden)], seeds=[2])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, backbone)

    def oracle(leaves: Leaves) -> Tensor:
        outputs = behind_rows(backbone, batch, rows_of(leaves))
        if architecture in ENCODER_DECODERS:
            return outputs.logits
        return (outputs.logits if architecture in DECODERS else outputs.last_hidden_state)[:, LENGTH:]

    check(attached, batch, architecture, oracle)


def test_the_head_reads_the_first_token_of_the_text(tiny_backbone, tiny_batch, randomize):
    """BERT's pooler stands on [CLS], behind the prompt."""
    batch, backbone = tiny_batch("bert", rows=4, width=9), tiny_backbone("bert", torch.float64)
    attached = attach(
        tiny_backbone("bert", torch.float64), [prompt(None)], [lambda: ClassificationHead(backbone.config, 3)]
    )
    randomize(attached.run(0), seed=5)

    def oracle(leaves: Leaves) -> Tensor:
        rows = leaves["sites.embeddings.rows"]
        first = behind_rows(backbone, batch, rows).last_hidden_state[:, len(rows)]
        pooled = torch.tanh(backbone.pooler.dense(first))
        return pooled @ leaves["head.out_proj.weight"].T + leaves["head.out_proj.bias"]

    check(attached, batch, "bert", oracle)


# 26 positions, for BERT and GPT-2 26 of text, for RoBERTa two less; BART adds its two to the table. Llama has no table:
# its bound is the length it was trained at.
POSITIONS = {"bert": 26, "roberta": 24, "gpt2": 26, "llama": 26, "bart": 26}


@pytest.mark.parametrize("architecture", POSITIONS)
def test_more_positions_than_the_table_has_are_refused(architecture, tiny_backbone, tiny_batch):
    most = POSITIONS[architecture]
    backbone = tiny_backbone(architecture)
    with pytest.raises(ValueError, match=rf"length={most} leaves no position for text: .* has {most}; change"):
        attach(backbone, [prompt(None, most)])
    attached = attach(backbone, [prompt(None, most - 5)])
    attached([tiny_batch(architecture, width=5)])  # the last position is used
    with pytest.raises(ValueError, match=rf"{most + 1} positions, prompt or prefix included: .* has {most}; shorten"):
        attached([tiny_batch(architecture, width=6)])


def test_a_prefix_takes_positions_where_they_are_counted(tiny_backbone, tiny_batch):
    """GPT-2's text starts behind the prefix; BERT's starts at 0, so that a prefix may be as long as it likes."""
    attached = attach(tiny_backbone("gpt2"), [Prefix(20, None, "random", "")])
    attached([tiny_batch("gpt2", width=6)])
    with pytest.raises(ValueError, match="27 positions, prompt or prefix included: gpt2 has 26"):
        attached([tiny_batch("gpt2", width=7)])
    attach(tiny_backbone("bert"), [Prefix(40, None, "random", "")])([tiny_batch("bert", width=20)])


@pytest.mark.parametrize("architecture", [a for a in ALL_ARCHITECTURES if a not in POSITIONS])
def test_relative_positions_have_no_end(architecture, tiny_backbone, tiny_batch):
    attach(tiny_backbone(architecture), [prompt(None, 40)])([tiny_batch(architecture)])
