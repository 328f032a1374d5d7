"""F and B against their formulas, the registry, the schedules, and the autograd function that joins them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from scipy.special import expit

from binarize_cli.errors import InputError
from binarize_cli.quantizers import functions as q
from binarize_cli.quantizers.autograd import ForwardBackward
from binarize_cli.quantizers.method import UPDATES
from binarize_cli.quantizers.methods import METHODS, find_method
from binarize_cli.quantizers.schedules import Schedule, constant

# --- references, from the papers' formulas, in float64 ---


def sign(x):
    return np.where(x < 0, -1.0, 1.0)


def box(x):
    return ((x >= -1) & (x <= 1)).astype(float)


def sign_swish(x, mu):
    z = mu * x
    return 2 * expit(z) * (1 + z * expit(-z)) - 1


def sign_swish_slope(x, mu):
    z = mu * x
    return 2 * mu * expit(z) * expit(-z) * (2 - z * np.tanh(z / 2))


def linear_quantizer(x, rho, rho_prime=None):
    rho_prime = rho if rho_prime is None else rho_prime
    if rho >= 1 or rho_prime >= 1:
        return sign(x)
    return sign(x) * np.minimum(1, rho_prime + (1 - rho_prime) * np.abs(x) / (1 - rho))


def polynomial(x, mu=1.0):
    z = mu * x
    return np.where(np.abs(z) <= 1, sign(z) * (2 * np.abs(z) - z**2), sign(z))


def polynomial_slope(x, mu=1.0):
    z = mu * x
    return np.where(np.abs(z) <= 1, mu * (2 - 2 * np.abs(z)), 0)


def ede_slope(x, t):
    return max(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)


def parq(x, s):
    return sign(x) if s == 0 else np.clip(x / s, -1, 1) + (x == 0) * 0.0


def soft_threshold(x, lam):
    off = np.abs(x) - 1
    return sign(x) * (1 + np.sign(off) * np.maximum(np.abs(off) - lam, 0))


MU, RHO = st.floats(0.25, 150, width=16), st.floats(0, 10, width=16)  # the same number in every float type
SHARE = st.floats(0, 1, width=16)
PAIRS = {
    "sign": (q.sign, sign, None),
    "identity": (q.identity, lambda x: x, None),
    "one": (q.ste, lambda x: np.ones_like(x), None),
    "box": (q.clipped_ste, box, None),
    "sign_swish": (q.sign_swish, sign_swish, MU),
    "sign_swish_slope": (q.sign_swish_slope, sign_swish_slope, MU),
    "linear_quantizer": (q.linear_quantizer, linear_quantizer, RHO),
    "general_linear_quantizer, rho' 0.3": (
        lambda x, rho: q.general_linear_quantizer(x, rho, 0.3),
        lambda x, rho: linear_quantizer(x, rho, 0.3),
        st.one_of(st.floats(0, 0.9375, width=16), st.floats(1, 10, width=16)),
    ),
    "polynomial": (q.polynomial, polynomial, MU),
    "polynomial_slope": (q.polynomial_slope, polynomial_slope, MU),
    "tanh": (q.tanh, lambda x, t: np.tanh(t * x), MU),
    "tanh_slope": (q.tanh_slope, lambda x, t: t * (1 - np.tanh(t * x) ** 2), MU),
    "ede_slope": (q.ede_slope, ede_slope, MU),
    "softsign": (q.softsign, lambda x, k: k * x / (1 + np.abs(k * x)), MU),
    "softsign_slope": (q.softsign_slope, lambda x, k: k / (1 + np.abs(k * x)) ** 2, MU),
    "erf": (q.erf, lambda x, k: special.erf(k * x), MU),
    "erf_slope": (q.erf_slope, lambda x, k: 2 * k / np.pi**0.5 * np.exp(-((k * x) ** 2)), MU),
    "parq": (q.parq, parq, st.floats(0.0625, 1, width=16)),
    "binary_relax": (q.binary_relax, lambda x, theta: (1 - theta) * x + theta * sign(x), SHARE),
    "soft_threshold": (q.soft_threshold, soft_threshold, st.floats(0, 4, width=16)),
}


def arrays(dtype):
    width = 8 * np.dtype(dtype).itemsize
    return hnp.arrays(dtype, st.integers(1, 8), elements=st.floats(-1e4, 1e4, width=width))


# --- functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy says that mu x left float16
def test_every_function_is_its_formula_in_every_float_type_and_both_libraries(name, dtype):
    ours, reference, parameter = PAIRS[name]

    @settings(max_examples=40, deadline=None)
    @given(arrays(dtype), st.none() if parameter is None else parameter)
    def holds(x, value):
        values = () if value is None else (value,)
        expected = reference(x.astype(float), *values)
        step = 10 * np.finfo(dtype).eps * max((1.0, *values))
        tensor = torch.from_numpy(x)
        moving = [torch.tensor(v) for v in values]  # as training passes them: 0-d, float32
        for found in (ours(x, *values), ours(tensor, *values).numpy(), ours(tensor, *moving).numpy()):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, expected, rtol=2 * np.finfo(dtype).eps, atol=step)

    holds()


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_sign_of_zero_is_plus_one_wherever_it_counts(zero):
    for x in (np.array([zero]), torch.tensor([zero])):
        assert q.sign(x).item() == 1
        assert q.linear_quantizer(x, 0.25).item() == 0.25
        assert q.linear_quantizer(x, 7.0).item() == 1
        assert q.sign_swish(x, 5.0).item() == 0


def test_box_is_closed_at_one():
    x = np.array([-1.0001, -1, 0, 1, 1.0001])
    assert q.clipped_ste(x).tolist() == [0, 1, 1, 1, 0]


@settings(max_examples=100, deadline=None)
@given(st.floats(-12, 12), st.floats(0.1, 150))
def test_the_slope_of_sign_swish_is_its_numeric_derivative(z, mu):
    x, step = np.array([z / mu]), 1e-5 / mu
    numeric = (q.sign_swish(x + step, mu) - q.sign_swish(x - step, mu)) / (2 * step)
    np.testing.assert_allclose(q.sign_swish_slope(x, mu), numeric, atol=1e-8 * mu)


def test_sign_swish_overshoots_to_1_1997_at_2_3994_and_falls_back_to_one():
    z = np.linspace(0, 60, 600_001)
    values, slopes = q.sign_swish(z, 1.0), q.sign_swish_slope(z, 1.0)
    assert values.max() == pytest.approx(1.1997, abs=5e-5)
    assert z[values.argmax()] == pytest.approx(2.3994, abs=1e-4)
    assert (slopes[z < 2.3993] > 0).all() and (slopes[(z > 2.3994) & (z < 30)] < 0).all()
    assert values[-1] == 1 and slopes[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("mu", [0.1, 5.0, 150.0, 6e4])
def test_sign_swish_is_finite_and_saturates_for_the_largest_numbers(dtype, mu):
    largest = torch.finfo(dtype).max
    x = torch.tensor([-largest, largest], dtype=dtype)
    assert q.sign_swish(x, mu).tolist() == [-1, 1]
    assert q.sign_swish_slope(x, mu).tolist() == [0, 0]


def test_linear_quantizer_clips_at_rho_zero_and_is_sign_from_rho_one_on():
    x = np.linspace(-3, 3, 601)
    assert np.array_equal(q.linear_quantizer(x, 0.0), np.clip(x, -1, 1))
    for rho in (1.0, 1.5, 10.0):
        assert np.array_equal(q.linear_quantizer(x, rho), sign(x))


# --- schedules -------------------------------------------------------------------------------------------


def test_schedules_move_evenly_or_by_equal_factors_and_stop_at_their_ends():
    linear, log = Schedule(5, 150), Schedule(0.1, 10, "log")
    assert [linear(t) for t in (-1, 0, 0.5, 1, 2)] == [5, 5, 77.5, 150, 150]
    assert [log(t) for t in (-1, 0, 0.25, 0.5, 1, 2)] == pytest.approx([0.1, 0.1, 10**-0.5, 1, 10, 10])
    assert [constant(5.0)(t) for t in (0, 0.3, 1)] == [5, 5, 5]


def test_schedules_say_what_they_are():
    assert str(Schedule(0.01, 10.0)) == "0.01 -> 10 (linear)"
    assert str(Schedule(0.1, 10.0, "log")) == "0.1 -> 10 (log)"
    assert str(constant(5.0)) == "5, fixed"


# --- the registry ----------------------------------------------------------------------------------------

TABLE = {  # method -> F, B, update, schedule; bnn++'s end is ours to choose
    "float": (lambda x: x, np.ones_like, "plain", {}),
    "ptq": (sign, None, "none", {}),
    "bc": (sign, np.ones_like, "forward-backward", {}),
    "bnn": (sign, box, "forward-backward", {}),
    "bnn+": (sign, sign_swish_slope, "forward-backward", {"mu": (5, 5)}),
    "bnn++": (sign_swish, sign_swish_slope, "forward-backward", {"mu": (5, 60)}),
    "pc": (linear_quantizer, np.ones_like, "forward-backward", {"rho": (0.01, 10)}),
}


def test_the_registry_holds_the_methods_of_the_design():
    rest = ["pq", "rpc", "poly", "poly+", "ede", "ede+", "parq", "binary-relax", "pc++"]
    assert list(METHODS) == [*TABLE, *rest]


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("progress", [0.0, 0.05, 0.5, 1.0])
def test_each_method_is_its_row_of_the_design(name, progress):
    method, (F, B, update, ends) = METHODS[name], TABLE[name]
    x = np.array([-50, -2, -1, -0.3, -0.01, 0, 0.01, 0.2, 1, 1.5, 50])
    now = {key: start + (end - start) * progress for key, (start, end) in ends.items()}
    if "mu" in ends:  # by equal factors
        now["mu"] = ends["mu"][0] ** (1 - progress) * ends["mu"][1] ** progress
    assert method.values(progress) == pytest.approx(now)
    np.testing.assert_allclose(method.F(x, now), F(x, **now if F in (sign_swish, linear_quantizer) else {}))
    assert (method.backward is None) == (B is None)
    if B:
        expected = B(x, **now) if B is sign_swish_slope else B(x)
        np.testing.assert_allclose(method.B(x, now), expected, atol=1e-12)
    assert method.update == update and update in UPDATES
    assert (method.binary, method.trains) == (name != "float", name != "ptq")


def test_schedules_of_a_recipe_replace_the_methods_own():
    assert METHODS["bnn++"].values(1.0, {"mu": constant(7.0)}) == {"mu": 7}


def test_an_unknown_method_is_refused_with_near_misses_and_the_list():
    with pytest.raises(InputError, match=r"--method: no method is named 'bnn\+\+\+'") as caught:
        find_method("bnn+++", where="--method")
    assert "Did you mean 'bnn++'" in str(caught.value) and "bnnpp methods" in str(caught.value)
    with pytest.raises(InputError) as caught:
        find_method("quantum")
    assert "Did you mean" not in str(caught.value) and "bnnpp methods" in str(caught.value)


# --- autograd --------------------------------------------------------------------------------------------


def shaped(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def operands(shape, per_channel: bool):
    """Latents that require a gradient, n and alpha."""
    rows = (shape[0], *[1] * (len(shape) - 1)) if per_channel else ()
    n = 0.5 + torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return shaped(*shape).requires_grad_(), n, (n + 0.25).square()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 2)])
@pytest.mark.parametrize("name", ["bc", "bnn", "bnn+", "bnn++", "pc"])
def test_forward_is_alpha_F_and_backward_is_alpha_over_n_B(name, shape, per_channel):
    method, (F, B, _, ends) = METHODS[name], TABLE[name]
    values = {key: 0.4 * start + 0.1 for key, (start, _) in ends.items()}
    w, n, alpha = operands(shape, per_channel)
    n.requires_grad_()
    grad = shaped(*shape, seed=2)
    out = ForwardBackward.apply(w, n, alpha, lambda x: method.F(x, values), lambda x: method.B(x, values))
    out.backward(grad)

    x, a, g = (w / n).detach().numpy(), alpha.detach().numpy(), grad.numpy()
    forward = F(x, **values) if F in (sign_swish, linear_quantizer) else F(x)
    backward = B(x, **values) if B is sign_swish_slope else B(x)
    np.testing.assert_allclose(out.detach().numpy(), a * forward)
    np.testing.assert_allclose(w.grad.numpy(), g * a / n.detach().numpy() * backward, atol=1e-12)
    assert n.grad is None and w.grad.is_contiguous(memory_format=torch.channels_last) == (len(shape) == 4)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
def test_where_B_is_the_derivative_of_F_autograd_and_finite_differences_agree(shape, per_channel):
    w, n, alpha = operands(shape, per_channel)
    alpha.requires_grad_()

    def quantized(w, alpha):
        return ForwardBackward.apply(
            w, n, alpha, lambda x: q.sign_swish(x, 3.0), lambda x: q.sign_swish_slope(x, 3.0)
        )

    assert torch.autograd.gradcheck(quantized, (w, alpha))
    grad = shaped(*shape, seed=3)
    ours = torch.autograd.grad(quantized(w, alpha), (w, alpha), grad)
    plain = torch.autograd.grad(alpha * q.sign_swish(w / n, 3.0), (w, alpha), grad)
    for found, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_learned_alpha_gets_the_sum_of_grad_times_F_over_what_it_scales():
    w, n, alpha = operands((4, 3, 3, 2), per_channel=True)
    alpha.requires_grad_()
    grad = shaped(4, 3, 3, 2, seed=4)
    ForwardBackward.apply(w, n, alpha, q.sign, q.ste).backward(grad)
    expected = (grad.numpy() * sign(w.detach().numpy())).sum((1, 2, 3))
    np.testing.assert_allclose(alpha.grad.reshape(-1).numpy(), expected)


def test_no_gradient_flows_through_the_statistics_that_n_and_alpha_were_taken_from():
    w, _, _ = operands((5, 7), per_channel=True)
    n = w.abs().mean(1, keepdim=True)  # attached: the function itself must cut it
    ForwardBackward.apply(w, n, n.detach(), q.sign, q.ste).sum().backward()
    torch.testing.assert_close(w.grad, torch.ones_like(w))
