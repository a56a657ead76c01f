"""What a pack of different methods writes: as each run alone, and as transformers' own `generate` on a plain model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.lora import Lora
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from peft_methods.protocols import Method
from tests.conftest import DECODERS, ENCODER_DECODERS
from tests.peft_methods.oracle import by_site, path_of

METHODS: list[Method] = [
    Lora(3, 7.0, 0.0, ("query", "value", "ffn_out"), "normal_0.02"),
    Prefix(4, None, "random", ""),
    Prompt(3, None, "normal", (), 0, ()),
]
ENDS = [*range(3, 61, 2)]  # so many that some rows end and others do not
DECODING = {"greedy": {}, "beams": {"num_beams": 3}}


def attach_runs(which: list[int], architecture: str, tiny_backbone: Any, randomize: Any) -> Attached:
    attached = attach(tiny_backbone(architecture, torch.float64), [METHODS[i] for i in which], seeds=which)
    for k, i in enumerate(which):
        randomize(attached.run(k), seed=i)
    return attached


def settings_of(architecture: str, decoding: str, ends: bool) -> dict[str, Any]:
    """no_repeat_ngram_size and what is suppressed: these random models would write one token all over."""
    settings: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "suppress_tokens": [0], **DECODING[decoding]}
    if ends:
        return {**settings, "eos_token_id": ENDS, "pad_token_id": 0}
    return {**settings, "min_new_tokens": 7, "no_repeat_ngram_size": 1, "pad_token_id": 0}


def texts(written: Tensor | None, ends: bool) -> list[list[int]]:
    """Each row up to the token that ends it: what follows is padding to the pack's longest row."""
    assert written is not None
    rows = []
    for row in written.tolist():
        stop = next((i + 1 for i, token in enumerate(row) if ends and token in ENDS), len(row))
        assert len(set(row[stop:])) <= 1, "something other than padding after the end"
        rows.append(row[:stop])
    return rows


def batch_of(architecture: str, i: int, tiny_batch: Any) -> dict[str, Tensor]:
    """Of other size for each run, ragged on the right; without a decoder's ids, which generation writes itself."""
    batch = tiny_batch(architecture, rows=2 + i, width=(6, 11, 8)[i], seed=i)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("ends", [False, True], ids=["full_length", "rows_end"])
@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_a_mixed_pack_writes_what_each_run_writes_alone(
    architecture, decoding, ends, tiny_backbone, tiny_batch, randomize
):
    settings = settings_of(architecture, decoding, ends)
    batches = [batch_of(architecture, i, tiny_batch) for i in range(len(METHODS))]
    pack = attach_runs([0, 1, 2], architecture, tiny_backbone, randomize).generate(batches, **settings)
    every: list[list[int]] = []
    for i, written in enumerate(pack):
        (alone,) = attach_runs([i], architecture, tiny_backbone, randomize).generate([batches[i]], **settings)
        assert texts(written, ends) == texts(alone, ends), METHODS[i]
        every += texts(written, ends)
    assert len({tuple(row) for row in every}) > len(every) // 2, "the same for most rows shows little"
    if ends:
        assert len({len(row) for row in every}) > 1, "all end at once"


@pytest.mark.parametrize("ends", [60, [60, 59]], ids=["one", "several"])
def test_without_a_padding_token_the_end_fills_what_a_row_leaves(ends, tiny_backbone, tiny_batch, randomize):
    """SmolLM2 has one end, Llama 3 several: the first."""
    text = [batch_of("llama", 0, tiny_batch)]
    settings = {"max_new_tokens": 4, "do_sample": False}
    (alone,) = attach_runs([0], "llama", tiny_backbone, randomize).generate(text, **settings)
    assert alone is not None
    attached, stops = attach_runs([0], "llama", tiny_backbone, randomize), alone[0, :1].tolist()
    attached.backbone.config.eos_token_id = ends
    (written,) = attached.generate(text, **settings, eos_token_id=stops)
    assert written is not None
    assert written[0].tolist() == [*stops, 60, 60, 60]


@pytest.mark.parametrize("decoding", DECODING)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_a_pack_writes_what_transformers_writes(architecture, decoding, tiny_backbone, tiny_batch, randomize):
    """LoRA written into the weights, the prompt given as embeddings; the prefix has its equation elsewhere."""
    settings = settings_of(architecture, decoding, False)
    batches = [batch_of(architecture, i, tiny_batch) for i in range(len(METHODS))]
    attached = attach_runs([0, 1, 2], architecture, tiny_backbone, randomize)
    lora, _, prompt = (written for written in attached.generate(batches, **settings) if written is not None)

    merged = tiny_backbone(architecture, torch.float64)
    with torch.no_grad():
        for site, own in by_site(dict(attached.run(0).trained())).items():
            weight = merged.get_submodule(path_of(architecture, site)).weight
            rows = weight.T if architecture == "gpt2" else weight
            if site.endswith(("query", "value")) and architecture == "gpt2":
                rows = rows.chunk(3)[0 if site.endswith("query") else 2]
            rows += 7.0 / 3 * own["B"] @ own["A"]
    plain = tiny_backbone(architecture, torch.float64)
    rows = attached.run(2).trained()["sites.embeddings.rows"].detach()
    embedded = plain.get_input_embeddings()(batches[2]["input_ids"])
    longer = {
        "inputs_embeds": torch.cat([rows.expand(len(embedded), -1, -1), embedded], dim=1),
        "attention_mask": F.pad(batches[2]["attention_mask"], (3, 0), value=1),
    }
    if architecture in DECODERS:  # no_repeat_ngram_size sees the ids of the text, and padding in the prompt's places
        longer["input_ids"] = F.pad(batches[2]["input_ids"], (3, 0), value=0)
    for model, inputs, ours in ((merged, batches[0], lora), (plain, longer, prompt)):
        expected = _by_transformers(architecture, model, inputs, settings)
        assert ours.tolist() == expected, "prompt" if inputs is longer else "lora"
    assert len({tuple(row) for row in (*lora.tolist(), *prompt.tolist())}) > 4, "the same for most rows shows little"


def _by_transformers(architecture: str, model: Any, inputs: dict[str, Tensor], settings: dict[str, Any]) -> Any:
    """Row by row and without padding, so that neither its sides nor neighbours play a part."""
    written = []
    for i, mask in enumerate(inputs["attention_mask"].bool()):
        row = {name: tensor[i : i + 1, mask] for name, tensor in inputs.items()}
        before = row["input_ids"].shape[1] if "input_ids" in row and architecture not in ENCODER_DECODERS else 0
        ids = model.generate(**row, **settings)[0, before:]
        written.append(ids[1 if architecture in ENCODER_DECODERS else 0 :].tolist())
    return written
