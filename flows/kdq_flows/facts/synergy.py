"""What distillation and quantization bring, alone and together: cells, effects and their intervals over seeds.

Formula: for each seed, the interaction is (KD+QAT) - (QAT) - (KD) + (float). It is the gain of distillation while the
    quantized student trains, beyond its gain in float. A main effect is the mean of a factor's effects at all levels of
    the other one. Intervals are those of Student's t over the seeds' differences.
Source: the interaction of a 2 x 2 factorial design (Fisher 1935).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Literal

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_core.intervals import mean_of, student_975

MOST_SEEDS = 1000
"""KDQ says of an effect that more seeds than this would decide."""

Path = Literal["float", "ptq", "qat"]
PATHS: tuple[Path, ...] = ("float", "ptq", "qat")
Cells = Mapping[tuple[str, Path, int], Sequence[float]]
"""Quality by distiller (`none` for no teacher), path and bits; one value a seed. Bits of `float` are 0."""


class Cell(Frozen):
    """Quality of one combination: mean over the seeds with its 95 % interval."""

    distiller: str
    path: Path
    bits: int
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


class Effect(Frozen):
    """A paired difference over seeds; more is better for all metrics, since errors have their sign turned."""

    name: str = Field(description="such as `KD in float`, `KD under QAT`, `interaction`")
    distiller: str
    bits: int
    mean: float
    low: float
    high: float
    verdict: Literal["helps", "hurts", "not shown"]
    more_seeds: int | None = Field(
        description="how many more seeds would decide; null: more than a thousand, or decided"
    )


class Synergy(Frozen):
    """The result of `kdq synergy`."""

    recipe: str
    metric: str
    unit: str
    direction: str
    seeds: int
    epochs: int = Field(description="epochs of each student in all")
    cells: tuple[Cell, ...]
    effects: tuple[Effect, ...]
    sentences: tuple[str, ...] = Field(description="one for each distiller and number of bits")


def synergy(
    cells: Cells, *, recipe: str, metric: str, unit: str, direction: str, epochs: int, bits: Sequence[int]
) -> Synergy:
    """Compute effects and sentences.

    Args:
        cells: quality of each combination, in the metric's unit.
        recipe: name of the recipe.
        metric: what quality is measured by.
        unit: its unit; sentences give a `fraction` in points.
        direction: `lower` for errors.
        epochs: epochs of each student in all.
        bits: bits of the weights, in the order to tell.
    """
    sign = -1.0 if direction == "lower" else 1.0
    scale, word = (100.0, f"points {metric}") if unit == "fraction" else (1.0, metric)
    methods = [name for name in dict.fromkeys(name for name, _, _ in cells) if name != "none"]
    effects: list[Effect] = []
    said = []
    for method in methods:
        for number in bits:
            values: dict[tuple[str, str], Sequence[float]] = {
                (who, path): [sign * v for v in cells[name, path, 0 if path == "float" else number]]
                for who, name in (("kd", method), ("", "none"))
                for path in PATHS
            }
            found = [_effect(name, method, number, values, parts) for name, parts in DIFFERENCES.items()]
            effects += found
            said.append(_sentence(found, scale, word))
    made = tuple(_cell(*key, values) for key, values in cells.items())
    return Synergy(
        recipe=recipe, metric=metric, unit=unit, direction=direction, seeds=len(made[0].values), epochs=epochs,
        cells=made, effects=tuple(effects), sentences=tuple(said),
    )  # fmt: skip


DIFFERENCES: dict[str, dict[tuple[str, str], float]] = {
    "main effect of KD": {(who, path): sign / 3 for who, sign in (("kd", 1), ("", -1)) for path in PATHS},
    "main effect of QAT": {(who, path): sign / 2 for path, sign in (("qat", 1), ("ptq", -1)) for who in ("kd", "")},
    "KD in float": {("kd", "float"): 1, ("", "float"): -1},
    "KD under PTQ": {("kd", "ptq"): 1, ("", "ptq"): -1},
    "KD under QAT": {("kd", "qat"): 1, ("", "qat"): -1},
    "QAT against PTQ, with KD": {("kd", "qat"): 1, ("kd", "ptq"): -1},
    "QAT against PTQ, without KD": {("", "qat"): 1, ("", "ptq"): -1},
    "interaction": {("kd", "qat"): 1, ("", "qat"): -1, ("kd", "float"): -1, ("", "float"): 1},
}
"""Each effect as a sum of cells. QAT is held against PTQ."""


def _cell(distiller: str, path: Path, bits: int, values: Sequence[float]) -> Cell:
    mean, low, high = mean_of(values)
    return Cell(distiller=distiller, path=path, bits=bits, values=tuple(values), mean=mean, low=low, high=high)


def _effect(
    name: str,
    distiller: str,
    bits: int,
    values: Mapping[tuple[str, str], Sequence[float]],
    parts: Mapping[tuple[str, str], float],
) -> Effect:
    rows = zip(*(values[part] for part in parts))
    each = [round(sum(times * value for times, value in zip(parts.values(), row)), 12) for row in rows]
    mean, low, high = mean_of(each)
    shown = low > 0 or high < 0
    verdict: Literal["helps", "hurts", "not shown"] = "not shown" if not shown else "helps" if mean > 0 else "hurts"
    return Effect(
        name=name, distiller=distiller, bits=bits, mean=mean, low=low, high=high, verdict=verdict,
        more_seeds=None if shown else more_seeds(each),
    )  # fmt: skip


def more_seeds(differences: Sequence[float]) -> int | None:
    """How many more seeds would part the interval from zero, if mean and spread stay as they are.

    Returns:
        At least 1; `None` if it would take more than `MOST_SEEDS`, or there is one seed only.
    """
    if len(differences) < 2:
        return None
    have, mean, spread = len(differences), fmean(differences), stdev(differences)
    for seeds in range(have + 1, MOST_SEEDS + 1):
        if student_975(seeds - 1) * spread / math.sqrt(seeds) < abs(mean):
            return seeds - have
    return None


def _sentence(effects: Sequence[Effect], scale: float, word: str) -> str:
    """One sentence: whether the distiller helps the quantized student, and whether both are more than their sum."""
    named = {effect.name: effect for effect in effects}
    first, both = named["KD under QAT"], named["interaction"]
    said = f"{first.distiller} at {first.bits} bits: {_told(first, scale, word, 'the quantized student')}"
    return f"{said}; together with QAT, beyond its gain in float: {_told(both, scale, word, '')}"


def _told(effect: Effect, scale: float, word: str, whom: str) -> str:
    mean, low, high = (scale * value for value in (effect.mean, effect.low, effect.high))
    interval = f" ({low:.2g} to {high:.2g})" if math.isfinite(low) else ""
    figures = f"{mean:+.2g} {word}{interval}"
    if effect.verdict != "not shown":
        return f"{effect.verdict} {whom}, {figures}" if whom else f"{effect.verdict}, {figures}"
    more = effect.more_seeds
    if not math.isfinite(low):
        return f"not shown, {figures}; one seed gives no interval"
    return f"not shown, {figures}; {f'about {more} more seeds' if more else f'over {MOST_SEEDS} seeds'} would decide"
