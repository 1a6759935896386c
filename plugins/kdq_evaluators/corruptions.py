"""Corruptions of inputs, each in five severities: images, sound, token numbers and tables.

What: images `[B, C, H, W]`: noise, blur, brightness, shift. Sound `[B, T]` or `[B, 1, T]`: noise, gain, speed. Token
    numbers `[B, L]`: replace (a typo makes another token), drop. Tables `[B, F]`: missing, columns (which are shifted).
Formula: amounts are relative to the range and the standard deviation of the first test batch. Results stay in that
    range, except for shifted columns.
Source: images: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv:1903.12261: amounts of ImageNet-C for noise and brightness, those of CIFAR-10-C, in proportion
    to the size, for blur. The other amounts are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Data(NamedTuple):
    """Facts of the uncorrupted input: of a table by column, `[F]` each, else numbers.

    Attributes:
        low: the smallest value.
        high: the largest value.
        mean: mean of the values.
        spread: their standard deviation.
        drift: a standard normal number for each.
        pad: the token that fills up a text.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    drift: np.ndarray
    pad: int


Corruption = Callable[["np.ndarray", int, "np.random.Generator", Data], "np.ndarray"]


def facts(x: np.ndarray, kind: str, pad: int, seed: int) -> Data:
    """Measure the first test batch of an input."""
    import numpy as np

    axis = 0 if kind == "table" else None
    spread = x.std(axis)
    drift = np.random.default_rng(seed).standard_normal(np.shape(spread))
    return Data(x.min(axis), x.max(axis), x.mean(axis), spread, np.asarray(drift), pad)


def kind_of(x: np.ndarray) -> str | None:
    """Tell what an input is by type and shape; `None`: nothing that can be corrupted."""
    if x.dtype.kind in "iu":
        return "text" if x.ndim == 2 else None
    if x.ndim == 4:
        return "image"
    if x.ndim == 3:
        return "audio" if x.shape[1] == 1 else None
    return {True: "audio", False: "table"}[x.shape[1] >= LONG] if x.ndim == 2 else None


LONG = 1000
"""A float input `[B, T]` with so many values is sound, with fewer a row of a table."""


def image_noise(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:
    """Gaussian noise."""
    amount = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    found: np.ndarray = x + amount * (data.high - data.low) * random.standard_normal(x.shape)
    return found


def blur(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """Gaussian blur."""
    from scipy.ndimage import gaussian_filter

    width = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * max(0.5, max(x.shape[2:]) / 32)
    found: np.ndarray = gaussian_filter(x, (0, 0, width, width), mode="nearest")
    return found


def brightness(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """More light."""
    found: np.ndarray = x + severity / 10 * (data.high - data.low)
    return found


def shift(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """Move by 4 % of the size at each severity, in a direction that is drawn for each batch."""
    from scipy.ndimage import shift as moved

    angle, far = random.uniform(0, 2 * math.pi), 0.04 * severity
    by = (0, 0, far * x.shape[2] * math.sin(angle), far * x.shape[3] * math.cos(angle))
    found: np.ndarray = moved(x, by, order=1, mode="nearest")
    return found


def sound_noise(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """White noise, 30 to 5 dB below the sound of the sample."""
    import numpy as np

    decibels = (30, 20, 15, 10, 5)[severity - 1]
    loud = np.sqrt(np.square(x, dtype=np.float64).mean(-1, keepdims=True))
    found: np.ndarray = x + loud * 10 ** (-decibels / 20) * random.standard_normal(x.shape)
    return found


def gain(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """Each sample 3 dB louder or softer at each severity; what is too loud is clipped."""
    sign = random.choice((-1, 1), (len(x), *[1] * (x.ndim - 1)))
    return x * 10.0 ** (sign * 3 * severity / 20)


def speed(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """Each batch 4 % faster or slower at each severity; the end is cut off, or filled with silence."""
    import numpy as np

    factor = 1 + 0.04 * severity * random.choice((-1, 1))
    at = np.arange(x.shape[-1]) * factor
    below = np.minimum(at.astype(np.int64), x.shape[-1] - 1)
    above = np.minimum(below + 1, x.shape[-1] - 1)
    found = x[..., below] + (at - below) * (x[..., above] - x[..., below])
    return np.where(at < x.shape[-1], found, 0.0)


def replace(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:
    """Put tokens of other samples of the batch in place of 5 % of the tokens at each severity."""
    import numpy as np

    others = x[x != data.pad]
    hit = (random.random(x.shape) < 0.05 * severity) & (x != data.pad)
    return np.where(hit, random.choice(others, x.shape), x) if len(others) else x


def drop(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:
    """Leave out 5 % of the tokens at each severity; those behind move up."""
    import numpy as np

    gone = (random.random(x.shape) < 0.05 * severity) & (x != data.pad)
    order = np.argsort(gone, axis=1, kind="stable")
    kept = np.take_along_axis(x, order, 1)
    return np.where(np.take_along_axis(gone, order, 1), data.pad, kept)


def missing(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:
    """Put the mean of the column in place of 8 % of the values at each severity."""
    import numpy as np

    return np.where(random.random(x.shape) < 0.08 * severity, data.mean, x)


def columns(x: np.ndarray, severity: int, random: np.random.Generator, data: Data) -> np.ndarray:  # noqa: ARG001
    """Shift each column by a number of standard deviations that is drawn for the whole split, times 0.2 a severity."""
    found: np.ndarray = x + 0.2 * severity * data.drift * data.spread
    return found


KINDS: dict[str, dict[str, Corruption]] = {
    "image": {"noise": image_noise, "blur": blur, "brightness": brightness, "shift": shift},
    "audio": {"noise": sound_noise, "gain": gain, "speed": speed},
    "text": {"replace": replace, "drop": drop},
    "table": {"missing": missing, "columns": columns},
}


def corrupted(
    x: np.ndarray, kind: str, name: str, severity: int, random: np.random.Generator, data: Data
) -> np.ndarray:
    """Corrupt a batch of an input; type and shape stay."""
    import numpy as np

    found = KINDS[kind][name](x, severity, random, data)
    if name != "columns":
        found = np.clip(found, data.low, data.high) if kind != "text" else found
    return np.ascontiguousarray(found, x.dtype)
