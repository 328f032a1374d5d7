"""Charts as SVG elements of a page: in the page's own colours, light or dark, and no legend over a line.

An element is drawn 360 units wide and scaled to its column. A series differs from the others in its colour,
its dashes and its mark, so that it is found again in grey, in print and by the colour-blind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH = 360
STYLES = 7  # colours in style.css: s0 ... s6
DASHES = ("", "6 3", "2 2", "8 3 2 3", "11 3", "4 2 1 2", "1 3")
CHARACTER = 5.6  # units, the widest that a digit of the font takes at its size of 10


@dataclass(frozen=True)
class Series:
    """A line or a set of points."""

    label: str
    points: Sequence[tuple[float, float | None]]
    """(x, y); the line has a gap where y is None."""
    style: int = 0
    marks: bool = False
    """Whether each point has a mark too; a lone point always has."""


@dataclass(frozen=True)
class Chart:
    """A picture and the legend that stands beside it."""

    title: str
    svg: Markup
    legend: list[tuple[str, Markup]] = field(default_factory=list)
    """(label, sample of the line)."""
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """Values -> places between two ends of the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Return about `most` round values, 1, 2 or 5 times a power of ten apart, that cover low to high."""
    span = (high - low) or abs(high) or 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Return a tick's text: 0.02, 15, 1e-05."""
    return f"{value:.6g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.0e}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "epoch",
    height: int = 190,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    whole_x: bool = True,
    log_y: bool = False,
    band: tuple[float, float] | None = None,
    level: tuple[float, str] | None = None,
    ring: tuple[float, float, str] | None = None,
    note: str = "",
) -> Chart:
    """Return a chart of lines over a common x.

    `band`: an interval of x to shade. `level`: a dashed horizontal line and its name. `ring`: a point to
    mark, as x, y and its name.
    """
    values = [y for line in series for _, y in line.points if y is not None]
    values += [level[0]] if level else []
    places = [x for line in series for x, _ in line.points] or [0.0]
    low, high = y_range or (min(values, default=0), max(values, default=1))
    y_ticks = _decades(low, high) if log_y else ticks(low, high)
    labels = [number(value) for value in y_ticks]
    left = 12 + CHARACTER * max(map(len, labels))
    x_low, x_high = x_range or (min(places), max(places))
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    x = Axis(x_low, x_high, left + 4, WIDTH - 8)
    y = Axis(y_ticks[0], y_ticks[-1], height - 34, 8, log=log_y)
    parts = []
    if band:
        clipped = max(band[0], x_low), min(band[1], x_high)
        shape = x(clipped[0]), y.end, x(clipped[1]) - x(clipped[0]), y.start - y.end
        parts.append(
            _tag("<rect class='band' x='{:.1f}' y='{:.1f}' width='{:.1f}' height='{:.1f}'/>", *shape)
        )
    parts += _frame(x, y, list(zip(y_ticks, labels, strict=True)), left, x_label, height, whole_x)
    legend = []
    if level:
        parts.append(_rule(left, y(level[0])))
        legend.append((level[1], _sample("level")))
    for line in series:
        parts += _line(line, x, y)
        if line.label:
            legend.append((line.label, line_sample(line.style, line.marks)))
    if ring:
        parts.append(_tag("<circle class='ring' cx='{:.1f}' cy='{:.1f}' r='5.5'/>", x(ring[0]), y(ring[1])))
        legend.append((ring[2], _sample("ring")))
    return Chart(title, _svg(title, parts, height), legend, note)


def line_sample(style: int, marks: bool = False) -> Markup:
    """Return a piece of a series' line, for a legend."""
    dash = _dash(style)
    mark = shape(style, 12, 6) if marks else Markup()
    path = _tag("<path class='line s{}' d='M1 6H23'{}/>", style % STYLES, dash)
    return _small(path + mark)


def mark_sample(style: int) -> Markup:
    """Return a series' mark, for a legend."""
    return _small(shape(style, 12, 6))


def _small(inner: Markup) -> Markup:
    return _tag("<svg class='sample' viewBox='0 0 24 12' aria-hidden='true'>{}</svg>", inner)


def shape(style: int, x: float, y: float, size: float = 3.6) -> Markup:
    """Return the mark of a series: circle, square, triangle, diamond, ring, cross."""
    forms: list[Callable[[], str]] = [
        lambda: (
            f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0Z"
        ),
        lambda: f"M{x - size:.1f} {y - size:.1f}h{2 * size}v{2 * size}h{-2 * size}Z",
        lambda: f"M{x:.1f} {y - size * 1.2:.1f}l{size * 1.2:.2f} {size * 2.1:.2f}h{-size * 2.4:.2f}Z",
        lambda: (
            f"M{x:.1f} {y - size * 1.35:.1f}l{size * 1.35:.2f} {size * 1.35:.2f}l{-size * 1.35:.2f} "
            f"{size * 1.35:.2f}l{-size * 1.35:.2f} {-size * 1.35:.2f}Z"
        ),
    ]
    kind = style % len(forms)
    hollow = " hollow" if style // len(forms) % 2 else ""
    return _tag("<path class='mark s{}{}' d='{}'/>", style % STYLES, hollow, forms[kind]())


def _frame(
    x: Axis, y: Axis, rows: Sequence[tuple[float, str]], left: float, x_label: str, height: int, whole: bool
) -> list[Markup]:
    """Return grid lines with their numbers, and the numbers and the name of x."""
    parts = []
    for value, label in rows:
        place = y(value)
        parts.append(_tag("<path class='grid' d='M{:.1f} {:.1f}H{}'/>", left, place, WIDTH - 4))
        parts.append(_text(left - 4, place + 3.5, label, "end"))
    shown = [v for v in ticks(x.low, x.high, 6, whole) if x.low - 1e-9 <= v <= x.high + 1e-9]
    parts += [_text(x(v), height - 20, number(v), "middle") for v in shown]
    parts.append(_text((x.start + x.end) / 2, height - 5, x_label, "middle", "name"))
    return parts


def _line(line: Series, x: Axis, y: Axis) -> list[Markup]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for place, value in line.points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((x(place), y(value)))
    pieces = [piece for piece in pieces if piece]
    path = "".join(path_of(piece) for piece in pieces if len(piece) > 1)
    parts = []
    if path:
        parts.append(_tag("<path class='line s{}' d='{}'{}/>", line.style % STYLES, path, _dash(line.style)))
    for piece in pieces:
        if len(piece) == 1 or (line.marks and len(piece) <= 40):
            parts += [shape(line.style, px, py, 2.6) for px, py in piece]
    return parts


def path_of(points: Sequence[tuple[float, float]], within: float = 0.15) -> str:
    """Return an SVG path through points, without those that lie `within` units of the path that is left.

    Ramer 1972, Douglas and Peucker 1973.
    """
    kept = {0, len(points) - 1}
    open_ends = [(0, len(points) - 1)]
    while open_ends:
        first, last = open_ends.pop()
        (x1, y1), (x2, y2) = points[first], points[last]
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        far, middle = 0.0, None
        for i in range(first + 1, last):
            x, y = points[i]
            away = abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length
            if away > far:
                far, middle = away, i
        if middle is not None and far > within:
            kept.add(middle)
            open_ends += [(first, middle), (middle, last)]
    return "M" + "L".join(f"{points[i][0]:.1f} {points[i][1]:.1f}" for i in sorted(kept))


def _dash(style: int) -> Markup:
    dash = DASHES[(style + style // STYLES) % len(DASHES)]  # of the second round, other dashes
    return Markup(" stroke-dasharray='{}'").format(dash) if dash else Markup()


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    step = max(1, (last - first) // 4)
    return [10.0**power for power in range(first, max(last, first + 1) + step, step)]


def _rule(left: float, place: float) -> Markup:
    return _tag("<path class='level' d='M{:.1f} {:.1f}H{}'/>", left, place, WIDTH - 4)


def _sample(kind: str) -> Markup:
    if kind == "ring":
        inner = Markup("<circle class='ring' cx='12' cy='6' r='4.5'/>")
    else:
        inner = Markup("<path class='level' d='M1 6H23'/>")
    return _small(inner)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    return _tag("<text x='{:.1f}' y='{:.1f}' text-anchor='{}'{}>{}</text>", x, y, anchor, _class(kind), text)


def _class(kind: str) -> Markup:
    return Markup(" class='{}'").format(kind) if kind else Markup()


def _svg(title: str, parts: Sequence[Markup], height: float) -> Markup:
    head = "<svg class='chart' viewBox='0 0 {} {:.0f}' role='img' aria-label='{}'>{}</svg>"
    return _tag(head, WIDTH, height, title, Markup().join(parts))


def _tag(text: str, *values: object) -> Markup:
    return Markup(text).format(*values)


# --- sizes -----------------------------------------------------------------------------------------------


def size_chart(
    title: str, sizes: Sequence[tuple[str, str, float]], scores: dict[str, float], height: int = 210
) -> Chart:
    """Return accuracy against size (log): a column for each of `sizes`, (name, text of the size, bytes).

    `scores` has the accuracy, in per cent, of those columns that were scored; the others are sizes alone.
    """
    values = list(scores.values())
    low, high = min(values), max(values)
    pad = max(5.0, 0.25 * (high - low))
    rows = [v for v in ticks(max(0, low - pad), min(100, high + pad)) if 0 <= v <= 100]
    left = 12 + CHARACTER * max(len(number(v)) for v in rows)
    smallest, largest = min(s for _, _, s in sizes), max(s for _, _, s in sizes)
    x = Axis(min(smallest, largest / 16), largest, left + 32, WIDTH - 28, log=True)
    y = Axis(rows[0], rows[-1], height - 44, 20)
    parts = []
    for value in rows:
        parts.append(_tag("<path class='grid' d='M{:.1f} {:.1f}H{}'/>", left, y(value), WIDTH - 4))
        parts.append(_text(left - 4, y(value) + 3.5, number(value), "end"))
    dots: list[Markup] = []
    taken: list[float] = []
    for name, text, size in sizes:
        place = x(size)
        crowded = any(abs(place - other) < 50 for other in taken)
        taken.append(place)
        kind = "strong" if name == sizes[-1][0] else ""
        top = height - 28 if not crowded else 0
        parts.append(_tag("<path class='level' d='M{:.1f} {}V{}'/>", place, 20, height - 44))
        parts.append(_text(place, top + (0 if top else 9), name if top else f"{name} {text}", "middle", kind))
        if top:
            parts.append(_text(place, height - 14, text, "middle", kind))
        if name in scores:
            style = 1 if kind else 0
            dots.append(shape(style, place, y(scores[name]), 5))
            below = y(scores[name]) < 40
            dots.append(
                _text(
                    place, y(scores[name]) + (18 if below else -9), f"{scores[name]:.2f}", "middle", "strong"
                )
            )
    return Chart(title, _svg(title, [*parts, *dots], height))


# --- dots with error bars, scatter -------------------------------------------------------------------------


def scatter(
    title: str,
    series: Sequence[tuple[str, int, float, float, float]],
    *,
    x_label: str,
    x_text: Callable[[float], str] = number,
    height: int = 220,
) -> Chart:
    """Return points over a logarithmic x: (label, style, x, y, half the error bar of y) each.

    Marks that would hide each other stand side by side.
    """
    ys = [v for _, _, _, y, error in series for v in (y - error, y + error)]
    xs = [x for _, _, x, _, _ in series if x > 0] or [1.0]
    rows = ticks(min(ys), max(ys))
    left = 12 + CHARACTER * max(len(number(v)) for v in rows)
    low, high = min(xs), max(xs)
    if high < 1.5 * low:
        low, high = low / 1.5, high * 1.5
    x, y = Axis(low, high, left + 22, WIDTH - 26, log=True), Axis(rows[0], rows[-1], height - 34, 8)
    parts = []
    for value in rows:
        parts.append(_tag("<path class='grid' d='M{:.1f} {:.1f}H{}'/>", left, y(value), WIDTH - 4))
        parts.append(_text(left - 4, y(value) + 3.5, number(value), "end"))
    for share in (0, 1 / 3, 2 / 3, 1):
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        parts.append(_text(x(value), height - 20, x_text(value), "middle"))
    parts.append(_text((x.start + x.end) / 2, height - 5, x_label, "middle", "name"))
    placed: list[tuple[float, float]] = []
    for _, style, size, score, error in sorted(series, key=lambda row: -row[3]):
        px, py = beside(x(max(size, low)), y(score), placed)
        if error:
            parts.append(_bar(style, px, y(score - error), px, y(score + error)))
        parts.append(shape(style, px, py, 4))
    return Chart(title, _svg(title, parts, height))


def _bar(style: int, x1: float, y1: float, x2: float, y2: float) -> Markup:
    path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
    return _tag("<path class='error s{}' d='{}'/>", style % STYLES, path)


def beside(x: float, y: float, placed: list[tuple[float, float]], apart: float = 9.5) -> tuple[float, float]:
    """Return the free place nearest to (x, y) on its own height, and remember it in `placed`."""
    steps = [0.0] + [sign * apart * n for n in range(1, 20) for sign in (1, -1)]
    free = next((s for s in steps if all(math.dist((x + s, y), p) >= apart for p in placed)), 0.0)
    placed.append((x + free, y))
    return x + free, y


def outline(values: Sequence[float]) -> list[tuple[float, float]]:
    """Return the steps of a histogram as points, for a line over bins of width 1."""
    points = [(0.0, 0.0)]
    for place, value in enumerate(values):
        points += [(float(place), value), (place + 1.0, value)]
    return [*points, (float(len(values)), 0.0)]
