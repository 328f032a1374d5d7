"""Plots by matplotlib, for `--plot`. Importing this costs a third of a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from binarize_cli.report.curves import Curves

INK = "#7a7b7c"  # reads on white and on black
COLOURS = ("#e08a1e", "#2a9d8f", "#3b7dd8")  # start, middle, end; told apart by every kind of eye
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a class or a model may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "bnnpp",  # the same document draws the same page
}


def quantizer_curves(curves: Curves, panels: Sequence[str] = ("F", "B")) -> Figure:
    """Plot F over x and B over x (divided by its peak), a line a moment; where the weights lie is shaded.

    A method without B has the panel of F alone.
    """
    if curves.lines[0].backward is None:
        panels = ["F"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set(xlabel="x", title={"F": "F(x), forward", "B": "B(x) / peak, backward"}[panel])
            if curves.reach:
                axes.axvspan(-curves.reach, curves.reach, color=INK, alpha=0.12, linewidth=0)
            _draw_quantizer(axes, curves, panel)
    return figure


def _draw_quantizer(axes: Axes, curves: Curves, panel: str) -> None:
    colours = COLOURS if len(curves.lines) > 1 else COLOURS[-1:]
    for curve, colour in zip(curves.lines, colours, strict=True):
        y = curve.forward if panel == "F" else curve.backward
        assert y is not None, "a method without B has no panel for it"
        axes.plot(curves.x, y, color=colour, label=curve.label if panel == "F" else f"peak {curve.peak:.3g}")
    axes.legend(loc="upper left" if panel == "F" else "upper right", fontsize=8)
