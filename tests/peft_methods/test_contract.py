"""What holds for every method on every architecture it is defined on. A new method is one more entry in METHODS.

defined     elsewhere it is refused by name, and nothing is attached
counts      equal the formula of the method's docstring, for three sizes of method and backbone
start       equals the backbone's own features
training    moves every declared tensor and nothing else; the backbone stays bit-identical; detach gives it back
pack        a run trains as it does alone, next to other runs; padding on either side is never seen
recompute   gradient checkpointing draws the same masks and gives the same gradients
save, load  equal logits bit for bit, nothing but the stored tensors in the file
generation  with and without cache, padded on either side: what step-by-step recomputation writes

That the values are right is shown against independent code: test_equations_*.py, and the files of the methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.baselines import Full, FullTop, HeadOnly
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import AdapterL, Houlsby, Parallel, Pfeiffer, SharedPfeiffer
from peft_methods.composition import Composition
from peft_methods.counting import count_parameters
from peft_methods.dora import Dora
from peft_methods.heads import ClassificationHead
from peft_methods.ia3 import IA3
from peft_methods.layer_norm import LayerNorm
from peft_methods.lora import Lora
from peft_methods.prefix import Infix, Prefix
from peft_methods.prompt import Prompt
from peft_methods.protocols import Method
from peft_methods.state import load_trained, save_trained
from peft_methods.vera import Vera
from tests.conftest import ALL_ARCHITECTURES, BIASLESS, DECODERS, ENCODER_DECODERS, ENCODERS

LABELS = 3
SIX = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
T5 = ("t5", "t5_gated")
GATED = ("t5_gated", "llama")  # a third linear map in the feed-forward
POST_NORM = (*ENCODERS, "bart")
NOT_DEBERTA = tuple(a for a in ALL_ARCHITECTURES if a != "deberta_v2")


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny backbone, as the papers write them, and what its architecture has of everything."""

    architecture: str
    L: int  # layers of a stack
    H: int  # hidden size
    F: int  # intermediate size
    vocabulary: int = 61
    positions: int = 26

    @property
    def A(self) -> int:
        """Width of an attention's queries: all its heads. In T5 it need not be H, as in T5 1.1 small."""
        return self.H + 2 * (self.architecture == "t5_gated")

    @property
    def K(self) -> int:
        """Width of its keys and values: A, but in Llama two heads share a key and a value."""
        return self.A // 2 if self.architecture == "llama" else self.A

    @property
    def config(self) -> dict[str, int]:
        own = {"d_kv": self.A // 2} if self.architecture == "t5_gated" else {}
        return {"num_hidden_layers": self.L, "hidden_size": self.H, "intermediate_size": self.F, **own}

    @property
    def pooler(self) -> bool:
        return self.architecture == "bert"

    @property
    def both(self) -> bool:
        """Encoder and decoder."""
        return self.architecture in ENCODER_DECODERS

    @property
    def layers(self) -> int:
        return self.L * (1 + self.both)

    @property
    def cross(self) -> int:
        """Cross-attentions."""
        return self.L * self.both

    @property
    def norms(self) -> int:
        """Two a layer, one more with a cross-attention, one outside of each stack, DeBERTa's relative embeddings."""
        return 2 * self.layers + self.cross + 1 + self.both + (self.architecture == "deberta_v2")


@dataclass(frozen=True)
class Case:
    """One method: how to make it in a given size, and what its docstring promises."""

    name: str
    make: Callable[[int], Method]
    trained: Callable[[Shape, int], int]  # without the head
    added: Callable[[Shape, int], int]
    stored: Callable[[Shape, int], int] | None = None  # where it is not what is trained
    on: tuple[str, ...] = ALL_ARCHITECTURES
    start: Literal["exact", "near", "far"] = "exact"
    in_place: bool = False  # trains the backbone itself, hence never in a pack
    sizes: tuple[int, int, int] = (1, 4, 7)


def adapters(n: Callable[[Shape], int]) -> Callable[[Shape, int], int]:
    """n bottlenecks of 2·H·m + H + m."""
    return lambda s, m: n(s) * (2 * s.H * m + s.H + m)


def layer_norms(s: Shape) -> int:
    """Gain and bias of every LayerNorm; those of T5 and Llama have no bias."""
    return (1 if s.architecture in BIASLESS else 2) * s.H * s.norms


def biases(s: Shape, size: int) -> int:
    """Of every linear map: four of an attention, two of a feed-forward, BERT's pooler; of every LayerNorm."""
    return s.layers * (5 * s.H + s.F) + s.cross * 4 * s.H + s.norms * s.H + s.H * s.pooler


def top_two(s: Shape, size: int) -> int:
    """Weights, biases and norms of two layers, and the norm after them where the input of each layer is normalized."""
    per_layer = weights_of_layers(s) // s.layers
    final = {"gpt2": 2 * s.H, "llama": s.H}.get(s.architecture, 0)
    return 2 * (per_layer + (2 * s.H if s.architecture in BIASLESS else 9 * s.H + s.F)) + final


def nothing(s: Shape, size: int) -> int:
    return 0


def weights_of_layers(s: Shape) -> int:
    """The linear maps' weights; T5 1.1 and Llama have a third one in their feed-forward."""
    maps = 3 if s.architecture in GATED else 2
    return (s.layers + s.cross) * 2 * s.H * (s.A + s.K) + s.layers * maps * s.H * s.F


def everything(s: Shape, size: int) -> int:
    """All parameters of the tiny backbones: embeddings, layers, what is outside of them."""
    embeddings = {
        "bert": s.vocabulary + s.positions + 2,
        "roberta": s.vocabulary + s.positions + 1,
        "deberta_v2": s.vocabulary + 2 * 4,  # 4 relative distances to each side
        "gpt2": s.vocabulary + s.positions,
        "llama": s.vocabulary,
        "bart": s.vocabulary + 2 * (s.positions + 2),
        "t5": s.vocabulary,
        "t5_gated": 2 * s.vocabulary,
    }[s.architecture]
    relative = 2 * 8 * 2 if s.architecture in T5 else 0  # 8 buckets of 2 heads in each stack
    linear_biases = 0 if s.architecture in BIASLESS else biases(s, 0) - s.norms * s.H
    pooler = s.H * s.H if s.pooler else 0
    return embeddings * s.H + weights_of_layers(s) + linear_biases + layer_norms(s) + relative + pooler


def keys_values(s: Shape, P: int) -> int:
    """P keys and P values at every attention."""
    return 2 * (s.layers + s.cross) * P * s.K


def with_mlp(s: Shape, P: int, M: int, rows: int, mlps: int = 1) -> int:
    """`mlps` of E (P x H), H -> M -> their share of `rows` columns."""
    return mlps * (P * s.H + M * (s.H + 1)) + rows * (M + 1)


def prefix_with_mlp(s: Shape, P: int) -> int:
    """M = 5; an MLP for encoder, decoder and cross-attention each."""
    return with_mlp(s, P, 5, 2 * (s.layers + s.cross) * s.K, mlps=3 if s.both else 1)


def parallel_ffn(s: Shape, m: int) -> int:
    return adapters(lambda s: s.layers)(s, m)


def lora(
    per_layer: Callable[[Shape], int],
    cross: Callable[[Shape], int] = lambda s: 0,
    more: Callable[[Shape], int] = lambda s: 0,
) -> Callable[[Shape, int], int]:
    """r·(in + out) a target; more: of every layer, whatever r."""
    return lambda s, r: s.layers * (r * per_layer(s) + more(s)) + s.cross * r * cross(s)


def prompt(length: int, init: str = "normal", mlp_hidden: int | None = None) -> Prompt:
    return Prompt(length, mlp_hidden, init, (-0.5, 0.5), 50, ())


METHODS = [
    Case("layer_norm", lambda m: LayerNorm(), trained=lambda s, m: layer_norms(s), added=nothing, sizes=(1, 1, 1)),
    Case(
        "houlsby",
        lambda m: Houlsby(m, "gelu_tanh", "truncated_normal", 1e-3, train_layer_norms=True),
        trained=lambda s, m: adapters(lambda s: 2 * s.layers)(s, m) + layer_norms(s),
        added=adapters(lambda s: 2 * s.layers),
        start="near",
    ),
    Case(
        "adapter_h",  # LayerNorms frozen, as in LoRA's table
        lambda m: Houlsby(m, "gelu_erf", "normal", 1e-3, train_layer_norms=False),
        trained=adapters(lambda s: 2 * s.layers),
        added=adapters(lambda s: 2 * s.layers),
        start="near",
    ),
    Case(
        "adapter_l",
        lambda m: AdapterL(m, "relu", "normal", 1e-3),
        trained=lambda s, m: adapters(lambda s: s.layers)(s, m) + s.layers * 2 * s.H,
        added=lambda s, m: adapters(lambda s: s.layers)(s, m) + s.layers * 2 * s.H,
        on=(*DECODERS, *T5),
        start="near",
    ),
    Case(
        "parallel",
        lambda m: Parallel(m, "relu", "lora", 0.0, 4.0, 0.1, ("ffn",)),
        trained=parallel_ffn,
        added=parallel_ffn,
    ),
    Case(
        "parallel_both",
        lambda m: Parallel(m, "swish", "normal", 1e-3, 0.5, 0.0, ("attention", "ffn")),
        trained=adapters(lambda s: 2 * s.layers),
        added=adapters(lambda s: 2 * s.layers),
        start="near",
    ),
    Case(
        "parallel_cross",
        lambda m: Parallel(m, "relu", "normal", 1e-3, 1.0, 0.1, ("cross_attention",)),
        trained=adapters(lambda s: s.cross),
        added=adapters(lambda s: s.cross),
        on=ENCODER_DECODERS,
        start="near",
    ),
    Case(
        "pfeiffer",
        lambda m: Pfeiffer(m, "relu", "normal", 1e-3, skip_layers=0),
        trained=adapters(lambda s: s.layers),
        added=adapters(lambda s: s.layers),
        on=POST_NORM,
        start="near",
    ),
    Case(
        "pfeiffer_dropped",
        lambda m: Pfeiffer(m, "swish", "normal", 1e-3, skip_layers=1),
        trained=adapters(lambda s: s.layers - 1 - s.both),
        added=adapters(lambda s: s.layers - 1 - s.both),
        on=POST_NORM,
        start="near",
    ),
    Case(
        "pfeiffer_shared",
        lambda m: SharedPfeiffer(m, "relu", "normal", 1e-3),
        trained=adapters(lambda s: 1),
        added=adapters(lambda s: 1),
        on=POST_NORM,
        start="near",
    ),
    Case(
        "lora",
        lambda r: Lora(r, 16.0, 0.1, ("query", "value"), "kaiming_uniform"),
        trained=lora(lambda s: s.H + s.A + s.H + s.K),
        added=lora(lambda s: s.H + s.A + s.H + s.K),
    ),
    Case(
        "lora_six",
        lambda r: Lora(r, 8.0, 0.0, SIX, "normal_0.02"),
        trained=lora(lambda s: 2 * (s.H + s.A) + 2 * (s.H + s.K) + 2 * (s.H + s.F)),
        added=lora(lambda s: 2 * (s.H + s.A) + 2 * (s.H + s.K) + 2 * (s.H + s.F)),
    ),
    Case(
        "lora_cross",
        lambda r: Lora(r, 4.0, 0.1, ("cross_query", "cross_key", "cross_value", "cross_output"), "normal_0.02"),
        trained=lora(lambda s: 0, lambda s: 4 * (s.H + s.A)),
        added=lora(lambda s: 0, lambda s: 4 * (s.H + s.A)),
        on=ENCODER_DECODERS,
    ),
    Case(
        "dora",
        lambda r: Dora(r, 16.0, 0.1, ("query", "value"), "kaiming_uniform"),
        trained=lora(lambda s: s.H + s.A + s.H + s.K, more=lambda s: s.A + s.K),
        added=lora(lambda s: s.H + s.A + s.H + s.K, more=lambda s: s.A + s.K),
    ),
    Case(
        "dora_six",
        lambda r: Dora(r, 8.0, 0.0, SIX, "normal_0.02"),
        trained=lora(lambda s: 2 * (2 * s.H + s.A + s.K + s.H + s.F), more=lambda s: s.A + 2 * s.K + 2 * s.H + s.F),
        added=lora(lambda s: 2 * (2 * s.H + s.A + s.K + s.H + s.F), more=lambda s: s.A + 2 * s.K + 2 * s.H + s.F),
    ),
    Case(
        "vera",
        lambda r: Vera(r, 0.1, 0.1, ("value", "ffn_in"), 0),
        trained=lora(lambda s: 2, more=lambda s: s.K + s.F),
        added=lora(lambda s: 2, more=lambda s: s.K + s.F),
    ),
    Case(
        "bitfit",
        lambda _: BitFit("all"),
        trained=biases,
        added=nothing,
        on=tuple(a for a in ALL_ARCHITECTURES if a not in BIASLESS),
    ),
    Case(
        "bitfit_subset",
        lambda _: BitFit("query_ffn_in"),
        trained=lambda s, _: s.layers * (s.H + s.F) + s.cross * s.H,
        added=nothing,
        on=tuple(a for a in ALL_ARCHITECTURES if a not in BIASLESS),
    ),
    Case(
        "ia3",
        lambda _: IA3(),
        trained=lambda s, _: s.layers * (2 * s.K + s.F) + s.cross * 2 * s.K,
        added=lambda s, _: s.layers * (2 * s.K + s.F) + s.cross * 2 * s.K,
    ),
    Case(
        "prefix",
        lambda P: Prefix(P, 5, "random", ""),
        trained=prefix_with_mlp,
        added=prefix_with_mlp,
        stored=keys_values,
        on=NOT_DEBERTA,
        start="far",
    ),
    Case(
        "prefix_without_mlp",
        lambda P: Prefix(P, None, "random", ""),
        trained=keys_values,
        added=keys_values,
        on=NOT_DEBERTA,
        start="far",
    ),
    Case(
        "infix",
        lambda P: Infix(P, 5),
        trained=lambda s, P: prefix_with_mlp(s, P) + P * s.H,
        added=lambda s, P: prefix_with_mlp(s, P) + P * s.H,
        stored=lambda s, P: keys_values(s, P) + P * s.H,
        on=DECODERS,
        start="far",
    ),
    Case("prompt", prompt, trained=lambda s, P: P * s.H, added=lambda s, P: P * s.H, start="far"),
    Case(
        "embedding_only",
        lambda P: prompt(P, mlp_hidden=5),
        trained=lambda s, P: with_mlp(s, P, 5, s.H),
        added=lambda s, P: with_mlp(s, P, 5, s.H),
        stored=lambda s, P: P * s.H,
        start="far",
    ),
    Case(
        "mam",
        lambda P: Composition((Prefix(P, 5, "random", ""), Parallel(P, "relu", "lora", 0.0, 4.0, 0.1, ("ffn",)))),
        trained=lambda s, P: prefix_with_mlp(s, P) + parallel_ffn(s, P),
        added=lambda s, P: prefix_with_mlp(s, P) + parallel_ffn(s, P),
        stored=lambda s, P: keys_values(s, P) + parallel_ffn(s, P),
        on=NOT_DEBERTA,
        start="far",
    ),
    Case("head_only", lambda _: HeadOnly(), trained=nothing, added=nothing, on=ENCODERS),
    Case("full", lambda _: Full(), trained=everything, added=nothing, in_place=True),
    Case(
        "full_top",
        lambda _: FullTop(2),
        trained=top_two,
        added=nothing,
        on=(*ENCODERS, *DECODERS),
        in_place=True,
    ),
]
DEFINED = [pytest.param(case, a, id=f"{case.name}-{a}") for case in METHODS for a in case.on]
UNDEFINED = [
    pytest.param(case, a, id=f"{case.name}-{a}")
    for case in METHODS
    for a in ALL_ARCHITECTURES
    if a not in case.on and case.name != "head_only"  # without a head nothing is left of it
]
WRITERS = [p for p in DEFINED if p.values[1] not in ENCODERS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes a case runs on every architecture the case is defined on, unless it says otherwise."""
    marked = any(mark.name == "parametrize" and "case" in mark.args[0] for mark in metafunc.definition.iter_markers())
    if "case" in metafunc.fixturenames and not marked:
        metafunc.parametrize(("case", "architecture"), DEFINED)


@pytest.fixture
def backbone(architecture: str, tiny_backbone):
    return tiny_backbone(architecture, dropout=0.1)


@pytest.fixture
def batch(architecture: str, tiny_batch) -> dict[str, Tensor]:
    return tiny_batch(architecture, rows=4, width=9)


def attach_one(backbone: Any, method: Method, seed: int = 0) -> Attached:
    """With a head on an encoder; a language model has its own."""
    head = None if hasattr(backbone, "lm_head") else lambda: ClassificationHead(backbone.config, LABELS)
    return attach(backbone, [method], [head], [seed])


def own(backbone: Any, batch: dict[str, Tensor]) -> Tensor:
    """The backbone's own logits, or its hidden states."""
    outputs = backbone(**{key: value for key, value in batch.items() if key != "boundary"})
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def real(outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Without what stands at padding."""
    return outputs if "decoder_input_ids" in batch else outputs[batch["attention_mask"].bool()]


def loss_of(outputs: Tensor) -> Tensor:
    rows = outputs.flatten(0, -2)
    return F.cross_entropy(rows, torch.arange(len(rows)) % rows.shape[1])


def train(attached: Attached, batches: list[Any], steps: int, learning_rate: float = 1e-2) -> None:
    """AdamW on every run at once; run k's loss is its own."""
    attached.train()
    parameters = [p for k in range(len(attached.runs)) for p in attached.run(k).trained().values()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        for stream in attached.streams:
            stream.step = step
        optimizer.zero_grad()
        torch.stack([loss_of(logits) for logits in attached(batches)]).sum().backward()
        optimizer.step()
    attached.eval()


@pytest.mark.parametrize(("case", "architecture"), UNDEFINED)
def test_undefined_is_refused_by_name(case, architecture, backbone):
    hooks = sum(len(module._forward_hooks) for module in backbone.modules())
    with pytest.raises(ValueError, match=rf"{backbone.config.model_type}|match no projection|no sub-layer"):
        attach(backbone, [case.make(2)])
    assert sum(len(module._forward_hooks) for module in backbone.modules()) == hooks
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_counts_equal_the_formula(case, architecture, tiny_backbone, which):
    L, H, ffn = [(2, 16, 24), (3, 8, 40), (4, 12, 12)][which]
    shape, size = Shape(architecture, L, H, ffn), case.sizes[which]
    counts = count_parameters(attach_one(tiny_backbone(architecture, **shape.config), case.make(size)))
    head = 0
    if architecture in ENCODERS:
        head = LABELS * (shape.H + 1) + (0 if shape.pooler else shape.H * (shape.H + 1))
    assert (counts.method, counts.added) == (case.trained(shape, size), case.added(shape, size))
    assert (counts.head, counts.stored) == (head, (case.stored or case.trained)(shape, size) + head)
    assert counts.backbone == everything(shape, 0)


def test_start_equals_the_backbone(case, backbone, batch):
    with torch.no_grad():
        expected = real(own(backbone, batch), batch)
        (outputs,) = attach(backbone, [case.make(4)])([batch])
    outputs = real(outputs, batch)
    if case.start == "exact":
        assert torch.equal(outputs, expected)
        return
    assert not torch.equal(outputs, expected), "the modules are not in the forward pass"
    if case.start == "near":
        torch.testing.assert_close(outputs, expected, rtol=0, atol=2e-3)


def test_two_steps_move_the_declared_tensors_and_nothing_else(case, backbone, batch, randomize, snapshot):
    attached = attach_one(backbone, case.make(4))
    randomize(attached.run(0))  # from the true start LoRA's A has no gradient at the first step
    trained = attached.run(0).trained()
    assert {id(p) for p in attached.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    before = snapshot(attached)
    train(attached, [batch], steps=2, learning_rate=1e-3)
    pointers = {p.data_ptr() for p in trained.values()}
    for name, value in attached.state_dict().items():
        if value.data_ptr() not in pointers:
            assert torch.equal(value, before[name]), f"{name} is not declared and moved"
    for name, parameter in trained.items():
        assert parameter.grad is not None, f"{name} is not in the graph"
        size = parameter.grad.abs().max().item()
        if _bias_of_keys(name) and backbone.config.model_type != "deberta-v2":  # its positions see the keys' bias
            assert size < 1e-6, f"{name}: softmax does not see what all keys have in common"
        else:
            assert size > 1e-7, f"{name} has no gradient"
            assert not torch.equal(parameter, before[_path(attached, parameter)]), f"{name} did not move"


def _bias_of_keys(name: str) -> bool:
    return name.endswith("bias") and ("key" in name or "k_proj" in name) and "mlp" not in name


def _path(attached: Attached, parameter: Tensor) -> str:
    return next(name for name, p in attached.named_parameters() if p is parameter)


def test_training_leaves_the_backbone_bit_identical(case, backbone, batch, snapshot):
    implementation, before = backbone.config._attn_implementation, snapshot(backbone)
    attributes = [dict(vars(module)) for module in backbone.modules()]
    with torch.no_grad():
        expected = own(backbone, batch)
    attached = attach_one(backbone, case.make(4))
    with torch.no_grad():
        untrained = attached([batch])[0]
    train(attached, [batch], steps=20)
    if case.in_place:
        with torch.no_grad():
            assert not torch.equal(attached([batch])[0], untrained), "full fine-tuning did not train"
    else:
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert attached.detach() is backbone
    with torch.no_grad():
        assert torch.equal(own(backbone, batch), expected)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    for module, attribute in zip(backbone.modules(), attributes, strict=True):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert {n: v for n, v in vars(module).items() if isinstance(v, float)} == {
            n: v for n, v in attribute.items() if isinstance(v, float)
        }
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert backbone.config._attn_implementation == implementation
    attach_one(backbone, case.make(4))  # and the backbone takes the next run


def test_saved_and_loaded_gives_equal_logits(case, architecture, tiny_backbone, batch, tmp_path):
    trained = attach_one(tiny_backbone(architecture), case.make(4))
    train(trained, [batch], steps=3)
    with torch.no_grad():
        (expected,) = trained([batch])
    path = tmp_path / "run.safetensors"
    save_trained(trained, path)
    tensors = trained.run(0).stored()
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
    assert path.stat().st_size < sum(p.numel() * 4 for p in tensors.values()) + 200 * len(tensors) + 1000
    loaded = attach_one(tiny_backbone(architecture), case.make(4), seed=5)
    with torch.no_grad():
        assert not torch.equal(loaded([batch])[0], expected)
        load_trained(loaded, path)
        if case.stored is None:
            assert torch.equal(loaded([batch])[0], expected)
        else:  # the product of another shape is rounded in another way
            torch.testing.assert_close(loaded([batch])[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_seen(case, architecture, backbone, batch, randomize, side):
    """The features at the text's own tokens; a head reads the first token, so that it has no use for a left side."""
    attached = attach(backbone, [case.make(4)])
    if not case.in_place:
        randomize(attached.run(0))
    pad, ids = {"input_ids": backbone.config.pad_token_id or 0}, ("input_ids", "attention_mask", "token_type_ids")
    amounts = (5, 0) if side == "left" else (0, 5)
    wider = {key: F.pad(value, amounts, value=pad.get(key, 0)) if key in ids else value for key, value in batch.items()}
    if "boundary" in batch:
        wider["boundary"] = batch["boundary"] + amounts[0]
    with torch.no_grad():
        narrow_outputs, wide_outputs = attached([batch])[0], attached([wider])[0]
    torch.testing.assert_close(real(wide_outputs, wider), real(narrow_outputs, batch), rtol=0, atol=2e-5)


def test_one_token(case, architecture, tiny_backbone, tiny_batch, randomize):
    """The shortest input, alone and beside a longer row."""
    attached = attach(tiny_backbone(architecture, torch.float64), [case.make(2)])
    if not case.in_place:
        randomize(attached.run(0))
    batch = tiny_batch(architecture, rows=2, width=6)
    batch["attention_mask"][1, 1:] = 0
    if "boundary" in batch:
        batch["boundary"][1] = 0
    short = {
        key: value[1:] if key in ("boundary", "decoder_input_ids") else value[1:, :1] for key, value in batch.items()
    }
    with torch.no_grad():
        both, alone = attached([batch])[0][1], attached([short])[0][0]
    torch.testing.assert_close(both if "decoder_input_ids" in batch else both[:1], alone, rtol=0, atol=1e-8)


def test_trains_in_a_pack_as_alone(case, architecture, tiny_backbone, tiny_batch, randomize):
    """Beside a wider LoRA run and a second run of the same method; float64, so that only rounding may differ."""
    dropout = 0.0 if architecture == "deberta_v2" else 0.1
    methods = [case.make(4), Lora(2, 4.0, 0.2, ("value",), "normal_0.02"), case.make(2)]
    if case.in_place or (architecture == "deberta_v2" and case.name in DEBERTA_ALONE):
        with pytest.raises(ValueError, match="cannot share a pack"):
            attach(tiny_backbone(architecture, dropout=dropout), methods)
        return
    batches = [tiny_batch(architecture, rows, width, rows) for rows, width in ((2, 6), (3, 11), (4, 8))]

    def trained(which: list[int]) -> list[dict[str, nn.Parameter]]:
        backbone = tiny_backbone(architecture, torch.float64, dropout=dropout)
        head = None if hasattr(backbone, "lm_head") else lambda: ClassificationHead(backbone.config, LABELS)
        attached = attach(backbone, [methods[i] for i in which], [head] * len(which), which)
        for k, i in enumerate(which):
            randomize(attached.run(k), seed=i)
        train(attached, [batches[i] for i in which], steps=3, learning_rate=1e-3)
        return [attached.run(k).trained() for k in range(len(which))]

    for i, packed in enumerate(trained([0, 1, 2])):
        (alone,) = trained([i])
        for name, value in alone.items():
            torch.testing.assert_close(packed[name], value, rtol=0, atol=1e-8, msg=f"{name}: {{}}".format)


# They have modules at the query or key projection, or at the relative embeddings' norm, which a pack cannot slice.
DEBERTA_ALONE = ("houlsby", "lora", "lora_six", "dora", "dora_six", "bitfit", "bitfit_subset", "ia3", "layer_norm")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(case, architecture, tiny_backbone, batch, randomize):
    gradients = []
    for recompute in (False, True):
        backbone = tiny_backbone(architecture, torch.float64, dropout=0.2)
        if recompute:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        attached = attach_one(backbone, case.make(4)).train()
        if not case.in_place:
            randomize(attached.run(0))
        loss_of(attached([batch])[0]).backward()
        gradients.append({name: p.grad for name, p in attached.run(0).trained().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12, msg=f"{name}: {{}}".format)


@pytest.mark.parametrize(("case", "architecture"), WRITERS)
def test_generation_equals_recomputation(case, architecture, tiny_backbone, tiny_batch, randomize):
    """Greedy, five tokens: row by row without padding or cache, each step a whole forward pass of its own."""
    backbone = tiny_backbone(architecture, torch.float64)
    attached = attach(backbone, [case.make(3)])
    if not case.in_place:
        randomize(attached.run(0))
    batch, config = tiny_batch(architecture, rows=3, width=7), backbone.config
    whole, text = batch["attention_mask"].sum(1), batch["input_ids"]
    expected = [_greedy(attached, text[i : i + 1, :n], batch.get("boundary"), i) for i, n in enumerate(whole)]
    assert len({tuple(row) for row in expected}) > 1, "the same for every row shows little"
    order = batch["attention_mask"].argsort(dim=1, stable=True)
    right = {key: batch[key] for key in ("input_ids", "attention_mask", "boundary") if key in batch}
    left = {key: right[key].gather(1, order) for key in ("input_ids", "attention_mask")}
    if "boundary" in batch:
        left["boundary"] = batch["boundary"] + text.shape[1] - whole
    for given in (right, left):
        for cache in (True, False):
            # The bans: these random models would write one token all over.
            (written,) = attached.generate(
                [given], max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=cache,
                no_repeat_ngram_size=1, suppress_tokens=[0, config.eos_token_id],
            )  # fmt: skip
            assert written is not None
            assert written.tolist() == expected, (cache, given is left)


def _greedy(attached: Attached, text: Tensor, boundary: Tensor | None, i: int) -> list[int]:
    """Five tokens after row i of a batch, (1, T) `text`: no padding, no cache, no token twice."""
    config, decoder_only = attached.backbone.config, attached.sites.architecture.decoder_only
    written = text if decoder_only else torch.tensor([[config.decoder_start_token_id]])
    for _ in range(5):
        row = {"input_ids": written if decoder_only else text}
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        row |= {"boundary": boundary[i : i + 1]} if boundary is not None else {"decoder_input_ids": written}
        with torch.no_grad():
            logits = attached([row])[0][:, -1]
        logits[:, [0, config.eos_token_id, *written[0].tolist()]] = -torch.inf
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
    return written[0, -5:].tolist()
