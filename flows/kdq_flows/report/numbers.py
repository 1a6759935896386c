"""How the report writes numbers: by the unit that a metric states."""

from __future__ import annotations

import math

from kdq_core.store.records import Metric

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: float, unit: str) -> str:
    """A value with its unit, such as `99.00 %`, `228.7 kB` or `0.035 ms`."""
    if not math.isfinite(value):
        return str(value)
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if unit == "bytes":
        size, name = next(((size, name) for size, name in UNITS if abs(value) >= size), (1.0, "B"))
        return f"{value / size:.4g} {name}"
    if unit == "ratio":
        return f"{value:.3g}x"
    whole = f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"
    return whole if unit in ("", "count") else f"{whole} {unit}"


def interval(metric: Metric) -> str:
    """The interval of a metric, such as `98.1 % to 99.9 %`; empty if an end is missing."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{number(metric.low, metric.unit)} to {number(metric.high, metric.unit)}"


def short(value: float, unit: str) -> str:
    """A tick of an axis."""
    if unit == "fraction":
        return f"{100 * value:.4g}%"
    return f"{value:.4g}" if unit in ("", "ms") else number(value, unit)


def seconds(value: float) -> str:
    """A duration, such as `0.4 s` or `2 min 05 s`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
