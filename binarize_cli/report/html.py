"""report.html: one page that needs nothing else, drawn from the document that report.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from binarize_cli.quantizers.certify import certify
from binarize_cli.recipe import Recipe, effective_method, effective_normalize, effective_schedules
from binarize_cli.report import hardening, panels, tables
from binarize_cli.report.confusion import pairs
from binarize_cli.report.fold import fold, folded_name, reason

TASKS = {
    "bw": "binary weights, float activations",
    "bwa": "binary weights and activations",
    "bwaa": "binary weights and activations, 8-bit accumulators",
}
SELECTED = {
    "last": "The last epoch was packed: nothing was selected.",
    "held-out": "The epoch that was packed was selected on training images that were held out.",
    "val": "The epoch that was packed was selected on these very images.",
}
SHORT = {"float": "float", "soft": "soft", "hard": "hard", "packed": "packed"}


def render(document: Mapping[str, Any]) -> str:
    """Return the report as an HTML page: styles and pictures inside it, no script, every text escaped."""
    recipe = Recipe.model_validate(document["recipe"])
    method = effective_method(recipe)
    classes = document["data"].get("names", document["data"]["classes"])
    return (
        environment()
        .get_template("template.html")
        .render(
            d=document,
            method=method,
            certificate=certify(method, effective_schedules(recipe)),
            normalize=effective_normalize(recipe),
            task=TASKS.get(document["task"], ""),
            strip=strip(document["accuracy"]),
            networks={tables.NETWORKS[k]: v for k, v in document["accuracy"].items() if v},
            size_sentence=tables.size_sentence(
                document["bytes"], document["float32_bytes"], document["ratio"], document["binary_weights"]
            ),
            parts=tables.PARTS,
            macs_sentence=tables.macs_sentence(document["macs"]),
            size_picture=panels.size_picture(document),
            training=panels.training(document),
            selected=SELECTED.get(document["selection"], ""),
            movement=panels.movement(document.get("flips")),
            tiles=panels.bytes_map(document),
            quantizers=panels.quantizers(recipe),
            hardened_inputs=hardening.of_inputs(recipe),
            inputs=panels.inputs(document.get("inputs")),
            overflow=panels.overflow(document["layers"]),
            latents=panels.latents(document.get("latents")),
            layers=fold(document["layers"]),
            heatmap=panels.confusion_table(document["confusion"], classes),
            pairs=pairs(document["confusion"], classes),
            recipe=recipe.as_yaml(),
        )
    )


def strip(accuracy: Mapping[str, Mapping | None]) -> list[dict[str, Any]]:
    """Return the networks that were scored, in order, each with the points gained since the one before."""
    scored = [(SHORT[name], scores["top1"]) for name in SHORT if (scores := accuracy.get(name))]
    before = [None, *(top1 for _, top1 in scored)]
    return [
        {"name": name, "top1": top1, "change": None if last is None else top1 - last}
        for (name, top1), last in zip(scored, before, strict=False)
    ]


def points(change: float) -> str:
    """Return a difference with its sign, a minus and not a hyphen."""
    return f"{change:+.2f}".replace("-", "\N{MINUS SIGN}") if round(change, 2) else "±0"


def environment() -> Environment:
    """Return the templates of this folder, with the filters that they use; they escape every text."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "size": tables.size,
        "shape": tables.shape_text,
        "accumulator": tables.accumulator_text,
        "mistaken_for": tables.mistaken_for,
        "folded_name": folded_name,
        "reason": reason,
        "points": points,
        "thousands": "{:,}".format,
        "two": "{:.2f}".format,
        "three": "{:.3g}".format,
    }
    return made
