"""The recipe that format 2 leaves unsaid: a file holds only what differs from it.

These are the defaults of bnnpp when format 2 was made. They belong to the format and never change, so that
a file's recipe stays what it was when a default of the tool moves. A key that is newer is always written.
"""

from __future__ import annotations

import copy
from typing import Any

RECIPE_DEFAULTS: dict[str, Any] = {
    "description": "",
    "quantizer": {"scale": "channel", "normalize": None, "map": None, "transform": None, "schedules": {}},
    "activation": {
        "method": None,
        "threshold": "learned",
        "scale": "learned",
        "normalize": None,
        "schedules": {},
        "padding": "zero",
        "blocks": "bi-real",
        "attention": "float",
    },
    "accumulator": {"overflow": "saturate", "shift": "auto"},
    "layers": {"keep_float": ["first", "head"], "make_binary": []},
    "preprocess": {"mean": None, "std": None, "interpolation": None, "crop_pct": None},
    "augment": {
        "crop": "auto",
        "scale": [0.35, 1.0],
        "hflip": "auto",
        "color_jitter": 0.0,
        "auto_augment": None,
        "reprob": 0.0,
    },
    "distill": {"weight": 0.5, "temperature": 2.0, "blocks": 0.0},
    "train": {
        "epochs": 30,
        "float_epochs": 5,
        "activation_epochs": 0,
        "batch_size": 64,
        "accumulate": 1,
        "sync_batchnorm": False,
        "opt": "adamw",
        "lr": 0.0005,
        "weight_decay": 0.0,
        "sched": "cosine",
        "min_lr": 1e-06,
        "warmup": 0.05,
        "clip_grad": 1.0,
        "amp": "auto",
        "mixup": 0.0,
        "cutmix": 0.0,
        "smoothing": 0.0,
        "ema": 0.0,
        "harden": 0.1,
        "reestimate_batchnorm": True,
        "hold_out": 0.05,
        "seed": 0,
    },
    "pack": {"float_dtype": "float16"},
}


def differences(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what a resolved recipe says, beside its method and task, that the defaults do not."""
    rest = {key: value for key, value in recipe.items() if key not in ("method", "task")}
    return _differences(rest, RECIPE_DEFAULTS)


def resolved(left: dict[str, Any], method: str, task: str) -> dict[str, Any]:
    """Return the whole recipe that has those differences from the defaults. The inverse of `differences`."""
    return {"method": method, "task": task} | _merged(RECIPE_DEFAULTS, left)


def _differences(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    left: dict[str, Any] = {}
    for key, value in values.items():
        usual = defaults.get(key, ...)
        if isinstance(value, dict) and isinstance(usual, dict) and usual:
            if below := _differences(value, usual):
                left[key] = below
        elif value != usual:
            left[key] = value
    return left


def _merged(defaults: dict[str, Any], left: dict[str, Any]) -> dict[str, Any]:
    whole = copy.deepcopy(defaults)
    for key, value in left.items():
        usual = whole.get(key)
        whole[key] = _merged(usual, value) if isinstance(usual, dict) and isinstance(value, dict) else value
    return whole
