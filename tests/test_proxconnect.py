"""ProxConnect++: the maps are proximal, the update rules are their formulas, and certificates tell apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from binarize_cli.binarize.phase import Moment
from binarize_cli.binarize.prepare import quantizers
from binarize_cli.binarize.quantizer import WeightQuantizer
from binarize_cli.binarize.updates import update_rule
from binarize_cli.binarize.weights import LatentWeight
from binarize_cli.errors import InputError
from binarize_cli.quantizers import functions as q
from binarize_cli.quantizers.certify import certify
from binarize_cli.quantizers.compose import compose
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.methods import METHODS, with_parts
from binarize_cli.quantizers.parts import MAPS, TRANSFORMS, Transform, autograd_slope
from binarize_cli.quantizers.schedules import Schedule, constant
from binarize_cli.recipe import Quantizer, Recipe

X = np.linspace(-4, 4, 1601)


# --- maps and transforms ---


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", MAPS)
def test_every_map_is_non_decreasing_and_odd(name, progress):
    part = MAPS[name]
    values = {key: schedule(progress) for key, schedule in part.schedules.items()}
    p = part.apply(X, **values)
    assert (np.diff(p) >= -1e-12).all()
    off_zero = X != 0
    np.testing.assert_allclose(p[off_zero], -part.apply(-X, **values)[off_zero], atol=1e-12)


@pytest.mark.parametrize("name", ["lq", "lq-general", "parq", "binary-relax"])
def test_maps_with_a_schedule_end_as_sign(name):
    part = MAPS[name]
    values = {key: schedule(1.0) for key, schedule in part.schedules.items()}
    assert np.array_equal(part.apply(X, **values), np.where(X >= 0, 1.0, -1.0))


def test_sign_and_the_clipping_lq_map_are_idempotent():
    assert np.array_equal(q.sign(q.sign(X)), q.sign(X))
    assert np.array_equal(q.linear_quantizer(q.linear_quantizer(X, 0.0), 0.0), q.linear_quantizer(X, 0.0))


def brute_force_prox(regulariser, at: np.ndarray) -> np.ndarray:
    """argmin_v regulariser(v) + (v - w)^2 / 2 on a fine grid, for every w of `at`."""
    v = np.linspace(-4, 4, 80_001)
    cost = regulariser(v)
    return np.array([v[np.argmin(cost + (v - w) ** 2 / 2)] for w in at])


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_soft_threshold_is_the_prox_of_its_w_shaped_regulariser(lam):
    at = np.array([-3.2, -1.4, -1.02, -0.7, -0.2, 0.2, 0.6, 0.97, 1.3, 2.5])
    brute = brute_force_prox(lambda v: lam * np.abs(np.abs(v) - 1), at)
    np.testing.assert_allclose(q.soft_threshold(at, lam), brute, atol=2e-4)


@pytest.mark.parametrize("rho", [0.1, 0.4, 0.8])
def test_the_lq_map_is_the_prox_of_its_w_shaped_regulariser(rho):
    """rho (1 - |v|) for |v| <= 1, else infinite: the minimiser is sign(w) min(1, |w| + rho)."""
    at = np.array([-3.2, -1.4, -0.7, -0.2, -0.03, 0.05, 0.2, 0.6, 0.97, 1.3, 2.5])
    brute = brute_force_prox(lambda v: np.where(np.abs(v) <= 1, rho * (1 - np.abs(v)), np.inf), at)
    np.testing.assert_allclose(q.linear_quantizer(at, rho), brute, atol=2e-4)


def test_the_general_lq_map_is_the_usual_one_where_its_jump_is_rho():
    for rho in (0.0, 0.2, 0.75, 1.0, 3.0):
        np.testing.assert_allclose(
            q.general_linear_quantizer(X, rho, rho), q.linear_quantizer(X, rho), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_derivative_of_a_transform_is_exact(name):
    part = TRANSFORMS[name]
    values = dict.fromkeys(part.schedules, 3.0)
    kink = 1 / 3  # where the polynomial ends
    x = X[(np.abs(np.abs(X) - kink) > 0.01) & (np.abs(X) > 1e-9)]
    numeric = (part.value(x + 1e-6, **values) - part.value(x - 1e-6, **values)) / 2e-6
    np.testing.assert_allclose(part.derivative()(x, **values), numeric, atol=1e-6)
    by_autograd = autograd_slope(part.value) if name != "erf" else part.derivative()
    found = by_autograd(torch.from_numpy(x), **values)
    np.testing.assert_allclose(torch.as_tensor(found).numpy(), numeric, atol=1e-6)


def test_a_transform_without_a_derivative_gets_it_by_autograd_on_arrays_too():
    cubic = Transform("cubic", lambda x, k: k * x**3, "k p^3", {"k": constant(2.0)})
    np.testing.assert_allclose(cubic.derivative()(X, k=2.0), 6 * X**2)


# --- composition ---


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("map_name", MAPS)
def test_any_map_and_transform_compose_into_a_certified_method(map_name, transform):
    method = compose(map_name, transform)
    values = method.values(0.4)
    p = MAPS[map_name].apply(X, **{k: values[k] for k in MAPS[map_name].schedules})
    own = {k: values[k] for k in TRANSFORMS[transform].schedules}
    np.testing.assert_array_equal(method.F(X, values), TRANSFORMS[transform].value(p, **own))
    np.testing.assert_array_equal(method.B(X, values), TRANSFORMS[transform].derivative()(p, **own))
    assert certify(method).guaranteed, certify(method).explanation


def test_a_recipe_names_the_parts_and_unknown_or_foreign_ones_are_refused():
    quantizer, _ = quantizers(Recipe(method="pc++", quantizer=Quantizer(map="parq", transform="erf")))
    assert set(quantizer.values) == {"s", "k"}
    with pytest.raises(InputError, match="no proximal map is named 'parc'") as caught:
        with_parts(METHODS["pc++"], "parc", None)
    assert "'parq'" in str(caught.value)
    with pytest.raises(InputError, match=r"bnn\+\+ has no map to choose"):
        with_parts(METHODS["bnn++"], "parq", None)
    with pytest.raises(ValueError, match="pq has no transform"):
        Recipe(method="pq", quantizer=Quantizer(transform="erf"))


# --- certificates ---

GUARANTEED = {"bc", "pc", "bnn++", "poly+", "ede+", "parq", "binary-relax", "pc++", "pq", "rpc", "float"}
HEURISTIC = {"bnn", "bnn+", "poly", "ede"}


@pytest.mark.parametrize("name", METHODS)
def test_the_certificates_are_those_of_the_theory(name):
    expected = "guaranteed" if name in GUARANTEED else "heuristic" if name in HEURISTIC else "-"
    assert certify(METHODS[name]).verdict == expected


def test_certificates_name_p_and_t_or_the_interval_that_fails():
    plus_plus = certify(METHODS["bnn++"])
    assert (plus_plus.map_name, plus_plus.transform_name) == ("identity", "sign-swish")
    assert (certify(METHODS["bc"]).map_name, certify(METHODS["pc"]).map_name) == ("sign", "lq")
    box = certify(METHODS["bnn"])
    assert "B is not" in box.explanation and box.fault.interval[0] < -1 < box.fault.interval[1]
    assert certify(METHODS["parq"]).gap == 0 and certify(METHODS["bnn++"]).gap > 0.1


def method(forward, backward) -> Method:
    words = {"forward_formula": "", "backward_formula": "", "source": "", "when": ""}
    return Method(name="t", title="", forward=forward, backward=backward, update="forward-backward", **words)


def test_a_pair_whose_f_moves_where_b_is_zero_or_whose_p_decreases_is_a_heuristic():
    assert "F moves where B is 0" in certify(method(q.identity, q.clipped_ste)).explanation
    assert "decreases" in certify(method(np.sin, q.ste)).explanation
    rising = certify(method(np.sin, np.cos))
    assert rising.guaranteed and rising.map_name == "identity"


def test_a_certificate_is_of_the_schedules_in_force():
    """A box wider than every weight is BinaryConnect; one that narrows is not."""
    wide = method(q.sign, lambda x, width: np.where(np.abs(x) <= width, 1.0, 0.0))
    assert not certify(wide, {"width": constant(1.0)}).guaranteed
    assert certify(wide, {"width": constant(3.0)}).guaranteed
    assert not certify(wide, {"width": Schedule(3.0, 1.0)}).guaranteed


# --- update rules, traced by hand ---

TARGET = np.array([0.9, -0.4, 0.15])
START = np.array([0.5, 0.3, -0.2])
RATE, STEPS = 0.3, 10


def literal(name: str, **more) -> WeightQuantizer:
    """The literal paper form: alpha = 1, n = 1."""
    return quantizers(Recipe(method=name, quantizer=Quantizer(scale="none", normalize="none", **more)))[0]


def train(quantizer: WeightQuantizer) -> tuple[np.ndarray, np.ndarray]:
    """Ten steps of SGD on |w - target|^2 / 2; the latents after every step, [STEPS, 3] float64."""
    weight = LatentWeight(torch.tensor(START[:, None]), quantizer)
    weight.latent.data = weight.latent.data.double()
    optimizer = torch.optim.SGD([weight.latent], lr=RATE)
    trace = []
    for step in range(STEPS):
        quantizer.move_to(Moment(step / (STEPS - 1)))
        optimizer.zero_grad()
        (weight() - torch.tensor(TARGET[:, None])).square().sum().div(2).backward()
        with update_rule(weight):
            optimizer.step()
        trace.append(weight.latent.detach().flatten().numpy().copy())
    return np.array(trace)


def rho_at(step: int) -> float:
    return 0.01 + (10 - 0.01) * step / (STEPS - 1)


def lq(w: np.ndarray, rho: float) -> np.ndarray:
    return np.where(w < 0, -1.0, 1.0) * np.minimum(1, np.abs(w) + rho)


BY_HAND = {
    "bc": lambda w, step: w - RATE * (np.where(w < 0, -1.0, 1.0) - TARGET),
    "pc": lambda w, step: w - RATE * (lq(w, rho_at(step)) - TARGET),
    "pq": lambda w, step: lq(w - RATE * (w - TARGET), rho_at(step)),
    "rpc": lambda w, step: lq(w, rho_at(step)) - RATE * (w - TARGET),
    "bnn": lambda w, step: w - RATE * (np.abs(w) <= 1) * (np.where(w < 0, -1.0, 1.0) - TARGET),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_ten_steps_are_those_traced_by_hand(name):
    w, expected = START, []
    for step in range(STEPS):
        w = BY_HAND[name](w, step)
        expected.append(w)
    np.testing.assert_allclose(train(literal(name)), expected, atol=1e-6)


def test_proxconnect_with_the_sign_map_is_binaryconnect_bit_for_bit():
    signs = literal("pc++", map="sign", transform="identity")
    assert np.array_equal(train(signs), train(literal("bc")))


def test_with_the_identity_map_training_is_that_of_the_reparametrised_network():
    """Gradient for gradient: autograd through T(w) itself."""
    quantizer = literal("pc++", map="identity", transform="tanh")
    w = torch.tensor(START, requires_grad=True)
    expected = []
    for step in range(STEPS):
        t = quantizer.method.values(step / (STEPS - 1))["t"]
        (gradient,) = torch.autograd.grad((torch.tanh(t * w) - torch.tensor(TARGET)).square().sum() / 2, w)
        w = (w - RATE * gradient).detach().requires_grad_()
        expected.append(w.detach().numpy().copy())
    np.testing.assert_allclose(train(quantizer), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["pq", "rpc"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_map_keeps_the_magnitude_and_ends_in_signs_in_every_layout(name, layout):
    quantizer, _ = quantizers(Recipe(method=name))
    latent = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    before = latent.clone(memory_format=torch.preserve_format)
    quantizer.move_to(Moment(0.0))
    quantizer.map_(latent)
    assert not torch.equal(latent, before) and latent.stride() == before.stride()
    torch.testing.assert_close(latent.abs().mean((1, 2, 3)), before.abs().mean((1, 2, 3)))
    quantizer.move_to(Moment(1.0))
    quantizer.map_(latent)
    alpha = before.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(latent, alpha * torch.where(before >= 0, 1.0, -1.0))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("name", ["pq", "rpc"])
def test_the_maps_work_around_any_optimizer(name, optimizer):
    from timm.optim import create_optimizer_v2

    quantizer = literal(name)
    net = nn.Module()
    net.weight = LatentWeight(torch.tensor(START[:, None]), quantizer)
    quantizer.move_to(Moment(1.0))
    steps = create_optimizer_v2(net, opt=optimizer, lr=1e-3, weight_decay=0.0)
    net.weight().square().sum().backward()
    with update_rule(net):
        steps.step()
    found = net.weight.latent.detach().abs()
    if name == "pq":
        assert torch.equal(found, torch.ones_like(found)), "mapped after the step"
    else:
        assert ((found - 1).abs() < 0.1).all() and not torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize("name", ["pq", "rpc"])
def test_a_sign_can_change_once_the_weights_are_hardened(name):
    quantizer = literal(name)
    net = nn.Module()
    net.weight = LatentWeight(torch.tensor(START[:, None]), quantizer)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.15)

    def ten_steps_towards_other_signs() -> torch.Tensor:
        for _ in range(10):
            optimizer.zero_grad()
            (net.weight() * torch.tensor(np.sign(START)[:, None])).sum().backward()
            with update_rule(net):
                optimizer.step()
        return torch.sign(net.weight.latent.detach()[:, 0])

    signs = torch.tensor(np.sign(START)).float()
    quantizer.move_to(Moment(1.0))
    assert torch.equal(ten_steps_towards_other_signs(), signs)
    quantizer.move_to(Moment(1.0, "hard"))
    assert torch.equal(ten_steps_towards_other_signs(), -signs)
