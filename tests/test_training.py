"""Fine-tuning: what is minimised, schedules in time, hardening, resuming, and what stops it."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from binarize_cli.binarize.batchnorm import reestimate, reestimate_if_better
from binarize_cli.binarize.convert import binary_weights, to_latents
from binarize_cli.binarize.layers import BinaryLinear
from binarize_cli.binarize.prepare import quantizers
from binarize_cli.binarize.respread import respread
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.device import autocast_type, find_device
from binarize_cli.errors import Diverged, InputError, Interrupted
from binarize_cli.models.load import load
from binarize_cli.models.names import resolve
from binarize_cli.quantizers.functions import sign
from binarize_cli.recipe import Distill, Recipe, Train
from binarize_cli.training import state
from binarize_cli.training.display import Display
from binarize_cli.training.flips import FlipCounter
from binarize_cli.training.objective import Objective, distillation
from binarize_cli.training.optimizer import check_optimizer, make_optimizer, make_scheduler
from binarize_cli.training.stop import StopRequest
from binarize_cli.training.teacher import LogitCache, Teacher

CPU = torch.device("cpu")
TIMED = ("seconds", "images_per_second")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))


# --- what is minimised -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_distillation_is_the_formula(temperature):
    student, teacher = draw(6, 10), 3 * draw(6, 10, seed=1)
    p, q = (log_softmax(x.numpy().astype(float) / temperature) for x in (teacher, student))
    expected = temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()
    assert float(distillation(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def test_the_objective_mixes_cross_entropy_and_distillation():
    teacher = nn.Linear(4, 10)
    inputs, logits, targets = draw(6, 4), draw(6, 10, seed=1), torch.arange(6)
    loss = Objective(Distill(weight=0.3, temperature=4.0), Teacher(teacher), 0.0)(inputs, logits, targets, 0)
    entropy = -log_softmax(logits.numpy())[np.arange(6), np.arange(6)].mean()
    distance = float(distillation(logits, teacher(inputs).detach(), 4.0))
    assert float(loss) == pytest.approx(0.7 * entropy + 0.3 * distance, rel=1e-5)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(("weight", "taught"), [(0.0, True), (0.5, False)])
def test_without_a_teacher_or_a_weight_for_it_cross_entropy_is_whole(weight, taught):
    logits, targets = draw(6, 10), torch.arange(6)
    objective = Objective(Distill(weight=weight), Teacher(nn.Linear(4, 10)) if taught else None, 0.0)
    entropy = -log_softmax(logits.numpy())[np.arange(6), np.arange(6)].mean()
    assert float(objective(draw(6, 4), logits, targets, 0)) == pytest.approx(entropy, rel=1e-5)


class Block(nn.Module):
    """Two layers, as a residual block has."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.two(self.one(x))


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_distance_of_the_blocks_is_added_whatever_the_logits_weigh(weight):
    nets = [nn.Sequential(Block(), Block()) for _ in ("teacher", "student")]
    teacher, inputs, targets = Teacher(nets[0]), draw(6, 4), torch.arange(6) % 4
    teacher.observe_blocks(nets[1])
    with torch.no_grad():
        logits = nets[1](inputs)
        alone, both = (
            float(Objective(Distill(weight=weight, blocks=blocks), teacher, 0.0)(inputs, logits, targets, 0))
            for blocks in (0.0, 2.0)
        )
        apart, x, y = [], inputs, inputs
        for wanted, given in zip(*nets, strict=True):
            x, y = wanted(x), given(y)
            apart.append(float(((y - x) ** 2).mean() / x.var()))
    assert both - alone == pytest.approx(2 * np.mean(apart), rel=1e-4)


def test_the_objective_takes_the_soft_targets_of_mixup():
    logits = draw(6, 10)
    soft = torch.softmax(draw(6, 10, seed=2), dim=1)
    loss = Objective(Distill(), None, 0.0)(draw(6, 4), logits, soft, 0)
    expected = -(soft.numpy() * log_softmax(logits.numpy())).sum(1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_float32_whatever_the_logits_are():
    rule = Objective(Distill(), Teacher(nn.Linear(4, 10)), 0.0)
    loss = rule(draw(6, 4), draw(6, 10).bfloat16(), torch.arange(6), 0)
    assert loss.dtype == torch.float32


class Counted(nn.Linear):
    """A teacher that counts its batches."""

    asked = 0

    def forward(self, inputs):
        self.asked += 1
        return super().forward(inputs)


def lessons(folder, facts, steps):
    """What a teacher says at these steps, in epochs of three batches, and how often it had to think."""
    torch.manual_seed(0)
    net = Counted(4, 10)
    teacher = Teacher(net, LogitCache(folder, facts, batches=3))
    return [teacher(draw(6, 4, seed=step), step) for step in steps], net.asked


def test_kept_logits_are_the_teachers_and_spare_it_the_work(tmp_path):
    first, asked = lessons(tmp_path, {"seed": 0}, range(7))
    assert asked == 7
    again, asked = lessons(tmp_path, {"seed": 0}, range(7))
    assert asked == 1, "two epochs were whole, the third was not"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    resumed, asked = lessons(tmp_path, {"seed": 0}, [4, 5, 6])
    assert asked == 1 and all(torch.equal(a, b) for a, b in zip(first[4:], resumed, strict=True))


def test_damaged_logits_are_named_and_computed_again(tmp_path, capsys):
    first, _ = lessons(tmp_path, {"seed": 0}, range(3))
    (kept,) = tmp_path.rglob("epoch-0.pt")
    kept.write_bytes(kept.read_bytes()[:-20])
    again, asked = lessons(tmp_path, {"seed": 0}, range(3))
    assert asked == 3 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert "epoch-0.pt" in capsys.readouterr().err and lessons(tmp_path, {"seed": 0}, range(3))[1] == 0


def test_logits_of_other_facts_or_of_half_an_epoch_are_not_taken(tmp_path):
    lessons(tmp_path, {"seed": 0}, [1, 2])  # resumed in mid-epoch: nothing is kept
    assert lessons(tmp_path, {"seed": 0}, range(3))[1] == 3
    assert lessons(tmp_path, {"seed": 1}, range(3))[1] == 3


def test_logits_of_more_bytes_than_the_limit_are_not_collected(tmp_path, monkeypatch):
    monkeypatch.setattr("binarize_cli.training.teacher.LIMIT", 3 * 6 * 10 * 4 - 1)  # one byte short
    kept = LogitCache(tmp_path, {}, batches=3)
    for step in range(3):
        kept.add(step, draw(6, 10))
        assert kept.seen == (-1, [])
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_targets_are_smoothed_once_with_and_without_mixup(mixup, make_trainer, tmp_path):
    """The gradient of cross-entropy at the logits is softmax - target, which shows the target in force."""
    seen = []

    def spy(inputs, logits, targets, step):
        logits.retain_grad()
        loss = rule(inputs, logits, targets, step)
        gradient = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        seen.append(torch.softmax(logits.detach(), 1) - len(logits) * gradient)
        return loss

    rule = Objective(Distill(), None, 0.2)
    make_trainer(tmp_path, objective=spy, mixup=mixup, smoothing=0.2).run()
    lowest = torch.cat(seen).amin(dim=1)
    torch.testing.assert_close(lowest, torch.full_like(lowest, 0.2 / 10), rtol=0, atol=1e-5)


# --- schedules in time -----------------------------------------------------------------------------------


def rates(sched: str, steps: int = 100, **train) -> np.ndarray:
    rule = Train(sched=sched, **train)
    net = nn.Linear(3, 3)
    optimizer = make_optimizer(net, rule)
    scheduler = make_scheduler(optimizer, rule, steps)
    found = []
    for number in range(steps):
        scheduler.step_update(number)
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    return np.array(found)


SHAPES = {
    "cosine": lambda t: (1 + np.cos(np.pi * t)) / 2,
    "linear": lambda t: 1 - t,
    "constant": np.ones_like,
}


@pytest.mark.parametrize("sched", SHAPES)
def test_the_learning_rate_warms_up_and_then_follows_its_shape(sched):
    lr, low = 0.1, 1e-3
    found = rates(sched, lr=lr, min_lr=low, warmup=0.1)
    np.testing.assert_allclose(found[:10], low + (lr - low) * np.arange(10) / 10, rtol=1e-9)
    t = np.arange(10, 100) / 100
    np.testing.assert_allclose(found[10:], low + (lr - low) * SHAPES[sched](t), rtol=1e-9)
    assert found[-1] == (lr if sched == "constant" else pytest.approx(low, abs=0.02 * lr))


def test_without_warm_up_the_first_step_has_the_whole_learning_rate():
    assert rates("cosine", lr=0.1, warmup=0.0)[0] == 0.1


def test_a_learning_rate_below_the_floor_is_not_raised_by_warm_up():
    assert rates("constant", lr=1e-8, min_lr=1e-6, warmup=0.5).max() == 1e-8


@pytest.mark.parametrize(("task", "atol"), [("bw", 1e-7), ("bwa", 1e-6)])
def test_what_binarization_adds_has_a_learning_rate_of_its_own(task, atol, make_trainer, tmp_path):
    """A step of SGD with that rate moves it so many times as far, and nothing else differently.

    `atol` is what float32 rounds: a parameter near 1 is off by 6e-8, and that three times over.
    """
    moved = {}
    for factor in (1.0, 3.0):
        setting = {"opt": "sgd", "lr": 1e-3, "warmup": 0.0, "sched": "constant", "clip_grad": None}
        fine_tuning = make_trainer(
            tmp_path / str(factor), task=task, images=8, latent_lr=factor, weight_decay=0.0, **setting
        )
        before = {name: p.detach().clone() for name, p in fine_tuning.net.named_parameters()}
        fine_tuning.run()
        moved[factor] = {name: p.detach() - before[name] for name, p in fine_tuning.net.named_parameters()}
    float_net = load(resolve("digits_resnet"), pretrained=False).net
    kept = {name for name, _ in float_net.named_parameters()} & set(moved[1.0])
    kinds = {name.rsplit(".", 1)[-1] for name in set(moved[1.0]) - kept}
    inputs = {"threshold", "log_scale", "gain1", "gain2", "move_in", "slope", "move_out"}
    assert kinds == ({"latent"} if task == "bw" else {"latent"} | inputs)
    assert "linear.weight" in kept and moved[1.0]["linear.weight"].abs().sum() > 0
    for name, step in moved[1.0].items():
        torch.testing.assert_close(moved[3.0][name], step if name in kept else 3 * step, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("latent_lr", [1.0, 3.0])
def test_weight_decay_leaves_out_what_the_model_leaves_out(latent_lr):
    net = load(resolve("digits_vit"), pretrained=False).net
    to_latents(net, ["blocks.0.mlp.fc1"], quantizers(Recipe())[0])
    optimizer = make_optimizer(net, Train(weight_decay=0.1, latent_lr=latent_lr))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        spared = parameter.ndim < 2 or name in net.no_weight_decay()
        assert decays.pop(id(parameter)) == (0.0 if spared else 0.1), name
    assert not decays and net.pos_embed.ndim > 1


def test_a_float_layer_of_many_inputs_takes_smaller_steps():
    """The first step of AdamW is as large as the learning rate, in every weight that has a gradient."""
    net = load(resolve("digits_vit"), pretrained=False).net
    to_latents(net, ["blocks.0.mlp.fc1"], quantizers(Recipe())[0])
    optimizer = make_optimizer(net, Train(lr=4e-3, latent_lr=3.0, lr_fan_in=16))
    make_scheduler(optimizer, Train(lr=4e-3, sched="constant", warmup=0.0), 10)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    step = {name: float((before[name] - p.detach()).abs().max()) for name, p in net.named_parameters()}
    expected = {
        "patch_embed.proj.weight": 4e-3,  # 1 x 2 x 2 inputs
        "blocks.0.attn.qkv.weight": 1e-3,  # 64
        "blocks.0.attn.qkv.bias": 4e-3,
        "blocks.0.mlp.fc2.weight": 2.5e-4,  # 256
        "blocks.0.norm1.weight": 4e-3,
        "pos_embed": 4e-3,
        "blocks.0.mlp.fc1.source.latent": 3 * 4e-3,
    }
    assert {name: step[name] for name in expected} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("harden", "soft"), [(0.25, 15), (0.1, 18), (0.0, 20)])
def test_f_is_sign_in_the_last_share_and_the_schedule_is_through_just_before(
    harden, soft, make_trainer, tmp_path
):
    fine_tuning = make_trainer(tmp_path, images=32, epochs=5, harden=harden)
    quantizer, objective, seen = fine_tuning.binary.quantizer, fine_tuning.step.objective, []
    x = torch.linspace(-0.01, 0.01, 7)

    def spy(*args):
        seen.append(
            (quantizer.mode == "hard", float(quantizer.values["mu"]), torch.equal(quantizer.F(x), sign(x)))
        )
        return objective(*args)

    fine_tuning.step.objective = spy
    rows = fine_tuning.run()
    hard, mu, is_sign = zip(*seen, strict=True)
    assert len(seen) == 20 and list(hard) == list(is_sign) == [False] * soft + [True] * (20 - soft)
    assert mu[0] == 5.0 and mu[soft - 1] == 60.0 and set(mu[soft:]) <= {60.0}
    factors = np.array(mu[1:soft]) / mu[: soft - 1]
    np.testing.assert_allclose(factors, factors[0], rtol=1e-4)
    assert (rows[0].parameters, rows[0].hard) == ({"mu": 5.0}, False)
    assert (rows[-1].parameters, rows[-1].hard) == ({"mu": 60.0}, harden > 0)


@pytest.mark.parametrize(("method", "fresh"), [("bnn++", True), ("pc", True), ("bc", False), ("bnn", False)])
def test_hardening_starts_afresh_where_f_was_soft(method, fresh, make_trainer, tmp_path):
    """The pair is BinaryConnect's from then on, and the moments of the latents begin again."""
    fine_tuning = make_trainer(tmp_path, method, images=32, epochs=2, harden=0.5, warmup=0.0)
    quantizer, objective = fine_tuning.binary.quantizer, fine_tuning.step.objective
    ages, slopes = [], []
    latent = next(weight.latent for _, weight in binary_weights(fine_tuning.net))
    x = torch.linspace(-9, 9, 7)

    def spy(*args):
        ages.append(int(fine_tuning.step.optimizer.state[latent].get("step", 0)))
        slopes.append(quantizer.B(x))
        return objective(*args)

    fine_tuning.step.objective = spy
    fine_tuning.run()
    assert ages == [0, 1, 2, 3, *([0, 1, 2, 3] if fresh else [4, 5, 6, 7])]
    last = torch.full_like(x, quantizer.normalize) if fresh else quantizer.method.B(x, quantizer.values)
    assert all(torch.equal(slope, last) for slope in slopes[4:])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_respread_keeps_signs_order_and_means_and_makes_the_weights_normal(layout):
    net = nn.Sequential(nn.Conv2d(64, 5, 3)).to(memory_format=layout)
    made = to_latents(net, ["0"], quantizers(Recipe(method="bnn++"))[0])
    latent = made[0].source.latent
    with torch.no_grad():
        latent.copy_(latent.sign() * (1 + latent.abs()))  # none near zero, as a soft F leaves them
        latent[0, 0, 0, 0] = -0.0
    before = latent.detach().clone()
    signs = made[0].source.signs().clone()
    respread(made)
    assert torch.equal(made[0].source.signs(), signs) and latent.stride() == before.stride()
    rows, old = latent.detach().abs().flatten(1).numpy(), before.abs().flatten(1).numpy()
    np.testing.assert_allclose(rows.mean(1), old.mean(1), rtol=1e-5)
    for row, was in zip(rows, old, strict=True):
        in_order = row[np.argsort(was, kind="stable")]
        assert (np.diff(in_order) > 0).all()
        mean = (2 / math.pi) ** 0.5  # of |normal|
        for share in (0.1, 0.3, 2.0):
            below = math.erf(share * mean / 2**0.5)
            assert (in_order < share * row.mean()).mean() == pytest.approx(below, abs=5e-3)


def test_a_network_is_respread_once_and_only_if_f_was_soft(make_trainer, tmp_path):
    for method, moved in (("bnn++", True), ("bc", False)):
        binary = make_trainer(tmp_path / method, method).binary
        latent = next(weight.latent for _, weight in binary_weights(binary.net))
        seen = [latent.detach().clone()]
        for _ in range(2):
            binary.harden()
            seen.append(latent.detach().clone())
        assert torch.equal(seen[0], seen[1]) is not moved and torch.equal(seen[1], seen[2])


# --- bookkeeping of the loop -----------------------------------------------------------------------------


def a_binary_layer(latents: list[list[float]]) -> nn.Module:
    quantizer, _ = quantizers(Recipe(method="bc"))
    weight = torch.tensor(latents)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    return nn.Sequential(BinaryLinear(layer, LatentWeight(weight, quantizer)))


def test_the_flip_ratio_counts_signs_since_the_last_look():
    net = a_binary_layer([[1.0, -1.0, 0.5, -0.5], [2.0, 2.0, -2.0, 0.0]])
    counter = FlipCounter(net)
    latent = net[0].source.latent
    assert counter.count().ratio == 0
    with torch.no_grad():
        latent[0, 0], latent[1, 1], latent[1, 3] = -1.0, -0.1, -0.1  # the zero counts as +1
        latent[0, 1] = -7.0  # no flip
    assert counter.count().ratio == 3 / 8
    assert counter.count().ratio == 0
    with torch.no_grad():
        latent[0, 0] = 1.0
    assert counter.count().ratio == 1 / 8
    assert FlipCounter(nn.Linear(2, 2)).count() is None


def test_the_average_of_the_weights_is_what_is_scored_and_kept(make_trainer, tmp_path):
    raw, scored, signs = [], [], []

    def score(net):
        if has_latents(net):
            raw.append(fine_tuning.net.layer1[0].conv1.source.latent.detach().clone())
            scored.append(net.layer1[0].conv1.source.latent.detach().clone())
        else:
            signs.append(net.layer1[0].conv1.source.signs)
        return make_scored()

    fine_tuning = make_trainer(
        tmp_path, "bnn++", images=8, epochs=3, ema=0.9, warmup=0.0, harden=0.0, score=score
    )
    fine_tuning.run()
    average = raw[0]
    assert len(raw) == len(signs) == 4
    for number in range(4):
        average = 0.9 * average + 0.1 * raw[number] if number else average
        torch.testing.assert_close(scored[number], average, rtol=0, atol=1e-7)
        assert torch.equal(signs[number], sign(scored[number]).to(torch.int8))
    assert not torch.equal(raw[3], scored[3])
    assert torch.equal(fine_tuning.net.layer1[0].conv1.source.latent, scored[3])


def has_latents(net) -> bool:
    """Whether a network that is scored is the one in training, not the one that would be packed."""
    return any(isinstance(module, LatentWeight) for module in net.modules())


def test_an_epoch_is_scored_on_what_would_be_packed_and_training_is_not_rounded(make_trainer, tmp_path):
    seen = []

    def score(net):
        if not has_latents(net):
            floats = [t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()]
            seen.append(all(torch.equal(t.half().float(), t) for t in floats))
        return make_scored()

    fine_tuning = make_trainer(tmp_path, images=8, epochs=2, harden=0.5, score=score)
    names = list(fine_tuning.net.state_dict())
    fine_tuning.run()
    assert seen == [True] * 3
    assert list(fine_tuning.net.state_dict()) == names and has_latents(fine_tuning.net)
    weight = fine_tuning.net.bn1.weight
    assert not torch.equal(weight.half().float(), weight)


@pytest.mark.parametrize(
    "method, task, harden_inputs, twice",
    [
        ("bnn++", "bw", 0.0, 3),
        ("bnn++", "bwa", 1.0, 3),
        ("bc", "bw", 0.0, 0),
        ("bnn", "bwa", 0.0, 0),
        ("pq", "bw", 0.0, 3),
    ],
)
def test_a_network_is_scored_twice_only_while_its_F_is_not_sign(
    method, task, harden_inputs, twice, make_trainer, tmp_path
):
    soft = []
    setting = {"images": 8, "epochs": 3, "harden": 0.5, "warmup": 0.0, "harden_inputs": harden_inputs}

    def score(net):
        soft.append(has_latents(net))
        return make_scored()

    make_trainer(tmp_path, method, task=task, score=score, **setting).run()
    assert len(soft) == 4 + twice and sum(soft) == twice


def make_scored(top1: float = 50.0):
    from conftest import Scored

    return Scored(top1)


def test_the_network_is_left_at_its_best_hard_epoch_and_of_equals_at_the_later(make_trainer, tmp_path):
    hard = [10.0, 60.0, 60.0, 40.0]
    kept, calls = [], []

    def score(net):
        calls.append(not has_latents(net))
        number = (len(calls) - 1) // 2
        kept.append(fine_tuning.net.layer1[0].conv1.source.latent.detach().clone())
        return make_scored(hard[number] if calls[-1] else 99.0 - number)

    setting = {"images": 8, "epochs": 3, "harden": 0.0, "warmup": 0.0, "select": "val"}
    fine_tuning = make_trainer(tmp_path, score=score, **setting)
    rows = fine_tuning.run()
    assert calls == [True, False] * 4
    assert [row.hard_top1 for row in rows] == hard and [row.soft_top1 for row in rows] == [99, 98, 97, 96]
    assert torch.equal(fine_tuning.net.layer1[0].conv1.source.latent, kept[4])
    assert not torch.equal(kept[2], kept[4])


@pytest.mark.parametrize(("best", "mode"), [(0, "soft"), (1, "soft"), (3, "hard")])
def test_the_network_is_left_in_the_phase_of_its_epoch(best, mode, make_trainer, tmp_path):
    calls = []

    def score(net):
        if not has_latents(net):  # the network of signs, once an epoch
            calls.append(net)
        return make_scored(60.0 if len(calls) - 1 == best else 10.0)

    fine_tuning = make_trainer(tmp_path, score=score, images=8, epochs=3, harden=0.4, select="val")
    rows = fine_tuning.run()
    assert fine_tuning.position.packed_epoch == best
    assert fine_tuning.binary.quantizer.mode == mode and rows[best].hard == (mode == "hard")
    assert fine_tuning.binary.quantizer.parameter_values() == rows[best].parameters


def test_the_gradient_is_clipped_to_its_norm(make_trainer, tmp_path):
    norms = []

    def watch(optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))

    for clip in (0.01, None):
        fine_tuning = make_trainer(tmp_path, images=8, clip_grad=clip)
        fine_tuning.step.optimizer.register_step_pre_hook(watch)
        fine_tuning.run()
    assert norms[0] == pytest.approx(0.01, rel=1e-3) and norms[1] > 0.1


@pytest.mark.parametrize("step_seconds", [0.2, 5.0])
def test_the_time_that_is_left_does_not_jump_after_an_evaluation(step_seconds):
    """Epochs of 200 steps, evaluations of as long as 40: a step takes 1.2 of its own in the mean."""
    now, lefts = 0.0, []
    display = Display("binary", steps=10_000, done=0)
    display.progress.get_time = lambda: now
    for step in range(1, 2_001):
        display.step(step, 1.0, 64.0, {}, hard=False)
        now += step_seconds * (41 if step % 200 == 0 else 1)
        if step > 1_000:
            expected = (10_000 - step) * 1.2 * step_seconds
            lefts.append(display.progress.tasks[0].time_remaining / expected)
    assert min(lefts) > 0.8
    assert max(lefts) < 1.3


# --- repeating and resuming ------------------------------------------------------------------------------


def untimed(rows) -> list[dict]:
    return [{key: value for key, value in row.to_json().items() if key not in TIMED} for row in rows]


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def ctrl_c_at(fine_tuning, step: int):
    """Let SIGINT come while the `step`-th step (from 1) of this process is computed."""
    rule, count = fine_tuning.step.objective, [0]

    def interrupted(*args):
        count[0] += 1
        if count[0] == step:
            signal.raise_signal(signal.SIGINT)
        return rule(*args)

    fine_tuning.step.objective = interrupted
    return fine_tuning


VARIANTS = {
    "plain": {},
    "averaged, mixed, bf16": {"ema": 0.5, "mixup": 0.4, "amp": "bf16"},
    "transformer": {"model": "digits_vit", "opt": "sgd", "sched": "linear"},
    "float": {"method": "float"},
}


@pytest.mark.parametrize("stop", [1, 2, 5, 6], ids="step {}".format)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_by_ctrl_c_and_resumed_ends_as_one_that_was_not(variant, stop, make_trainer, tmp_path):
    """Two steps an epoch: 1 and 5 lie inside one, 2 and 6 are the last of one."""
    setting = {"epochs": 3, "images": 16, "warmup": 0.0, "harden": 0.2} | VARIANTS[variant]
    whole = make_trainer(tmp_path / "whole", **setting)
    expected = whole.run()

    with pytest.raises(Interrupted, match=f"after step {stop};") as left:
        ctrl_c_at(make_trainer(tmp_path / "stopped", **setting), stop).run()
    assert left.value.exit_code == 130 and "--resume" in str(left.value)
    assert 1 <= len(state.saved_states(tmp_path / "stopped")) <= 2

    resumed = make_trainer(tmp_path / "stopped", **setting)
    rows = resumed.run(resume=True)
    assert untimed(rows) == untimed(expected) and [row.epoch for row in rows] == [0, 1, 2, 3]
    assert same(resumed.net, whole.net)


def test_a_run_stopped_after_every_step_ends_as_one_that_was_not(make_trainer, tmp_path):
    setting = {"epochs": 2, "images": 24, "ema": 0.5, "mixup": 0.4}
    whole = make_trainer(tmp_path / "whole", **setting)
    expected = whole.run()
    for step in range(1, 7):
        with pytest.raises(Interrupted, match=f"after step {step};"):
            ctrl_c_at(make_trainer(tmp_path / "stopped", **setting), 1).run(resume=True)
    resumed = make_trainer(tmp_path / "stopped", **setting)
    assert untimed(resumed.run(resume=True)) == untimed(expected)
    assert same(resumed.net, whole.net)


@pytest.mark.parametrize("at", [0, 1, 2], ids="epoch {}".format)
def test_ctrl_c_while_scoring_is_not_forgotten(at, make_trainer, tmp_path):
    calls = [0]

    def score(net):
        calls[0] += 1
        if calls[0] == 2 * at + 1:  # soft and hard at each epoch
            signal.raise_signal(signal.SIGINT)
        return make_scored()

    setting = {"epochs": 2, "harden": 0.0}
    whole = make_trainer(tmp_path / "whole", **setting)
    expected = whole.run()
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "stopped", score=score, **setting).run()
    resumed = make_trainer(tmp_path / "stopped", **setting)
    assert untimed(resumed.run(resume=True)) == untimed(expected)
    assert same(resumed.net, whole.net)


def test_a_second_ctrl_c_is_immediate_and_python_has_its_own_handling_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        assert stop.code == 0
        signal.raise_signal(signal.SIGINT)
        assert stop.code == 130
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_same_seed_trains_the_same_network_and_another_seed_another(make_trainer, tmp_path):
    runs = [make_trainer(tmp_path / str(i), seed=seed, epochs=2) for i, seed in enumerate((3, 3, 4))]
    rows = [untimed(run.run()) for run in runs]
    assert rows[0] == rows[1] != rows[2]
    assert same(runs[0].net, runs[1].net) and not same(runs[0].net, runs[2].net)


def test_a_damaged_state_is_an_input_error_that_names_it(make_trainer, tmp_path):
    make_trainer(tmp_path, images=8).run()
    (last,) = state.saved_states(tmp_path)
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(InputError, match="checksum mismatch") as left:
        make_trainer(tmp_path, images=8).run(resume=True)
    assert str(last) in str(left.value)


# --- divergence ------------------------------------------------------------------------------------------


def test_divergence_names_the_step_and_the_layer(make_trainer, tmp_path):
    fine_tuning = make_trainer(tmp_path, epochs=2)
    with torch.no_grad():
        fine_tuning.net.layer2[0].conv1.source.latent[3, 0, 0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"at step 1, in layer2\.0\.conv1") as left:
        fine_tuning.run()
    assert left.value.exit_code == 3 and "No epoch had ended" in str(left.value)


def test_a_gradient_that_is_not_finite_is_divergence_too(make_trainer, tmp_path):
    fine_tuning = make_trainer(tmp_path)
    fine_tuning.net.layer3[0].conv2.source.latent.register_hook(lambda gradient: gradient * torch.inf)
    before = fine_tuning.net.linear.weight.detach().clone()
    with pytest.raises(Diverged, match=r"at step 1, in layer3\.0\.conv2"):
        fine_tuning.run()
    assert torch.equal(fine_tuning.net.linear.weight, before), "no step was taken with it"


def test_divergence_keeps_the_last_good_state(make_trainer, tmp_path):
    fine_tuning = make_trainer(tmp_path, epochs=3)
    rule, count = fine_tuning.step.objective, [0]

    def objective(*args):
        count[0] += 1
        return rule(*args) * (torch.nan if count[0] == 6 else 1)

    fine_tuning.step.objective = objective
    with pytest.raises(Diverged, match="at step 6, in the loss itself") as left:
        fine_tuning.run()
    kept = state.saved_states(tmp_path)[0]
    assert str(kept) in str(left.value)
    saved = state.load(kept, CPU)
    assert (saved["position"]["epoch"], saved["position"]["step"]) == (1, 0)
    assert all(torch.isfinite(tensor).all() for tensor in saved["net"].values())


def test_a_learning_rate_without_reason_is_exit_code_3(bnnpp, empty):
    words = ("digits_resnet", "--method", "bc", "--epochs", 1, "--opt", "sgd", "--lr", "1e30")
    left = bnnpp("binarize", *words)
    assert (left.code, left.out) == (3, "")
    assert "diverged at step" in left.err and "--lr" in left.err and "Traceback" not in left.err
    assert not list(empty.rglob("model.safetensors"))


# --- BatchNorm -------------------------------------------------------------------------------------------


def a_normed_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))


def batches_of(count: int, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(draw(size, 5, seed=i) + i, torch.zeros(size)) for i in range(count)]


def test_reestimated_statistics_are_plain_averages_over_the_batches():
    net, batches = a_normed_net().train(), batches_of(5)
    net[2].momentum = 0.3
    reestimate(net, batches, CPU)
    weight, bias = (p.detach().numpy().astype(float) for p in net[0].parameters())
    seen = [inputs.numpy().astype(float) @ weight.T + bias for inputs, _ in batches]  # without dropout
    np.testing.assert_allclose(net[2].running_mean, np.mean([x.mean(0) for x in seen], axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        net[2].running_var, np.mean([x.var(0, ddof=1) for x in seen], axis=0), rtol=1e-4
    )
    assert net[2].momentum == 0.3 and not any(module.training for module in net.modules())


def test_ten_thousand_images_are_enough():
    asked = []

    def endless():
        for inputs, targets in batches_of(9, size=2500):
            asked.append(len(inputs))
            yield inputs, targets

    reestimate(a_normed_net(), endless(), CPU)
    assert sum(asked) == 10_000


@pytest.mark.parametrize(("after", "kept"), [(51.0, True), (50.0, False), (49.0, False)])
def test_reestimation_is_undone_unless_the_held_out_accuracy_rises(after, kept):
    net = a_normed_net().eval()
    net[2].running_mean.fill_(7.0)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    scores = iter([make_scored(50.0), make_scored(after)])
    outcome = reestimate_if_better(net, batches_of(3), CPU, lambda net: next(scores))
    unchanged = all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert outcome.kept == kept == (not unchanged)
    assert outcome.to_json() == {
        "reestimated": kept,
        "held_out_images": 10,
        "held_out_top1_before": 50.0,
        "held_out_top1_after": after,
    }


# --- where and how ---------------------------------------------------------------------------------------


def test_auto_precision_on_a_cpu_is_bfloat16_where_there_is_amx(monkeypatch):
    for there, expected in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=there: there)
        assert autocast_type("auto", CPU) is expected
    assert autocast_type("off", CPU) is None
    assert autocast_type("bf16", CPU) is torch.bfloat16 and autocast_type("fp16", CPU) is torch.float16


def test_devices_are_found_or_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == find_device("cpu") == CPU
    for text in ("gpu", "cuda:x", "cuda:-1", "mps", ""):
        with pytest.raises(InputError, match="no device is named"):
            find_device(text)
    for text in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match="no CUDA device found"):
            find_device(text)
    with pytest.raises(InputError, match="not here") as left:
        find_device("cpu:3")
    assert "CUDA" not in str(left.value), "of CPUs it should speak"


def test_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    assert find_device("auto").type == "cuda" and find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="2 CUDA devices"):
        find_device("cuda:2")


def test_an_unknown_optimizer_gets_a_guess():
    check_optimizer("adamw")
    with pytest.raises(InputError, match="Did you mean 'adamw'"):
        check_optimizer("adamww")


# --- the same through the command line -------------------------------------------------------------------

SHORT = ("digits_resnet", "--dataset", "digits", "--method", "bnn++", "--epochs", 1, "--batch-size", 256)


def test_the_same_seed_packs_the_same_bytes_and_another_seed_others(bnnpp, empty):
    packed = [bnnpp("binarize", *SHORT, "--seed", seed).packed.read_bytes() for seed in (0, 0, 1)]
    assert packed[0] == packed[1] != packed[2]


def test_the_same_seed_packs_the_same_bytes_from_random_weights_too(bnnpp, tiny, empty):
    words = ("digits_vit", "--no-pretrained", "--data-dir", tiny, "--epochs", 1, "-b", 4)
    packed = [bnnpp("binarize", *words, "--seed", seed).packed.read_bytes() for seed in (0, 0, 1)]
    assert packed[0] == packed[1] != packed[2]


def test_the_same_seed_packs_the_same_bytes_where_the_head_is_new(bnnpp, tiny, empty):
    words = ("digits_vit", "--data-dir", tiny, "--epochs", 1, "-b", 4, "--set", "train.float_epochs=1")
    packed = [bnnpp("binarize", *words).packed.read_bytes() for _ in range(2)]
    assert packed[0] == packed[1]


TWO_STAGES = ("digits_resnet", "--epochs", 2, "-b", 4, "--set", "train.float_epochs=2")


@pytest.fixture(scope="module")
def two_stages(bnnpp, tiny, tmp_path_factory) -> Path:
    """The packed file of a run that nothing stopped."""
    place = tmp_path_factory.mktemp("whole") / "run"
    return bnnpp("binarize", *TWO_STAGES, "--data-dir", tiny, "--output", place).packed


@pytest.mark.parametrize("stop", [1, 8, 10, 12], ids="step {}".format)
def test_a_run_of_two_stages_resumes_in_either(stop, two_stages, bnnpp, tiny, empty, monkeypatch):
    """Four steps an epoch, two epochs of float fine-tuning for the new head, then two of binary."""
    words = (*TWO_STAGES, "--data-dir", tiny)
    whole_call, count = Objective.__call__, [0]

    def call(*args):
        count[0] += 1
        if count[0] == stop:
            signal.raise_signal(signal.SIGINT)
        return whole_call(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "__call__", call)
        left = bnnpp("binarize", *words, "--output", "stopped")
    assert (left.code, left.out) == (130, "") and "--resume" in left.err
    assert not (empty / "stopped" / "model.safetensors").exists()
    resumed = bnnpp("binarize", *words, "--output", "stopped", "--resume").packed
    assert resumed.read_bytes() == two_stages.read_bytes()
    ours, theirs = (list(csv.DictReader((p.parent / "log.csv").open())) for p in (resumed, two_stages))
    for row in ours + theirs:
        for key in TIMED:
            del row[key]
    assert ours == theirs and [row["stage"] for row in ours] == ["float"] * 3 + ["binary"] * 3


def test_ctrl_c_leaves_a_real_process_with_130_and_resume_ends_as_if_it_had_not_come(bnnpp, empty):
    words = ["binarize", *map(str, SHORT), "--epochs", "4"]
    program = [sys.executable, "-m", "binarize_cli", *words, "--output", "stopped"]
    root = str(Path(__file__).parents[1])
    child = subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    for line in child.stderr:
        if "epoch 1/4" in line:
            child.send_signal(signal.SIGINT)
            break
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (130, "")
    assert "Ctrl-C" in err and "--resume" in err and "Traceback" not in err
    resumed = bnnpp(*words, "--output", "stopped", "--resume").packed
    whole = bnnpp(*words, "--output", "whole").packed
    assert resumed.read_bytes() == whole.read_bytes()
