"""F and B of a method as a plot of characters."""

from __future__ import annotations

import numpy as np
import plotext

from binarize_cli.report.curves import Curves

MARKERS = ("dot", "braille", "hd")  # the lines differ without colours
STRIDE = 10  # a terminal shows fewer points than there are


def quantizer_plot(curves: Curves, width: int, colour: bool) -> str:
    """Return F, and beside it B over its peak, as text `width` columns wide."""
    panels: dict[str, list[tuple[str | None, np.ndarray]]] = {
        "F(x)": [(c.label, c.forward) for c in curves.lines]
    }
    if curves.lines[0].backward is not None:
        peaks = ", ".join(dict.fromkeys(f"{c.peak:.3g}" for c in curves.lines))
        panels[f"B(x) / peak {peaks}"] = [(None, c.backward) for c in curves.lines if c.backward is not None]
    plotext.terminal.limit(False, False)  # a pipe has no size to keep within
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, 16)
    if len(panels) > 1:  # plotext makes no grid of one
        figure.subplots(1, len(panels))
    figure.theme("simple")
    for column, (title, lines) in enumerate(panels.items(), start=1):
        panel = figure.subplot(1, column) if len(panels) > 1 else figure
        panel.title(title)
        for marker, (label, y) in zip(MARKERS, lines, strict=False):
            line = panel.signal(list(curves.x[::STRIDE]), list(y[::STRIDE]), marker=marker)
            panel.draw(line.lines().label(label))
    return figure.build().string(colorless=not colour)
