"""Intervals of what was measured on the same samples twice. Importable without torch."""

from __future__ import annotations

import math

Z95 = 1.959964
"""97.5 % quantile of the normal distribution."""


def paired(gained: int, lost: int, samples: int) -> tuple[float, float]:
    """95 % interval of a difference of two proportions on the same samples (Bonett and Price 2012).

    An adjusted Wald interval: one discordant pair is added each way, so that it has a width even where none was seen.

    Args:
        gained: samples right only in the first.
        lost: samples right only in the second.
        samples: all samples.
    """
    first, second = (gained + 1) / (samples + 2), (lost + 1) / (samples + 2)
    middle = first - second
    half = Z95 * math.sqrt((first + second - middle**2) / (samples + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)
