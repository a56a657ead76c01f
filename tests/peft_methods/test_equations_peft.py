"""Hugging Face peft on the architectures and sites where it does what the papers say (BERT and RoBERTa also in
test_lora.py and test_ia3.py): its own modules compute with our tensors.

Not compared, since peft does something else there: LoRA on GPT-2's c_attn (one A for query and value, and the key is
adapted too; test_equations_weights.py has loralib), prefixes of an encoder-decoder beyond the decoder's self-attention
(peft has none there, and of more than one decoder layer it gives layer i the prefix of layer 2i: 0.21 splits one list
twice as long), BART's prefixes (its decoder counts a cache in the positions), the infix (peft has none).
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, VeraConfig, get_peft_model
from torch import Tensor
from torch.func import functional_call

from peft_methods.attach import attach
from peft_methods.dora import Dora
from peft_methods.ia3 import IA3
from peft_methods.lora import Lora
from peft_methods.prefix import Prefix
from peft_methods.prompt import Prompt
from peft_methods.vera import Vera
from tests.conftest import ALL_ARCHITECTURES, DECODERS, ENCODER_DECODERS
from tests.peft_methods.oracle import Leaves, by_site, check, check_moved, path_of, plain

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft calls it
OUTPUTS = ("attention_output", "ffn_in", "ffn_out")
TARGETS = {
    "deberta_v2": ("query", "key", "value", *OUTPUTS),
    "gpt2": OUTPUTS,
    "llama": ("query", "key", "value", *OUTPUTS, "ffn_gate"),
    "t5": ("query", "key", "value", *OUTPUTS, "cross_query", "cross_key", "cross_value", "cross_output"),
}
TARGETS |= {"bart": TARGETS["t5"], "t5_gated": (*TARGETS["t5"], "ffn_gate")}
WIDTH, LENGTH = 16, 4


def outputs_with(theirs: Any, changed: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """What a peft model gives with some of its parameters replaced; every one it would train must be."""
    trained = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert trained == changed.keys()
    return plain(lambda **inputs: functional_call(theirs, changed, (), inputs), batch)


@pytest.mark.parametrize("architecture", TARGETS)
def test_lora(architecture, tiny_backbone, tiny_batch, randomize):
    batch = tiny_batch(architecture, rows=4, width=9)
    method = Lora(3, 7.0, 0.0, TARGETS[architecture], "normal_0.02")
    attached = attach(tiny_backbone(architecture, torch.float64), [method])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))
    paths = [path_of(architecture, site) for site in by_site(dict(attached.run(0).trained()))]
    config = LoraConfig(r=3, lora_alpha=7, target_modules=paths, fan_in_fan_out=architecture == "gpt2")
    theirs = get_peft_model(tiny_backbone(architecture, torch.float64), config).eval()

    def oracle(leaves: Leaves) -> Tensor:
        changed = {
            f"base_model.model.{path_of(architecture, site)}.lora_{name}.default.weight": leaf
            for site, own in by_site(leaves).items()
            for name, leaf in own.items()
        }
        return outputs_with(theirs, changed, batch)

    check(attached, batch, architecture, oracle)


@pytest.mark.parametrize("architecture", ["bert", *TARGETS])
def test_dora(architecture, tiny_backbone, tiny_batch, randomize):
    targets = TARGETS.get(architecture, ("query", "value", *OUTPUTS))
    batch = tiny_batch(architecture, rows=4, width=9)
    attached = attach(tiny_backbone(architecture, torch.float64), [Dora(3, 7.0, 0.0, targets, "normal_0.02")])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))
    paths = [path_of(architecture, site) for site in attached.run(0).by_site]
    settings = {"r": 3, "lora_alpha": 7, "use_dora": True, "fan_in_fan_out": architecture == "gpt2"}
    theirs = get_peft_model(
        tiny_backbone(architecture, torch.float64), LoraConfig(**settings, target_modules=paths)
    ).eval()
    names = {"low_rank.A": "lora_A", "low_rank.B": "lora_B", "magnitude": "lora_magnitude_vector"}

    def oracle(leaves: Leaves) -> Tensor:
        changed = {
            f"base_model.model.{path_of(architecture, site)}.{names[name]}.default.weight": leaf
            for site, own in by_site(leaves).items()
            for name, leaf in own.items()
        }
        return outputs_with(theirs, changed, batch)

    check(attached, batch, architecture, oracle)


@pytest.mark.parametrize("architecture", ["bert", *TARGETS])
def test_vera(architecture, tiny_backbone, tiny_batch, randomize):
    """Each draws the shared pair from the seed."""
    targets = TARGETS.get(architecture, ("query", "value", *OUTPUTS))
    batch = tiny_batch(architecture, rows=4, width=9)
    attached = attach(tiny_backbone(architecture, torch.float64), [Vera(5, 0.3, 0.0, targets, 7)])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))
    paths = [path_of(architecture, site) for site in attached.run(0).by_site]
    settings = {"r": 5, "d_initial": 0.3, "projection_prng_key": 7, "fan_in_fan_out": architecture == "gpt2"}
    theirs = get_peft_model(
        tiny_backbone(architecture, torch.float64), VeraConfig(**settings, target_modules=paths)
    ).double()

    def oracle(leaves: Leaves) -> Tensor:
        changed = {
            f"base_model.model.{path_of(architecture, site)}.vera_lambda_{name}.default": leaf
            for site, own in by_site(leaves).items()
            for name, leaf in own.items()
        }
        return outputs_with(theirs.eval(), changed, batch)

    check(attached, batch, architecture, oracle)


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_ia3(architecture, tiny_backbone, tiny_batch, randomize):
    batch = tiny_batch(architecture, rows=4, width=9)
    attached = attach(tiny_backbone(architecture, torch.float64), [IA3()])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))
    sites = {
        site: path_of(architecture, site.removesuffix("_input")) for site in by_site(dict(attached.run(0).trained()))
    }
    inner = [path for site, path in sites.items() if site.endswith("_input")]
    fan = architecture == "gpt2"
    config = IA3Config(target_modules=list({*sites.values()}), feedforward_modules=inner, fan_in_fan_out=fan)
    theirs = get_peft_model(tiny_backbone(architecture, torch.float64), config).eval()

    def oracle(leaves: Leaves) -> Tensor:
        scales: dict[str, list[Tensor]] = {}
        for site, own in by_site(leaves).items():
            scales.setdefault(sites[site], []).append(own["scale"])
        changed = {}
        for path, own_scales in scales.items():
            # GPT-2's c_attn: the query, which (IA)^3 leaves alone, then key and value
            whole = torch.cat([torch.ones(WIDTH), *own_scales]) if path.endswith("c_attn") else own_scales[0]
            shape = (1, -1) if path in inner else (-1, 1)
            changed[f"base_model.model.{path}.ia3_l.default"] = whole.view(shape)
        return outputs_with(theirs, changed, batch)

    check(attached, batch, architecture, oracle)


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_prompt(architecture, tiny_backbone, tiny_batch, randomize):
    """peft does not lengthen token types; for an encoder-decoder it must be told that only the encoder has a prompt."""
    batch = tiny_batch(architecture, rows=4, width=9)
    batch.pop("token_type_ids", None)
    attached = attach(tiny_backbone(architecture, torch.float64), [Prompt(LENGTH, None, "normal", (), 0, ())])
    check_moved(attached, batch, tiny_backbone(architecture, torch.float64))
    both = architecture in ENCODER_DECODERS
    task = "SEQ_2_SEQ_LM" if both else "CAUSAL_LM" if architecture in DECODERS else "FEATURE_EXTRACTION"
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH, num_transformer_submodules=1)
    theirs = get_peft_model(tiny_backbone(architecture, torch.float64), config).eval()

    def oracle(leaves: Leaves) -> Tensor:
        rows = {"prompt_encoder.default.embedding.weight": leaves["sites.embeddings.rows"]}
        outputs = outputs_with(theirs, rows, batch)
        return outputs if both else outputs[:, LENGTH:]

    check(attached, batch, architecture, oracle)


@pytest.mark.parametrize("mlp_hidden", [None, 6], ids=["rows", "mlp"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gpt2", {}),
        ("llama", {}),  # two keys for four heads
        pytest.param("llama", {"num_key_value_heads": 4}, id="llama-a key for each head"),
        ("t5", {"num_hidden_layers": 1}),
        ("t5_gated", {"num_hidden_layers": 1}),
    ],
)
def test_prefix_of_a_decoder(architecture, changes, mlp_hidden, tiny_backbone, tiny_batch, randomize):
    """peft's prefix is a cache, so the text's positions, and T5's distances, count it, as ours do; Llama's keys there
    are not rotated. T5 has one layer here: see above."""

    def backbone() -> Any:
        return tiny_backbone(architecture, torch.float64, **changes)

    batch, stack = tiny_batch(architecture, rows=4, width=9), "" if architecture in DECODERS else "decoder."
    layers = backbone().config.num_hidden_layers

    def modules(sites: Any) -> Any:
        everywhere = Prefix(LENGTH, mlp_hidden, "random", "").modules(sites)
        return {s: m for s, m in everywhere.items() if s.role == "self_kv" and s.name.startswith(stack)}

    method: Any = SimpleNamespace(modules=modules)
    attached = attach(backbone(), [method])
    randomize(attached.run(0), seed=5)
    check_moved(attached, batch, backbone())
    config = PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if stack else "CAUSAL_LM",
        num_virtual_tokens=LENGTH,
        prefix_projection=mlp_hidden is not None,
        encoder_hidden_size=mlp_hidden,
    )
    theirs = get_peft_model(backbone(), config).eval()

    def oracle(leaves: Leaves) -> Tensor:
        if mlp_hidden is None:
            pairs = [leaves[f"sites.{stack}layer.{i}.self_kv.{kv}"] for i in range(layers) for kv in ("keys", "values")]
            return outputs_with(theirs, {"prompt_encoder.default.embedding.weight": torch.cat(pairs, dim=1)}, batch)
        names = {"embedding": "embedding.weight", "inner": "transform.0", "outer": "transform.2"}
        changed = {}
        for name, leaf in leaves.items():
            first, _, rest = name.partition("mlp.")[2].partition(".")
            changed[f"prompt_encoder.default.{'.'.join(filter(None, (names[first], rest)))}"] = leaf
        return outputs_with(theirs, changed, batch)

    check(attached, batch, architecture, oracle)
