"""How binary inputs are trained once their F is sign, in words."""

from __future__ import annotations

from binarize_cli.recipe import Recipe, activation_method, activation_windows


def of_inputs(recipe: Recipe) -> str | None:
    """Return when F of the inputs is sign, and what B then is; None if no F of inputs was hardened."""
    share = recipe.train.inputs_hardened
    if recipe.task == "bw" or activation_method(recipe).is_sign or not share:
        return None
    since = "from the first step" if share == 1 else f"in the last {100 * share:g}% of the steps"
    images, tokens = activation_windows(recipe)
    far = f"{images:g}" if images == tokens else f"{images:g} (convolutions) or {tokens:g} (other layers)"
    return f"F of inputs is sign {since}, and B is SS' within {far} times their scale, 0 beyond."
