"""A rectangle cut into areas: what in a file takes how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One area, in per cent of the rectangle's width and height."""

    index: int
    """Of the value it stands for."""
    x: float
    y: float
    width: float
    height: float


def squarify(values: Sequence[float], ratio: float = 2.4) -> list[Tile]:
    """Return a tile for each positive value, its area in proportion, nearly square if the whole is `ratio`.

    Bruls, Huizing, van Wijk, "Squarified Treemaps", 2000: rows are filled along the shorter side as long as
    that makes their worst tile squarer.
    """
    order = sorted((i for i, value in enumerate(values) if value > 0), key=lambda i: -values[i])
    total = sum(values[i] for i in order)
    areas = [(i, values[i] / total * ratio) for i in order]  # of a rectangle `ratio` wide and 1 high
    tiles: list[Tile] = []
    x = y = 0.0
    width, height = ratio, 1.0
    while areas:
        side = min(width, height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        thick = sum(area for _, area in row) / side
        along = 0.0
        for index, area in row:
            length = area / thick
            box = (x, y + along, thick, length) if width > height else (x + along, y, length, thick)
            tiles.append(Tile(index, 100 * box[0] / ratio, 100 * box[1], 100 * box[2] / ratio, 100 * box[3]))
            along += length
        if width > height:
            x, width = x + thick, width - thick
        else:
            y, height = y + thick, height - thick
    return tiles


def _worst(row: Sequence[tuple[int, float]], side: float) -> float:
    """Return the largest ratio of a tile's sides in a row along `side`."""
    total = sum(area for _, area in row)
    thick = total / side
    return max(max(thick * thick / area, area / (thick * thick)) for _, area in row)
