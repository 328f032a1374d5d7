"""report.html: one page that needs nothing else, drawn from the document that report.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from binarize_cli.quantizers.certify import certify
from binarize_cli.recipe import Recipe, effective_method, effective_normalize, effective_schedules
from binarize_cli.report import tables
from binarize_cli.report.curves import sample
from binarize_cli.report.plots import epoch_curves, quantizer_curves, svg

SHORT_TABLE = 30  # layers; a longer table starts folded
SMALL_HEATMAP = 20  # classes; a larger matrix is not drawn
TASKS = {
    "bw": "binary weights, float activations",
    "bwa": "binary weights and activations",
    "bwaa": "binary weights and activations, 8-bit accumulators",
}


def render(document: Mapping[str, Any]) -> str:
    """The report as an HTML page: styles and pictures inside it, no script, every text escaped."""
    recipe = Recipe.model_validate(document["recipe"])
    method = effective_method(recipe)
    return _template().render(
        d=document,
        method=method,
        certificate=certify(method, effective_schedules(recipe)),
        normalize=effective_normalize(recipe),
        task=TASKS.get(document["task"], ""),
        networks={tables.NETWORKS[k]: v for k, v in document["accuracy"].items() if v},
        size_sentence=tables.size_sentence(
            document["bytes"], document["float32_bytes"], document["ratio"], document["binary_weights"]
        ),
        parts=tables.PARTS,
        macs_sentence=tables.macs_sentence(document["macs"]),
        epoch_plots=_epoch_plots(document),
        quantizer_plots=_quantizer_plots(recipe),
        heatmap=_heatmap(document["confusion"], document["data"]["classes"]),
        folded=len(document["layers"]) > SHORT_TABLE,
        recipe=recipe.as_yaml(),
    )


def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": tables.size,
        "shape": tables.shape_text,
        "accumulator": tables.accumulator_text,
        "mistaken_for": tables.mistaken_for,
        "thousands": "{:,}".format,
        "two": "{:.2f}".format,
    }
    return environment.get_template("template.html")


def _epoch_plots(document: Mapping[str, Any]) -> list[Markup]:
    """The curves of the last stage; a float stage before it fitted the reference, which is a line here."""
    rows = [row for row in document["epochs"] if row["stage"] == document["epochs"][-1]["stage"]]
    if len(rows) < 2:
        return []
    reference = document["accuracy"]["float"]
    figures = epoch_curves(rows, reference and reference["top1"], document["best_epoch"])
    return [Markup(svg(figure)) for figure in figures]


def _quantizer_plots(recipe: Recipe) -> list[Markup]:
    """F, and B if the method has one, with the schedules of this run; nothing for the float network."""
    method = effective_method(recipe)
    if not method.binary:
        return []
    curves = sample(method, effective_schedules(recipe), effective_normalize(recipe))
    panels = "FB" if method.backward else "F"
    return [Markup(svg(quantizer_curves(curves, [panel]))) for panel in panels]


def _heatmap(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Any] | None:
    """Rows of (count, share of the true class); None for a matrix too large to read.

    Columns are headed by the names where they are short, else by numbers that the rows carry too.
    """
    if len(classes) > SMALL_HEATMAP:
        return None
    short = all(len(name) <= 3 for name in classes)
    heads = list(classes) if short else [str(i) for i in range(len(classes))]
    names = list(classes) if short else [f"{i} {name}" for i, name in enumerate(classes)]
    shares = [[(n, n / (sum(counts) or 1)) for n in counts] for counts in confusion]
    return {"heads": heads, "rows": list(zip(names, shares, strict=True))}
