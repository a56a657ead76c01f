"""The loop: order, accumulation, selection, packs against solo runs, divergence, interruption."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Adafactor as TransformersAdafactor

from peft_bench.training.adafactor import Adafactor
from peft_bench.training.checkpoint import load_checkpoint, save_checkpoint
from peft_bench.training.loop import Run, data_order, restore_best, train
from peft_bench.training.optimizers import BertAdam, make_optimizer, make_schedule
from peft_methods.lora import Lora
from peft_methods.protocols import ParameterGroup
from peft_methods.state import trained_tensors
from tests.benchmarks.conftest import METHODS

MIXED: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"seed": 1, "learning_rate": 1e-3, "epochs": 4}),
    ("houlsby", {"seed": 2, "learning_rate": 3e-3, "batch_size": 5, "num_labels": 3, "micro_batch_size": 2}),
    ("bitfit", {"seed": 3, "learning_rate": 1e-2, "num_labels": 1, "optimizer": "bert_adam", "weight_decay": 0.1}),
    ("prompt", {"seed": 4, "optimizer": "adafactor", "learning_rate": 1e-2, "parameter_scaling": True}),
]


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_pack_equals_solo_runs(toy_pack, accelerator, checkpointing):
    """Different methods, seeds, rates, batch sizes, accumulation, optimizers, tasks and lengths; dropout on."""
    runs = [(name, fields | {"gradient_checkpointing": checkpointing}) for name, fields in MIXED]
    attached, jobs = toy_pack(runs, torch.float64)
    train(attached, jobs, accelerator)
    packed = [trained_tensors(attached, k) for k in range(len(runs))]
    for k, job in enumerate(jobs):
        solo, _ = toy_pack([runs[k]], torch.float64)
        train(solo, [job], accelerator)
        assert largest_difference(packed[k], trained_tensors(solo)) < 1e-8


def test_same_seed_gives_the_same_bits_and_another_seed_others(toy_pack, accelerator):
    results = []
    for seed in (1, 1, 2):
        attached, jobs = toy_pack([("lora", {"seed": seed})])
        train(attached, jobs, accelerator)
        results.append(trained_tensors(attached))
    assert largest_difference(results[0], results[1]) == 0
    assert largest_difference(results[0], results[2]) > 1e-4


def test_accumulation_gives_the_gradient_of_the_whole_batch(toy_pack, accelerator):
    results = []
    for micro in (None, 3):
        attached, jobs = toy_pack([("houlsby", {"micro_batch_size": micro})], torch.float64, dropout=0.0)
        train(attached, jobs, accelerator)
        results.append(trained_tensors(attached))
    assert largest_difference(*results) < 1e-10


def test_a_diverging_run_stops_and_the_others_do_not_notice(toy_pack, accelerator):
    bad = ("houlsby", {"learning_rate": 1e300, "max_grad_norm": 1e300, "seed": 5})
    attached, jobs = toy_pack([bad, MIXED[0]], torch.float64)
    runs = train(attached, jobs, accelerator)
    assert runs[0].position.diverged is not None
    assert "loss was" in runs[0].position.diverged or "not finite" in runs[0].position.diverged
    assert runs[1].position.diverged is None
    assert runs[1].position.step == runs[1].total_steps
    solo, _ = toy_pack([MIXED[0]], torch.float64)
    train(solo, [jobs[1]], accelerator)
    assert largest_difference(trained_tensors(attached, 1), trained_tensors(solo)) < 1e-8


class Penalized(Lora):
    """LoRA with all that a method may ask of the loop: a rate of the head's own, a penalty, a word after each step."""

    penalty, seen = 0.0, list[tuple[int, int, dict[str, torch.Tensor]]]()

    def parameter_groups(self, trained):
        return [ParameterGroup({name: p for name, p in trained.items() if name.startswith("head.")}, rate=0.0)]

    def extra_loss(self, modules):
        return self.penalty * sum(p.square().sum() for module in modules.values() for p in module.parameters())

    def after_step(self, modules, step, total_steps):
        gradients = {f"{at}.{n}": p.grad.clone() for at, m in modules.items() for n, p in m.named_parameters()}
        self.seen.append((step, total_steps, gradients))


@pytest.mark.parametrize("micro", [None, 3])
def test_what_a_method_asks_of_the_loop(toy_pack, accelerator, monkeypatch, micro):
    """Beside a run that asks for nothing; the penalty counts once a step, however many pieces its batch has."""
    lora: Any = METHODS["lora"]
    monkeypatch.setitem(METHODS, "penalized", Penalized(**dataclasses.asdict(lora)))
    fields = {"seed": 1, "epochs": 1, "micro_batch_size": micro, "max_grad_norm": 0.0, "learning_rate": 1e-6}
    losses, gradients = [], []
    for penalty in (0.0, 0.5):
        monkeypatch.setattr(Penalized, "penalty", penalty)
        monkeypatch.setattr(Penalized, "seen", [])
        attached, jobs = toy_pack([("lora", {"seed": 2}), ("penalized", fields)], torch.float64)
        start = trained_tensors(attached, 1)
        run = train(attached, jobs, accelerator)[1]
        moved = {name for name, tensor in trained_tensors(attached, 1).items() if not tensor.equal(start[name])}
        assert moved == {name for name in start if name.startswith("sites.")}
        assert [seen[:2] for seen in Penalized.seen] == [(i + 1, run.total_steps) for i in range(run.total_steps)]
        losses.append(run.position.history[0]["train_loss"] * run.total_steps)
        gradients.append(Penalized.seen[0][2])
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient - gradients[0][name], 2 * 0.5 * start[f"sites.{name}"])
    sizes = sum(start[f"sites.{name}"].square().sum().item() for name in gradients[0])
    assert losses[1] - losses[0] == pytest.approx(0.5 * sizes * run.total_steps, rel=1e-3)


class Killed(RuntimeError):
    pass


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_a_killed_pack_resumes_bit_for_bit(toy_pack, accelerator, tmp_path, stop):
    ids, path = ["a", "b", "c", "d"], tmp_path / "state.safetensors"
    attached, jobs = toy_pack(MIXED)
    whole = train(attached, jobs, accelerator)
    expected = [trained_tensors(attached, k) for k in range(3)]

    def interrupt(runs):
        if runs[0].position.step == stop:
            save_checkpoint(runs, ids, path)
        if runs[0].position.step == stop + 1:  # one step that the checkpoint does not know
            raise Killed

    attached, jobs = toy_pack(MIXED)
    with pytest.raises(Killed):
        train(attached, jobs, accelerator, on_step=interrupt)
    attached, jobs = toy_pack(MIXED)
    resumed = train(attached, jobs, accelerator, resume=lambda runs: load_checkpoint(runs, ids, path))
    for k in range(3):
        assert largest_difference(trained_tensors(attached, k), expected[k]) == 0
        assert resumed[k].position.history == whole[k].position.history
        assert largest_difference(resumed[k].best, whole[k].best) == 0
        assert resumed[k].position.tokens == whole[k].position.tokens


def test_a_truncated_or_foreign_checkpoint_is_set_aside(toy_pack, accelerator, tmp_path, capsys):
    attached, jobs = toy_pack([MIXED[0]])
    path = tmp_path / "state.safetensors"
    runs = [Run(0, jobs[0], attached)]
    assert load_checkpoint(runs, ["a"], path) is False
    save_checkpoint(runs, ["a"], path)
    whole = path.read_bytes()
    for content, ids in ((whole[: len(whole) // 2], ["a"]), (whole, ["other"])):
        path.write_bytes(content)
        assert load_checkpoint(runs, ids, path) is False
        assert not path.exists()
        aside = path.with_name(path.name + ".unreadable")
        assert aside.read_bytes() == content
        assert "set aside as" in capsys.readouterr().out


def test_the_best_epoch_is_the_first_highest_validation_score(toy_pack, accelerator):
    attached, jobs = toy_pack([("lora", {"epochs": 6, "learning_rate": 1e-2})])
    run = train(attached, jobs, accelerator)[0]
    values = [point["scores"]["validation"]["accuracy"] for point in run.position.history]
    assert len(values) == 6
    assert run.position.best_epoch == values.index(max(values)) + 1
    restore_best(run)
    run.evaluate(accelerator)
    assert run.position.history[-1]["scores"]["validation"]["accuracy"] == max(values)


def test_max_steps_and_evaluate_every_steps(toy_pack, accelerator):
    attached, jobs = toy_pack([("lora", {"epochs": 50, "max_steps": 7, "evaluate_every_steps": 3})])
    run = train(attached, jobs, accelerator)[0]
    assert [point["step"] for point in run.position.history] == [3, 6, 7]


def test_training_learns(toy_pack, accelerator):
    attached, jobs = toy_pack([("houlsby", {"epochs": 30, "learning_rate": 1e-2})])
    history = train(attached, jobs, accelerator)[0].position.history
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]


def test_bert_adam_is_adam_without_bias_correction():
    """Three steps written out in numpy."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(3, 3, 2))
    lr, b1, b2, eps, decay = 0.1, 0.9, 0.999, 1e-6, 0.01
    p, m, v = start.copy(), np.zeros((3, 2)), np.zeros((3, 2))
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = BertAdam([parameter], lr, (b1, b2), eps, decay)
    for g in gradients:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * (m / (np.sqrt(v) + eps) + decay * p)
        parameter.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), p, rtol=1e-12)


def original_adafactor(start, gradients, lr, decay, factored, scaling):
    """google-research/t5x, adafactor.py, written out step by step in numpy (float64)."""
    p, v, rows, columns = start.copy(), np.zeros_like(start), np.zeros(len(start)), np.zeros(start.shape[1])
    for t, g in enumerate(gradients, start=1):
        beta2, square = 1 - t**-0.8, g**2 + 1e-30
        if factored:
            rows = beta2 * rows + (1 - beta2) * square.mean(1)
            columns = beta2 * columns + (1 - beta2) * square.mean(0)
            update = g * np.sqrt(rows.mean() / np.outer(rows, columns))
        else:
            v = beta2 * v + (1 - beta2) * square
            update = g / np.sqrt(v)
        update = update / max(1, np.sqrt((update**2).mean()))
        scale = max(np.sqrt((p**2).mean()), 1e-3) if scaling else 1
        p = (1 - decay) * p - lr * scale * update
    return p


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize(("shape", "factored"), [((100, 16), False), ((127, 200), False), ((150, 128), True)])
def test_adafactor_equals_the_original_rule(shape, factored, scaling):
    """20 steps with Lester et al.'s values; from 128 rows and columns on, the original factors a prompt, too."""
    rng = np.random.default_rng(0)
    start, gradients = rng.uniform(-0.5, 0.5, shape), rng.normal(size=(20, *shape)) * rng.uniform(0.1, 10, (20, 1, 1))
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = Adafactor([parameter], 0.3, 1e-5, scaling)
    for g in gradients:
        parameter.grad = torch.tensor(g)
        optimizer.step()
    expected = original_adafactor(start, gradients, 0.3, 1e-5, factored, scaling)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("shape", [(150, 128), (60,)])
def test_adafactor_equals_that_of_transformers_where_both_factor(shape, scaling):
    """A matrix of at least 128 x 128, a vector; transformers' decay is times its learning rate."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.rand(shape, dtype=torch.float64))
    theirs = torch.nn.Parameter(ours.detach().clone())
    lr, settings = 0.3, {"scale_parameter": scaling, "relative_step": False, "warmup_init": False}
    decay = 0.0 if scaling else 1e-2
    optimizers = (
        Adafactor([ours], lr, decay, scaling),
        TransformersAdafactor([theirs], lr, weight_decay=decay / lr, **settings),
    )
    for _ in range(20):
        ours.grad = torch.randn(shape, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_only_matrices_decay(toy_config):
    cfg = toy_config(weight_decay=0.5, learning_rate=0.1).trainer
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,)))
    optimizer = make_optimizer([ParameterGroup({"matrix": matrix, "vector": vector})], cfg)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(matrix, torch.tensor(1 - 0.1 * 0.5))
    assert torch.equal(vector, torch.ones(2))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("bert_linear", [0, 0.5, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_schedules(toy_config, schedule, expected):
    cfg = toy_config(schedule=schedule, warmup_ratio=1 / 3, learning_rate=1.0).trainer
    optimizer = make_optimizer([ParameterGroup({"w": torch.nn.Parameter(torch.zeros(2, 2))})], cfg)
    scheduler = make_schedule(optimizer, cfg, 6)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected)


def test_bert_linear_is_the_released_schedule(toy_config):
    """optimization.py: tf.train.polynomial_decay to 0 over all steps, step / warm-up while step < warm-up."""
    total, rate = 1003, 3e-4
    cfg = toy_config(schedule="bert_linear", warmup_ratio=0.1, learning_rate=rate).trainer
    optimizer = make_optimizer([ParameterGroup({"w": torch.nn.Parameter(torch.zeros(2, 2))})], cfg)
    scheduler = make_schedule(optimizer, cfg, total)
    for step in range(total):
        decayed = (rate - 0.0) * (1 - step / total) ** 1.0 + 0.0
        is_warmup = float(step < int(total * 0.1))
        expected = (1.0 - is_warmup) * decayed + is_warmup * rate * step / int(total * 0.1)
        assert scheduler.get_last_lr()[0] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_data_order(toy_config, toy_split):
    lengths = toy_split(1000).lengths
    cfg, grouped = toy_config(), toy_config(group_by_length=True)
    orders = [data_order(lengths, c, epoch) for c in (cfg, grouped) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], data_order(lengths, copy.deepcopy(cfg), 0))

    def padding(order):
        return sum(lengths[b].max() * len(b) - lengths[b].sum() for b in np.split(order, 125))

    assert padding(orders[2]) < 0.3 * padding(orders[0])


# Training losses of MIXED at every evaluation, made by this test's own code (float64, CPU). A change here is a change
# of results: raise LOOP_VERSION in benchmarks/runs/identity.py (or the method's result_version) and say so.
GOLDEN = {
    "lora": [0.6963881885, 0.6792046904, 0.6944653785, 0.6907389609],
    "houlsby": [1.109382035, 1.099120648, 1.09330033],
    "bitfit": [5.411666014, 2.242202001, 1.934698982],
    "prompt": [0.6941839852, 0.6975802345, 0.6978570047],
}


def test_golden_loss_curves(toy_pack, accelerator):
    attached, jobs = toy_pack(MIXED, torch.float64)
    runs = train(attached, jobs, accelerator)
    for (name, _), run in zip(MIXED, runs, strict=True):
        assert [point["train_loss"] for point in run.position.history] == pytest.approx(GOLDEN[name], rel=1e-6)


WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"seed": 1, "micro_batch_size": 3, "max_grad_norm": 3.0, "eps": 1e-3, "learning_rate": 1e-2}),
    ("lora", {"seed": 2, "loss_reduction": "example_sum", "max_grad_norm": 3.0, "eps": 1e-3, "learning_rate": 1e-2}),
    ("prompt", {"seed": 3, "micro_batch_size": 3, "optimizer": "adafactor", "learning_rate": 1e-1}),
    ("prompt", {"seed": 4, "loss_reduction": "example_sum", "label_smoothing": 0.1, "z_loss": 1e-4}),
]
# Likewise, of tokens to be written: WRITTEN on an encoder-decoder of each kind and on a decoder.
GOLDEN_WRITTEN: dict[str, list[list[float]]] = {
    "t5_gated": [
        [4.55951701, 4.532987392, 4.596387601],
        [29.32473791, 29.03955397, 28.86281104],
        [4.600699145, 4.567628875, 4.541673386],
        [26.43962293, 25.8964513, 25.89130994],
    ],
    "bart": [
        [4.40680081, 4.357782835, 4.321769625],
        [32.38113394, 31.45036393, 30.84492048],
        [4.35040173, 4.296872225, 4.271188572],
        [29.93448523, 30.15160631, 29.92189255],
    ],
    "gpt2": [
        [4.524975194, 4.482691626, 4.370432969],
        [28.75268623, 27.93819952, 27.76741564],
        [4.251481919, 4.1980081, 4.153658901],
        [25.20701065, 24.94635396, 25.00445951],
    ],
}


@pytest.mark.parametrize("architecture", GOLDEN_WRITTEN)
def test_golden_loss_curves_of_texts(toy_texts, accelerator, architecture):
    attached, jobs = toy_texts(architecture, WRITTEN)
    runs = train(attached, jobs, accelerator)
    for run, golden in zip(runs, GOLDEN_WRITTEN[architecture], strict=True):
        assert [point["train_loss"] for point in run.position.history] == pytest.approx(golden, rel=1e-6)
