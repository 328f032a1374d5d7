"""What of a recipe makes a run another run: the runs of one row of a comparison have it in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from binarize_cli.quantizers.methods import METHODS
from binarize_cli.recipe import Recipe


def settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result's recipe without description and seed, and with the defaults of keys newer than it.

    For methods whose F is sign all along, what says how F hardens is left out.
    """
    defaults: dict[str, Any] = Recipe().model_dump(mode="json")
    recipe = {key: _filled(value, defaults.get(key)) for key, value in result["recipe"].items()}
    unsaid = {"train": {"seed"}}
    if _is_sign(result):
        unsaid = {"train": {"seed", "harden", "harden_inputs"}, "activation": {"window"}}
    for section, keys in unsaid.items():
        recipe[section] = {key: value for key, value in recipe.get(section, {}).items() if key not in keys}
    return {key: value for key, value in recipe.items() if key != "description"}


def _filled(section: Any, defaults: Any) -> Any:
    return {**defaults, **section} if isinstance(section, Mapping) and defaults else section


def _is_sign(result: Mapping[str, Any]) -> bool:
    """Return whether F is sign from the first step, of weights and of inputs."""
    names = result["method"], result["recipe"].get("activation", {}).get("method") or result["method"]
    return all(name in METHODS and METHODS[name].is_sign for name in names)
