"""Plots by matplotlib. Importing this costs a third of a second: only the report and `--plot` do."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from binarize_cli.report.curves import Curves

INK = "#7a7b7c"  # reads on white and on black; inside a page it becomes the page's own colour of text
COLOURS = ("#e08a1e", "#2a9d8f", "#3b7dd8")  # start, middle, end; told apart by every kind of eye
STYLE = {
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


def svg(figure: Figure) -> str:
    """The figure as an element of a page: text is text, in the colour of the page, without a background."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :].replace(INK, "currentColor")


def quantizer_curves(curves: Curves, panels: Sequence[str] = ("F", "B")) -> Figure:
    """F over x and B over x (over its peak), a line a moment; shaded where the weights lie.

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
        forward, backward = (curve.forward, curve.label), (curve.backward, f"peak {curve.peak:.3g}")
        y, label = forward if panel == "F" else backward
        axes.plot(curves.x, y, color=colour, label=label)
    axes.legend(loc="upper left" if panel == "F" else "upper right", fontsize=8)


def epoch_curves(rows: Sequence[Mapping], float_top1: float | None, best: int | None) -> list[Figure]:
    """The epochs of one stage: top-1 (dashed: the float model's), losses, and flip ratio if there is one."""
    epochs = [row["epoch"] for row in rows]
    twofold = any(row["soft_top1"] != row["hard_top1"] for row in rows)  # otherwise F is sign throughout
    with matplotlib.rc_context(STYLE):
        figures = [_top1(rows, epochs, float_top1, best, twofold), _losses(rows, epochs, twofold)]
        if any(row["flip_ratio"] is not None for row in rows):
            figure, axes = _panel("flip ratio, % of signs an epoch")
            axes.plot(epochs, [_percent(row["flip_ratio"]) for row in rows], color=COLOURS[2], marker=".")
            axes.set_ylim(bottom=0)
            figures.append(figure)
    return figures


def _panel(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4, 2.7), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _top1(
    rows: Sequence[Mapping], epochs: list[int], float_top1: float | None, best: int | None, twofold: bool
) -> Figure:
    figure, axes = _panel("top-1, %")
    hard = [row["hard_top1"] for row in rows]
    if float_top1 is not None:
        axes.axhline(float_top1, color=INK, linestyle="--", linewidth=1, label="float model")
    if twofold:
        axes.plot(epochs, [row["soft_top1"] for row in rows], color=COLOURS[0], label="soft", marker=".")
    axes.plot(epochs, hard, color=COLOURS[2], label="hard" if twofold else None, marker=".")
    if best in epochs:
        axes.plot([best], [hard[epochs.index(best)]], "o", color=COLOURS[2], label="best", markersize=7)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _losses(rows: Sequence[Mapping], epochs: list[int], twofold: bool) -> Figure:
    figure, axes = _panel("loss")
    if twofold:
        axes.plot(epochs, [row["soft_loss"] for row in rows], color=COLOURS[0], label="validation, soft")
    label = "validation, hard" if twofold else "validation"
    axes.plot(epochs, [row["hard_loss"] for row in rows], color=COLOURS[2], label=label)
    objective = [row["loss"] for row in rows]
    axes.plot(epochs, objective, color=INK, linestyle=":", label="training objective")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8)
    return figure
