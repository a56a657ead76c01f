"""A pack of K mixed runs on one backbone equals its K solo runs, whatever happens to one of them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from peft_methods.attach import attach
from peft_methods.attached import Attached
from peft_methods.baselines import HeadOnly
from peft_methods.bitfit import BitFit
from peft_methods.bottleneck import Houlsby, Pfeiffer
from peft_methods.heads import ClassificationHead
from peft_methods.inputs import Batch
from peft_methods.lora import Lora
from peft_methods.protocols import Method
from peft_methods.state import trained_tensors


@dataclass(frozen=True)
class Run:
    """One run of the pack: its method and everything that may differ from its neighbors'."""

    method: Method
    seed: int
    learning_rate: float
    rows: int
    width: int
    labels: int
    steps: int  # ends before the others if smaller


MIXED = [
    Run(Lora(2, 4.0, 0.1, ("query", "value"), "kaiming_uniform"), 3, 1e-3, 4, 6, 2, 100),
    Run(Lora(4, 8.0, 0.0, ("query", "key", "ffn_out"), "normal_0.02"), 1, 3e-3, 2, 12, 3, 100),
    Run(Houlsby(5, "gelu_tanh", "truncated_normal", 1e-2, train_layer_norms=True), 2, 1e-3, 3, 9, 4, 100),
    Run(Pfeiffer(3, "relu", "normal", 0.02, skip_layers=1), 2, 2e-3, 5, 7, 2, 60),
    Run(BitFit("all"), 0, 5e-3, 1, 10, 1, 100),
    Run(HeadOnly(), 7, 1e-2, 3, 5, 3, 100),
]


def attach_runs(backbone: Any, runs: list[Run], randomize: Any) -> Attached:
    heads = [lambda n=run.labels: ClassificationHead(backbone.config, n) for run in runs]
    attached = attach(backbone, [run.method for run in runs], heads, [run.seed for run in runs])
    for k, run in enumerate(runs):
        randomize(attached.run(k), seed=run.seed, std=0.1)
    return attached


def loss_of(logits: Tensor, labels: int) -> Tensor:
    if labels == 1:
        return F.mse_loss(logits.squeeze(1), torch.arange(len(logits), dtype=logits.dtype))
    return F.cross_entropy(logits, torch.arange(len(logits)) % labels)


def train(attached: Attached, runs: list[Run], make_batch: Any, steps: int = 50) -> list[dict[str, Tensor]]:
    """AdamW per run, one backward for the pack; a run's batches and masks follow from its seed and step alone."""
    attached.train()
    optimizers = [
        torch.optim.AdamW(attached.run(k).trained().values(), lr=run.learning_rate, weight_decay=0.01)
        for k, run in enumerate(runs)
    ]
    for step in range(steps):
        batches: list[Batch | None] = []
        for run, stream in zip(runs, attached.streams, strict=True):
            stream.step = step
            seed = 1000 * run.seed + step
            batches.append(make_batch(run.rows, run.width - step % 3, seed) if step < run.steps else None)
        if not any(batches):
            break
        logits = attached(batches)
        assert [output is None for output in logits] == [batch is None for batch in batches]
        torch.stack(
            [loss_of(output, run.labels) for output, run in zip(logits, runs, strict=True) if output is not None]
        ).sum().backward()
        for optimizer, batch in zip(optimizers, batches, strict=True):
            if batch is not None:
                optimizer.step()
            optimizer.zero_grad()
    return [trained_tensors(attached, k) for k in range(len(runs))]


@pytest.fixture(params=["bert", "roberta"], scope="module")
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def batches_of(architecture, tiny_batch):
    return lambda rows, width, seed: tiny_batch(architecture, rows, width, seed)


@pytest.fixture(scope="module")
def alone(architecture, tiny_backbone, randomize, batches_of) -> list[dict[str, Tensor]]:
    """What each run of MIXED trains on a backbone of its own, without checkpointing."""
    trained = []
    for run in MIXED:
        torch.manual_seed(0)
        backbone = tiny_backbone(architecture, torch.float64, dropout=0.1)
        trained += train(attach_runs(backbone, [run], randomize), [run], batches_of)
    return trained


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    ("architecture", "recompute"),
    [("bert", False), ("bert", True), ("roberta", True)],
    ids=["bert-plain", "bert-checkpointing", "roberta-checkpointing"],
    indirect=["architecture"],
    scope="module",
)
def test_a_mixed_pack_equals_its_solo_runs(architecture, recompute, alone, tiny_backbone, randomize, batches_of):
    """50 AdamW steps in float64 with dropout on: a wrong mask, slice or neighbor shows in the first few."""
    backbone = tiny_backbone(architecture, torch.float64, dropout=0.1)
    if recompute:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    attached = attach_runs(backbone, MIXED, randomize)
    start = [trained_tensors(attached, k) for k in range(len(MIXED))]
    for k, trained in enumerate(train(attached, MIXED, batches_of)):
        moved = max((value - start[k][name]).abs().max() for name, value in trained.items())
        assert moved > 10 * MIXED[k].learning_rate, f"run {k} hardly moved: too little is compared"
        assert trained.keys() == alone[k].keys()
        for name, value in trained.items():
            torch.testing.assert_close(value, alone[k][name], rtol=0, atol=1e-8, msg=f"run {k}, {name}: {{}}".format)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_checkpointing_does_recompute(architecture, tiny_backbone, randomize, batches_of):
    backbone = tiny_backbone(architecture, dropout=0.1)
    backbone.gradient_checkpointing_enable({"use_reentrant": False})
    attached = attach_runs(backbone, MIXED, randomize).train()
    calls = []
    for layer in backbone.encoder.layer:
        layer.output.dense.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    logits = attached([batches_of(run.rows, run.width, 0) for run in MIXED])
    assert len(calls) == 2
    torch.stack([output.sum() for output in logits]).sum().backward()
    assert len(calls) == 4, "no layer was computed again in the backward pass"


@pytest.mark.parametrize("cause", ["learning rate", "parameters"])
def test_a_diverging_run_does_not_touch_the_others(cause, architecture, tiny_backbone, randomize, batches_of):
    """Same shapes, same kernels: the neighbors' parameters are equal bit for bit."""

    def trained(ill: bool) -> list[dict[str, Tensor]]:
        runs = list(MIXED)
        if ill and cause == "learning rate":
            runs[2] = Run(**{**vars(runs[2]), "learning_rate": float("inf")})
        attached = attach_runs(tiny_backbone(architecture, dropout=0.1), runs, randomize)
        if ill and cause == "parameters":
            with torch.no_grad():
                attached.run(2).trained()["sites.layer.0.ffn.up.bias"].fill_(float("nan"))
        return train(attached, runs, batches_of, steps=6)

    well, ill = trained(False), trained(True)
    assert any(value.isnan().any() for value in ill[2].values()), "the run did not diverge"
    for k in (0, 1, 3, 4, 5):
        for name, value in well[k].items():
            assert torch.equal(ill[k][name], value), f"run {k}, {name}"


def test_skipped_runs_get_no_logits_and_no_gradient(architecture, tiny_backbone, randomize, batches_of):
    attached = attach_runs(tiny_backbone(architecture, torch.float64), MIXED, randomize)
    everyone = [batches_of(run.rows, run.width, 0) for run in MIXED]
    some = [batch if k in (1, 4) else None for k, batch in enumerate(everyone)]
    full, logits = attached(everyone), attached(some)
    assert [output is not None for output in logits] == [False, True, False, False, True, False]
    for k in (1, 4):
        torch.testing.assert_close(logits[k], full[k], rtol=0, atol=1e-12)
    (logits[1].sum() + logits[4].sum()).backward()
    for k in range(len(MIXED)):
        has_gradient = [p.grad is not None for p in attached.run(k).trained().values()]
        assert all(has_gradient) if k in (1, 4) else not any(has_gradient)


def test_a_run_of_one_row_and_one_token(architecture, tiny_backbone, randomize, batches_of):
    """The smallest batch beside the longest; a run's logits have its own rows and labels."""
    runs = MIXED[:2]
    attached = attach_runs(tiny_backbone(architecture, torch.float64, dropout=0.1), runs, randomize).train()
    short, long = {key: x[:1, :1] for key, x in batches_of(1, 2, 0).items()}, batches_of(2, 24, 1)
    packed, _ = attached([short, long])
    (alone,) = attach_runs(tiny_backbone(architecture, torch.float64, dropout=0.1), runs[:1], randomize).train()(
        [short]
    )
    assert packed.shape == (1, 2)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)


def test_without_a_head_a_run_gets_its_own_tokens_back(architecture, tiny_backbone, batches_of):
    attached = attach(tiny_backbone(architecture, torch.float64), [run.method for run in MIXED[:2]])
    batches = [batches_of(4, 6, 0), batches_of(2, 11, 1)]
    for k, hidden in enumerate(attached(batches)):
        expected = attached([batch if i == k else None for i, batch in enumerate(batches)])[k]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-12)
        assert hidden.shape == (*batches[k]["input_ids"].shape, 16)


def test_microbatches_have_masks_of_their_own(architecture, tiny_backbone, randomize, batches_of):
    attached = attach_runs(tiny_backbone(architecture, dropout=0.3), MIXED[:1], randomize).train()
    batch, outputs = batches_of(4, 6, 0), []
    for attached.streams[0].step, attached.streams[0].micro_batch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        outputs.append(attached([batch])[0])
    assert torch.equal(outputs[0], outputs[3])
    assert not any(torch.allclose(outputs[i], outputs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


class TestBatches:
    @pytest.fixture
    def attached(self, architecture, tiny_backbone, randomize):
        return attach_runs(tiny_backbone(architecture), MIXED[:2], randomize)

    def test_one_batch_per_run(self, attached, batches_of):
        with pytest.raises(ValueError, match="1 batches for 2 runs"):
            attached([batches_of(2, 5, 0)])

    def test_something_must_run(self, attached):
        with pytest.raises(ValueError, match="every batch is None"):
            attached([None, None])

    @pytest.mark.parametrize("without", [[0], [1], [0, 1]], ids=str)
    def test_no_batch_without_a_mask(self, attached, batches_of, without):
        """The pack would pad it, and it would attend to the padding."""
        batches = [batches_of(2, 5, 0), batches_of(2, 9, 0)]
        for k in without:
            del batches[k]["attention_mask"]
        with pytest.raises(ValueError, match=r"the batch of run \d has .*expected input_ids and attention_mask"):
            attached(batches)

    def test_token_types_in_all_or_none(self, attached, batches_of):
        batches = [batches_of(2, 5, 0), batches_of(2, 9, 0)]
        batches[1].pop("token_type_ids", None)
        batches[0]["token_type_ids"] = torch.zeros(2, 5, dtype=torch.long)
        with pytest.raises(ValueError, match="the batch of run 1 has"):
            attached(batches)
