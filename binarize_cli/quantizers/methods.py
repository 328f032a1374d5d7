"""The registry of methods: a method is added here, by one entry, and nowhere else.

The command line, recipe validation, did-you-mean, cards, reports and the contract test all read it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points

from binarize_cli.errors import InputError, closest
from binarize_cli.quantizers import functions as q
from binarize_cli.quantizers.compose import COMPOSED, compose
from binarize_cli.quantizers.method import Method
from binarize_cli.quantizers.parts import find_map
from binarize_cli.quantizers.schedules import Schedule, constant

_ENTRIES = (
    Method(
        name="float",
        title="Float reference",
        forward=q.identity,
        backward=q.ste,
        forward_formula="x",
        backward_formula="1",
        update="plain",
        source="-",
        when="the reference run: same data, same recipe, no binary layer",
    ),
    Method(
        name="ptq",
        title="Post-training signs",
        forward=q.sign,
        backward=None,
        forward_formula="sign(x)",
        backward_formula="-",
        update="none",
        source="Rastegari et al. 2016 (arXiv 1603.05279), the scale alone",
        when="the baseline: what signs and scales cost before any training",
    ),
    Method(
        name="bc",
        title="BinaryConnect",
        forward=q.sign,
        backward=q.ste,
        forward_formula="sign(x)",
        backward_formula="1",
        update="forward-backward",
        source="Courbariaux et al. 2015 (arXiv 1511.00363)",
        when="binary weights of small networks: nothing to tune, and as accurate as any",
        normalize=1.0,  # sign does not see n; with 1 the gradient reaches the latents as it is
    ),
    Method(
        name="bnn",
        title="Binarized neural networks",
        forward=q.sign,
        backward=q.clipped_ste,
        forward_formula="sign(x)",
        backward_formula="1 if |x| <= 1, else 0",
        update="forward-backward",
        source="Hubara et al. 2016 (arXiv 1602.02830)",
        when="the classical clipped estimator; weights that run away from zero stop moving",
        normalize=3.0,  # the window holds 98% of normally distributed weights
    ),
    Method(
        name="bnn+",
        title="BNN+ (SignSwish backward)",
        forward=q.sign,
        backward=q.sign_swish_slope,
        forward_formula="sign(x)",
        backward_formula="SS_mu'(x) = 2 mu s(z) s(-z) (2 - z tanh(z/2)), z = mu x",
        update="forward-backward",
        source="Darabi et al. 2018 (arXiv 1812.11800)",
        when="a smooth window around zero; compare with bnn++, its principled form",
        schedules={"mu": constant(5.0)},
    ),
    Method(
        name="bnn++",
        title="BNN++ (SignSwish forward and backward)",
        forward=q.sign_swish,
        backward=q.sign_swish_slope,
        forward_formula="SS_mu(x) = 2 s(z) (1 + z (1 - s(z))) - 1, z = mu x",
        backward_formula="SS_mu'(x) = 2 mu s(z) s(-z) (2 - z tanh(z/2))",
        update="forward-backward",
        source="Lu et al. 2023 (arXiv 2402.17710), BNN++; the end of the schedule is ours",
        when="the default: starts as the float network and hardens; ahead of bc on DeiT-Tiny",
        schedules={"mu": Schedule(5.0, 60.0, "log")},
    ),
    Method(
        name="pc",
        title="ProxConnect",
        forward=q.linear_quantizer,
        backward=q.ste,
        forward_formula="L_rho(x) = sign(x) min(1, rho + |x|); sign(x) from rho = 1 on",
        backward_formula="1",
        update="forward-backward",
        source="Dockhorn et al. 2021 (arXiv 2110.13220)",
        when="BinaryConnect with a soft start, of a tenth of the steps; between bc and bnn++ on DeiT-Tiny",
        schedules={"rho": Schedule(0.01, 10.0)},
        parts=("map",),
    ),
    Method(
        name="pq",
        title="ProxQuant",
        forward=q.linear_quantizer,
        backward=None,
        forward_formula="P = L_rho",
        backward_formula="-",
        update="map-after-step",
        source="Bai et al. 2019 (arXiv 1810.00861), with the LQ map",
        when="weights move towards signs after every step; quantizer.map soft-threshold is its original map",
        schedules={"rho": Schedule(0.01, 10.0)},
        parts=("map",),
    ),
    Method(
        name="rpc",
        title="Reverse ProxConnect",
        forward=q.linear_quantizer,
        backward=None,
        forward_formula="P = L_rho",
        backward_formula="-",
        update="map-before-step",
        source="Dockhorn et al. 2021 (arXiv 2110.13220)",
        when="for comparison: the gradient at the latent weights, the step from the mapped ones",
        schedules={"rho": Schedule(0.01, 10.0)},
        parts=("map",),
    ),
    Method(
        name="poly",
        title="Bi-Real (polynomial backward)",
        forward=q.sign,
        backward=q.polynomial_slope,
        forward_formula="sign(x)",
        backward_formula="p'(x) = 2 - 2|x| for |x| <= 1, else 0",
        update="forward-backward",
        source="Liu et al. 2018 (arXiv 1808.00278)",
        when="a triangular window; compare with poly+, its principled form",
        normalize=3.0,  # the window holds 98% of normally distributed weights
    ),
    Method(
        name="poly+",
        title="Polynomial forward and backward",
        forward=q.polynomial,
        backward=q.polynomial_slope,
        forward_formula="p(z) = sign(z) (2|z| - z^2) for |z| <= 1, else sign(z); z = mu x",
        backward_formula="mu (2 - 2|z|) for |z| <= 1, else 0",
        update="forward-backward",
        source="the recipe of Lu et al. 2023 applied to Bi-Real",
        when="as bnn++, without its overshoot; saturated weights get no gradient at all",
        schedules={"mu": Schedule(1.0, 50.0)},
    ),
    Method(
        name="ede",
        title="IR-Net (error decay estimator)",
        forward=q.sign,
        backward=q.ede_slope,
        forward_formula="sign(x)",
        backward_formula="g'(x) = k t (1 - tanh^2(t x)), k = max(1 / t, 1)",
        update="forward-backward",
        source="Qin et al. 2020 (arXiv 1909.10788)",
        when="a wide window that narrows; compare with ede+, its principled form",
        schedules={"t": Schedule(0.1, 10.0, "log")},
        normalize=1.25,  # the standard deviation of normally distributed weights, as IR-Net has it
    ),
    Method(
        name="ede+",
        title="tanh forward and backward",
        forward=q.tanh,
        backward=q.tanh_slope,
        forward_formula="tanh(t x)",
        backward_formula="t (1 - tanh^2(t x))",
        update="forward-backward",
        source="the recipe of Lu et al. 2023 applied to IR-Net",
        when="as bnn++, without its overshoot",
        schedules={"t": Schedule(2.0, 75.0)},
    ),
    Method(
        name="parq",
        title="PARQ",
        forward=q.parq,
        backward=q.ste,
        forward_formula="clip(x / s, -1, 1); sign(x) at s = 0",
        backward_formula="1",
        update="forward-backward",
        source="Jin et al. 2025 (arXiv 2503.15748)",
        when="ProxConnect with a gradual map: float at the start, signs at the end",
        schedules={"s": Schedule(1.0, 0.0, "sigmoid")},
    ),
    Method(
        name="binary-relax",
        title="BinaryRelax",
        forward=q.binary_relax,
        backward=q.ste,
        forward_formula="(1 - theta) x + theta sign(x)",
        backward_formula="1",
        update="forward-backward",
        source="Yin et al. 2018 (arXiv 1801.06313)",
        when="a relaxation between the float and the sign network",
        schedules={"theta": Schedule(0.0, 1.0)},
        normalize=1.0,  # x and sign(x) have the same magnitude then
    ),
    compose(*COMPOSED),
)


def foreign_methods() -> dict[str, Method]:
    """Return the methods of other packages: their entry points of the group `bnnpp.methods`, by name.

    Raises InputError for one that cannot be imported, that is no Method, or that has the name of another.
    """
    found: dict[str, Method] = {}
    for entry in entry_points(group="bnnpp.methods"):
        where = f"entry point {entry.name} of bnnpp.methods"
        try:
            method = entry.load()
        except (ImportError, AttributeError) as error:
            hint = "Mend or uninstall the package that brings it."
            raise InputError(f"cannot be imported: {error}", where=where, hint=hint) from error
        if not isinstance(method, Method) or method.name != entry.name:
            hint = "It must name a Method of binarize_cli.quantizers.method, under the method's own name."
            raise InputError(f"is not a method named '{entry.name}'", where=where, hint=hint)
        if method.name in found or method.name in (own.name for own in _ENTRIES):
            raise InputError(f"a method named '{method.name}' exists already", where=where)
        found[method.name] = method
    return found


METHODS: dict[str, Method] = {method.name: method for method in _ENTRIES} | foreign_methods()


def find_method(name: str, where: str | None = None) -> Method:
    """Return the method of that name. Raises InputError, with near misses, if there is none.

    >>> find_method("bnn++").title
    'BNN++ (SignSwish forward and backward)'
    """
    if name not in METHODS:
        hint = closest(name, METHODS, "Run 'bnnpp methods' to see them all.")
        raise InputError(f"no method is named '{name}'", where=where, hint=hint)
    return METHODS[name]


def with_parts(method: Method, map_name: str | None, transform_name: str | None) -> Method:
    """Return the method with another P or T.

    Raises InputError if it has no such part to choose, or if the name is unknown.

    >>> with_parts(find_method("pc"), "parq", None).forward_formula
    'P = clip(x / s, -1, 1)'
    """
    for part, wanted in (("map", map_name), ("transform", transform_name)):
        if wanted is not None and part not in method.parts:
            able = ", ".join(m.name for m in METHODS.values() if part in m.parts)
            raise InputError(f"{method.name} has no {part} to choose", hint=f"These have: {able}.")
    if "transform" in method.parts and (map_name or transform_name):
        return compose(map_name or COMPOSED[0], transform_name or COMPOSED[1])
    if map_name is None:
        return method
    p = find_map(map_name)
    return replace(method, forward=p.apply, forward_formula=f"P = {p.formula}", schedules=p.schedules)
