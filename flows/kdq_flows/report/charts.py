"""Geometry of the report's charts: scales, ticks and points in the units of an SVG; `charts.j2` draws them.

The pictures are plain SVG with text, so that a report needs no script: it shows, prints and zooms anywhere, takes its
colours from the page, and has a size of kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 22, 12, 42
ROW = 34
"""Height of one row of a chart of intervals."""
Form = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A line or a point: its name, the class that gives colour and mark, and its values."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Interval:
    """A value with its interval; ends that were not measured are `None`."""

    label: str
    style: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self, form: Form, count: int = 5) -> list[tuple[float, str]]:
        """Places and texts of round numbers; a text that would repeat is left out."""
        values = _decades(self.low, self.high) if self.log else _round_numbers(self.low, self.high, count)
        found = {form(value): self.place(value) for value in values}
        return [(place, text) for text, place in found.items()]


@dataclass(frozen=True)
class Drawn:
    """A chart in SVG units.

    Attributes:
        name: accessible name.
        described: what it shows, in a sentence, for those who do not see it.
        lines: for each series its label, style, path of the line, and marks as (x, y, text).
        whiskers: for intervals, (x1, x2, y, style).
        labels: texts in the chart, as (x, y, text, anchor).
        rings: middles of the rings around some points.
        reference: ends of a line to compare with: x1, y1, x2, y2.
        grid: the axis whose ticks have lines across the chart.
    """

    name: str
    described: str
    x_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[tuple[str, str, str, list[tuple[float, float, str]]]] = field(default_factory=list)
    whiskers: list[tuple[float, float, float, str]] = field(default_factory=list)
    labels: list[tuple[float, float, str, str]] = field(default_factory=list)
    rings: list[tuple[float, float]] = field(default_factory=list)
    reference: tuple[float, float, float, float] | None = None
    grid: str = "y"
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def lines(name: str, series: Sequence[Series], x_title: str, form: Form, *, log: bool = False) -> Drawn | None:
    """Lines over whole numbers, such as curves over epochs; values that are not finite are left out."""
    kept = [Series(s.label, s.style, [p for p in s.points if math.isfinite(p[1])]) for s in series]
    kept = [s for s in kept if s.points]
    if not kept:
        return None
    xs, ys = ([point[at] for s in kept for point in s.points] for at in (0, 1))
    log = log and min(ys) > 0 and max(ys) / min(ys) > 20
    x, y = axis(xs, LEFT, WIDTH - RIGHT, pad=0.02), axis(ys, HEIGHT - BOTTOM, TOP, log=log)
    ends = "; ".join(f"{s.label} ends at {form(s.points[-1][1])}" for s in kept)
    return Drawn(
        name, f"{name}: {ends}.", x_title, x.ticks(_whole, 6), y.ticks(form),
        lines=[_line(s, x, y, lambda p, s=s: f"{s.label}, {x_title} {p[0]:g}: {form(p[1])}") for s in kept],  # type: ignore[misc]
    )  # fmt: skip


def scatter(
    name: str,
    series: Sequence[Series],
    x_title: str,
    forms: tuple[Form, Form],
    *,
    front: Iterable[str] = (),
    square: bool = False,
) -> Drawn | None:
    """One labelled point for each series; those of `front` get a ring. `square`: both axes 0 to 1 with the diagonal."""
    if not any(s.points for s in series):
        return None
    x_form, y_form = forms
    xs, ys = ([point[at] for s in series for point in s.points] for at in (0, 1))
    if square:
        xs, ys = [0.0, 1.0], [0.0, 1.0]
    x = axis(xs, LEFT, WIDTH - RIGHT, pad=0.0 if square else 0.14)
    y = axis(ys, HEIGHT - BOTTOM, TOP, pad=0.0 if square else 0.14)
    front = set(front)
    found = Drawn(
        name, f"{name}: {_listed(series, forms)}.",
        x_title, x.ticks(x_form, 4), y.ticks(y_form),
        lines=[_line(s, x, y, lambda p, s=s: f"{s.label}: {x_form(p[0])}, {y_form(p[1])}") for s in series],  # type: ignore[misc]
        reference=(x.place(0), y.place(0), x.place(1), y.place(1)) if square else None,
    )  # fmt: skip
    places = [(x.place(s.points[0][0]), y.place(s.points[0][1])) for s in series]
    if not square:
        found.labels.extend(labels(places, [s.label for s in series]))
        found.rings.extend(place for place, s in zip(places, series) if s.label in front)
    return found


def labels(places: Sequence[tuple[float, float]], texts: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """Put a text beside each point where it covers no other text or point: right, left, above or below it."""
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    found = []
    for number, ((x, y), text) in enumerate(zip(places, texts)):
        wide = 8.2 * len(text)
        half = wide / 2
        ways = [(x + 12, y + 4, "start", 0.0), (x - 12, y + 4, "end", -wide)]
        ways += [(x, y + shift, "middle", -half) for shift in (-14, 22, -30, 38, -46)]
        boxes = [(left + back, base - 11, left + back + wide, base + 3) for left, base, _, back in ways]
        others = taken[:number] + taken[number + 1 :]
        free = [n for n, box in enumerate(boxes) if box[0] > LEFT - 40 and box[2] < WIDTH and not _hits(box, others)]
        best = (free or [0])[0]
        taken.append(boxes[best])
        found.append((*ways[best][:2], text, ways[best][2]))
    return found


def _hits(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def intervals(name: str, rows: Sequence[Interval], title: str, form: Form, *, at: float | None = None) -> Drawn | None:
    """Values with their intervals, one below the other; `at` draws a line to compare with, such as 1 for a ratio."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return None
    ends = [v for row in rows for v in (row.value, row.low, row.high) if v is not None and math.isfinite(v)]
    left = 14 + max(int(7.4 * len(row.label)) for row in rows)
    bottom = BOTTOM if title else BOTTOM - 16
    height = TOP + ROW * len(rows) + bottom
    x = axis([*ends, *([] if at is None else [at])], left, WIDTH - RIGHT - 10, pad=0.08)
    places = [TOP + ROW * (number + 0.5) for number in range(len(rows))]
    found = Drawn(
        name, f"{name}: " + "; ".join(f"{row.label}: {_said(row, form)}" for row in rows) + ".", title,
        x.ticks(form, 4), [(place, row.label) for place, row in zip(places, rows)],
        grid="x", height=height, left=left, bottom=height - bottom,
        reference=None if at is None else (x.place(at), TOP, x.place(at), height - bottom),
    )  # fmt: skip
    for place, row in zip(places, rows):
        mark = (x.place(row.value), place, f"{row.label}: {_said(row, form)}")
        found.lines.append((row.label, row.style, "", [mark]))
        if row.low is not None and row.high is not None and math.isfinite(row.low) and math.isfinite(row.high):
            found.whiskers.append((x.place(row.low), x.place(row.high), place, row.style))
    return found


def axis(values: Sequence[float], start: float, end: float, *, pad: float = 0.06, log: bool = False) -> Axis:
    """A scale that fits values, with some space at both ends."""
    low, high = min(values), max(values)
    if log:
        grown = (high / low) ** pad
        return Axis(low / grown, high * grown, start, end, log=True)
    room = pad * (high - low) or abs(high) * 0.05 or 1.0
    if high == low:
        return Axis(low - room, high + room, start, end)
    return Axis(low - (room if pad else 0), high + (room if pad else 0), start, end)


def _line(
    series: Series, x: Axis, y: Axis, told: Callable[[tuple[float, float]], str]
) -> tuple[str, str, str, list[tuple[float, float, str]]]:
    marks = [(x.place(point[0]), y.place(point[1]), told(point)) for point in series.points]
    path = " ".join(f"{'L' if number else 'M'}{a:g} {b:g}" for number, (a, b, _) in enumerate(marks))
    return series.label, series.style, path if len(marks) > 1 else "", marks


def _listed(series: Sequence[Series], forms: tuple[Form, Form]) -> str:
    """The last point of each series in words."""
    ends = [(s.label, s.points[-1]) for s in series if s.points]
    return "; ".join(f"{label}: {forms[0](x)}, {forms[1](y)}" for label, (x, y) in ends)


def _said(row: Interval, form: Form) -> str:
    ends = [form(end) for end in (row.low, row.high) if end is not None]
    return f"{form(row.value)} ({ends[0]} to {ends[1]})" if len(ends) == 2 else form(row.value)


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = high / low > 1e3
    values = [factor * 10.0**power for power in powers for factor in ((1,) if few else (1, 2, 5))]
    return [value for value in values if low <= value <= high]


def _whole(value: float) -> str:
    return f"{value:g}" if value == int(value) else ""
