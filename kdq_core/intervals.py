"""95 % intervals of metrics. Functions import SciPy where they need it, because the import takes a second."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def paired(gained: int, lost: int, samples: int) -> tuple[float, float]:
    """95 % interval of a difference of two proportions on the same samples (Bonett and Price 2012).

    An adjusted Wald interval: one discordant pair is added each way, so that it has a width even without discordant
    pairs.

    Args:
        gained: number of samples that only the first gets right.
        lost: number of samples that only the second gets right.
        samples: number of all samples.
    """
    first, second = (gained + 1) / (samples + 2), (lost + 1) / (samples + 2)
    middle = first - second
    half = Z95 * math.sqrt((first + second - middle**2) / (samples + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def wilson(successes: int, samples: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, samples).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def exact(successes: int, samples: int) -> tuple[float, float]:
    """95 % exact interval of a proportion (Clopper and Pearson 1934); without samples, from 0 to 1."""
    from scipy.stats import binomtest

    if not samples:
        return 0.0, 1.0
    interval = binomtest(successes, samples).proportion_ci(confidence_level=0.95, method="exact")
    return float(interval.low), float(interval.high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are `gained` and `lost` samples equally likely?"""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def student_975(freedom: int) -> float:
    """97.5 % quantile of Student's t, for the 95 % interval of a mean of `freedom` + 1 values."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def mean_of(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of values such as those of several seeds, with its 95 % interval by Student's t; endless for one value.

    For paired runs, give the differences.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = student_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
