"""Which classes are taken for which: counts of images, kept without the zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def sparse(confusion: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """Return the counts above 0 as columns: the true class, the predicted class, the number of images."""
    entries = [(i, j, n) for i, row in enumerate(confusion) for j, n in enumerate(row) if n]
    columns = ("true", "predicted", "images")
    return {name: [entry[place] for entry in entries] for place, name in enumerate(columns)}


def dense(counts: Mapping[str, Sequence[int]], classes: int) -> list[list[int]]:
    """Return the matrix [true][predicted] again."""
    matrix = [[0] * classes for _ in range(classes)]
    for i, j, n in zip(counts["true"], counts["predicted"], counts["images"], strict=True):
        matrix[i][j] = n
    return matrix


def pairs(
    counts: Mapping[str, Sequence[int]], classes: Sequence[str], most: int = 10
) -> list[dict[str, Any]]:
    """Return the pairs of classes that are confused most, whichever of them was the true one.

    Each has `first` and `second` (names), `images`, and `forth`, those of them whose true class is the first.
    """
    mixed: dict[tuple[int, int], list[int]] = {}
    for i, j, n in zip(counts["true"], counts["predicted"], counts["images"], strict=True):
        if i != j:
            mixed.setdefault((min(i, j), max(i, j)), [0, 0])[i > j] += n
    ranked = sorted(mixed.items(), key=lambda entry: (-sum(entry[1]), entry[0]))[:most]
    return [_pair(classes[a], classes[b], *both) for (a, b), both in ranked]


def _pair(first: str, second: str, forth: int, back: int) -> dict[str, Any]:
    """Put the class that is mistaken more often in front."""
    if back > forth:
        first, second, forth, back = second, first, back, forth
    return {"first": first, "second": second, "images": forth + back, "forth": forth}
