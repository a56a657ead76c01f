"""What holds for every method on every architecture. A new method is one more entry in METHODS.

counts      equal the formula of the method's docstring, for three sizes of method and backbone
start       equals the backbone's own features
training    moves every declared tensor and nothing else; the backbone stays bit-identical; detach gives it back
pack        a run trains as it does alone, next to other runs; padding is never seen
recompute   gradient checkpointing draws the same masks and gives the same gradients
save, load  equal logits bit for bit, nothing but the trained tensors in the file
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from peft_methods.attach import Attached, Method, attach
from peft_methods.baselines import Full, FullTop, HeadOnly
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby, Parallel, Pfeiffer
from peft_methods.counting import count_parameters
from peft_methods.heads import ClassificationHead
from peft_methods.ia3 import IA3
from peft_methods.lora import Lora
from peft_methods.state import load_trained, save_trained

LABELS = 3
SIX = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny backbone, as the papers write them."""

    L: int  # layers
    H: int  # hidden size
    F: int  # intermediate size
    pooler: bool

    @property
    def config(self) -> dict[str, int]:
        return {"num_hidden_layers": self.L, "hidden_size": self.H, "intermediate_size": self.F}


@dataclass(frozen=True)
class Case:
    """One method: how to make it in a given size, and what its docstring promises."""

    name: str
    make: Callable[[int], Method]
    trained: Callable[[Shape, int], int]  # without the head
    added: Callable[[Shape, int], int]
    start: Literal["exact", "near"] = "exact"
    in_place: bool = False  # trains the backbone itself, hence never in a pack
    sizes: tuple[int, int, int] = (1, 4, 7)


def adapters(n: Callable[[Shape], int]) -> Callable[[Shape, int], int]:
    """n(L) bottlenecks of 2·H·m + H + m."""
    return lambda s, m: n(s) * (2 * s.H * m + s.H + m)


def layer_norms(s: Shape) -> int:
    """Gain and bias of two LayerNorms per layer and the embeddings' one."""
    return 2 * s.H * (2 * s.L + 1)


def biases(s: Shape, size: int) -> int:
    """Query, key, value, attention output, feed-forward in and out, two LayerNorms per layer; embeddings; pooler."""
    return s.L * (4 * s.H + s.F + s.H + 2 * s.H) + s.H + s.H * s.pooler


def nothing(s: Shape, size: int) -> int:
    return 0


def everything(s: Shape, size: int) -> int:
    """Vocabulary, positions and token types of the tiny backbones; their layers; BERT's pooler."""
    embeddings = (61 + 26 + (2 if s.pooler else 1)) * s.H
    linear = s.L * (4 * s.H * s.H + 4 * s.H + 2 * s.H * s.F + s.F + s.H)
    return embeddings + linear + layer_norms(s) + (s.H * s.H + s.H) * s.pooler


METHODS = [
    Case(
        "houlsby",
        lambda m: Houlsby(m, "gelu_tanh", "truncated_normal", 1e-3, train_layer_norms=True),
        trained=lambda s, m: adapters(lambda s: 2 * s.L)(s, m) + layer_norms(s),
        added=adapters(lambda s: 2 * s.L),
        start="near",
    ),
    Case(
        "adapter_h",  # LayerNorms frozen, as in LoRA's table
        lambda m: Houlsby(m, "gelu_erf", "normal", 1e-3, train_layer_norms=False),
        trained=adapters(lambda s: 2 * s.L),
        added=adapters(lambda s: 2 * s.L),
        start="near",
    ),
    Case(
        "parallel",
        lambda m: Parallel(m, "relu", "lora", 0.0, 4.0, 0.1, ("ffn",)),
        trained=adapters(lambda s: s.L),
        added=adapters(lambda s: s.L),
    ),
    Case(
        "parallel_both",
        lambda m: Parallel(m, "swish", "normal", 1e-3, 0.5, 0.0, ("attention", "ffn")),
        trained=adapters(lambda s: 2 * s.L),
        added=adapters(lambda s: 2 * s.L),
        start="near",
    ),
    Case(
        "pfeiffer",
        lambda m: Pfeiffer(m, "relu", "normal", 1e-3, skip_layers=0),
        trained=adapters(lambda s: s.L),
        added=adapters(lambda s: s.L),
        start="near",
    ),
    Case(
        "pfeiffer_dropped",
        lambda m: Pfeiffer(m, "swish", "normal", 1e-3, skip_layers=1),
        trained=adapters(lambda s: s.L - 1),
        added=adapters(lambda s: s.L - 1),
        start="near",
    ),
    Case(
        "lora",
        lambda r: Lora(r, 16.0, 0.1, ("query", "value"), "kaiming_uniform"),
        trained=lambda s, r: s.L * 2 * r * 2 * s.H,
        added=lambda s, r: s.L * 2 * r * 2 * s.H,
    ),
    Case(
        "lora_six",
        lambda r: Lora(r, 8.0, 0.0, SIX, "normal_0.02"),
        trained=lambda s, r: s.L * r * (4 * 2 * s.H + 2 * (s.H + s.F)),
        added=lambda s, r: s.L * r * (4 * 2 * s.H + 2 * (s.H + s.F)),
    ),
    Case("bitfit", lambda _: BitFit("all"), trained=biases, added=nothing),
    Case(
        "bitfit_subset",
        lambda _: BitFit("query_ffn_in"),
        trained=lambda s, _: s.L * (s.H + s.F),
        added=nothing,
    ),
    Case("ia3", lambda _: IA3(), trained=lambda s, _: s.L * (2 * s.H + s.F), added=lambda s, _: s.L * (2 * s.H + s.F)),
    Case("head_only", lambda _: HeadOnly(), trained=nothing, added=nothing),
    Case("full", lambda _: Full(), trained=everything, added=nothing, in_place=True),
    Case(
        "full_top",
        lambda _: FullTop(2),
        trained=lambda s, _: 2 * (4 * s.H * s.H + 4 * s.H + 2 * s.H * s.F + s.F + s.H + 4 * s.H),
        added=nothing,
        in_place=True,
    ),
]


@pytest.fixture(params=METHODS, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def backbone(architecture: str, tiny_backbone):
    return tiny_backbone(architecture, dropout=0.1)


@pytest.fixture
def batch(architecture: str, tiny_batch) -> dict[str, Tensor]:
    return tiny_batch(architecture, rows=4, width=9)


def attach_one(backbone: Any, method: Method, seed: int = 0) -> Attached:
    return attach(backbone, [method], [lambda: ClassificationHead(backbone.config, LABELS)], [seed])


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)) % LABELS)


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


@pytest.mark.parametrize("which", [0, 1, 2])
def test_counts_equal_the_formula(case, architecture, tiny_backbone, which):
    pooler = architecture == "bert"
    shape = [Shape(2, 16, 24, pooler), Shape(3, 8, 40, pooler), Shape(4, 12, 12, pooler)][which]
    size = case.sizes[which]
    counts = count_parameters(attach_one(tiny_backbone(architecture, **shape.config), case.make(size)))
    head = LABELS * (shape.H + 1) + (0 if pooler else shape.H * (shape.H + 1))
    assert (counts.method, counts.added) == (case.trained(shape, size), case.added(shape, size))
    assert (counts.head, counts.stored) == (head, counts.method + head)
    assert counts.backbone == everything(shape, 0)


def test_start_equals_the_backbone(case, backbone, batch):
    with torch.no_grad():
        own = backbone(**batch).last_hidden_state
        (attached,) = attach(backbone, [case.make(4)])([batch])
    if case.start == "exact":
        assert torch.equal(attached, own)
    else:
        assert not torch.equal(attached, own), "the modules are not in the forward pass"
        torch.testing.assert_close(attached, own, rtol=0, atol=1e-3)


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
        if "key" in name and name.endswith("bias"):
            assert size < 1e-6, f"{name}: softmax does not see what all keys have in common"
        else:
            assert size > 1e-6, f"{name} has no gradient"
            assert not torch.equal(parameter, before[_path(attached, parameter)]), f"{name} did not move"


def _path(attached: Attached, parameter: Tensor) -> str:
    return next(name for name, p in attached.named_parameters() if p is parameter)


def test_training_leaves_the_backbone_bit_identical(case, backbone, batch, snapshot):
    implementation, before = backbone.config._attn_implementation, snapshot(backbone)
    with torch.no_grad():
        own = backbone(**batch).last_hidden_state
    attached = attach_one(backbone, case.make(4))
    train(attached, [batch], steps=20)
    if case.in_place:
        assert not torch.equal(backbone(**batch).last_hidden_state, own), "full fine-tuning did not train"
    else:
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert attached.detach() is backbone
    with torch.no_grad():
        assert torch.equal(backbone(**batch).last_hidden_state, own)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.modules())
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
    tensors = trained.run(0).trained()
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors)
    assert path.stat().st_size < sum(p.numel() * 4 for p in tensors.values()) + 200 * len(tensors) + 1000
    loaded = attach_one(tiny_backbone(architecture), case.make(4), seed=5)
    with torch.no_grad():
        assert not torch.equal(loaded([batch])[0], expected)
        load_trained(loaded, path)
        assert torch.equal(loaded([batch])[0], expected)


def test_padding_is_never_seen(case, architecture, backbone, batch, randomize):
    attached = attach_one(backbone, case.make(4))
    if not case.in_place:
        randomize(attached.run(0))
    pad = {"input_ids": backbone.config.pad_token_id}
    wider = {key: F.pad(value, (0, 5), value=pad.get(key, 0)) for key, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(attached([wider])[0], attached([batch])[0], rtol=0, atol=1e-6)


def test_trains_in_a_pack_as_alone(case, architecture, tiny_backbone, tiny_batch, randomize):
    """Beside a wider LoRA run and a second run of the same method; float64, so that only rounding may differ."""
    if case.in_place:
        with pytest.raises(ValueError, match="cannot share a pack"):
            attach(tiny_backbone(architecture), [case.make(4), HeadOnly()])
        return
    methods = [case.make(4), Lora(2, 4.0, 0.2, ("value",), "normal_0.02"), case.make(2)]
    batches = [tiny_batch(architecture, rows, width, rows) for rows, width in ((2, 6), (3, 11), (4, 8))]

    def trained(which: list[int]) -> list[dict[str, nn.Parameter]]:
        backbone = tiny_backbone(architecture, torch.float64, dropout=0.1)
        heads = [lambda: ClassificationHead(backbone.config, LABELS)] * len(which)
        attached = attach(backbone, [methods[i] for i in which], heads, which)
        for k, i in enumerate(which):
            randomize(attached.run(k), seed=i)
        train(attached, [batches[i] for i in which], steps=3, learning_rate=1e-3)
        return [attached.run(k).trained() for k in range(len(which))]

    for i, packed in enumerate(trained([0, 1, 2])):
        (alone,) = trained([i])
        for name, value in alone.items():
            torch.testing.assert_close(packed[name], value, rtol=0, atol=1e-10, msg=f"{name}: {{}}".format)


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
