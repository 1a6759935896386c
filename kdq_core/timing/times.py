"""Quantiles, throughput and ratios of measured times, each with an interval.

Formula: sectioning. The measurement has R rounds. An estimate over all rounds is g, the same estimate over round i
    alone is g_i; the interval is g ± t(R-1) sqrt(sum (g_i - g)^2 / (R (R-1))), with Student's t. Estimates are
    logarithms, because times are positive and their noise multiplies.
    Ten rounds show too little of a tail, such as p95 or p99, and the interval ends too low. So the upper end of a
    quantile is at least Woodruff's: the rounds give an interval of the share of calls that take at most g, and the
    upper end of that share is read back as a time.
Source: Asmussen and Glynn 2007, "Stochastic Simulation", III.5a; Nakayama 2014, "Confidence intervals for quantiles
    using sectioning when applying variance-reduction techniques", https://doi.org/10.1145/2558328. Woodruff 1952,
    "Confidence intervals for medians and other position measures", https://doi.org/10.1080/01621459.1952.10483443.
Limits: calls within a round may depend on each other in any way; the rounds must be about independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """What a ratio of times says of the file below the line: `faster` only if the whole interval is above 1."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference"


@dataclass(frozen=True)
class Times:
    """The times of the calls of one file, by round.

    Attributes:
        rounds: seconds of each call, one array `[turns, calls]` a round. Files that were measured beside each other
            have equally many.
        batch: samples in a call.
    """

    rounds: tuple[np.ndarray, ...]
    batch: int = 1

    @property
    def calls(self) -> int:
        """Number of measured calls."""
        return sum(times.size for times in self.rounds)

    def quantile(self, share: float, *, confidence: float = 0.95) -> Estimate:
        """Seconds that the given share of the calls takes at most."""
        import numpy as np

        rounds = [np.log(times).ravel() for times in self.rounds]
        found = sectioned(rounds, lambda logs: float(np.quantile(logs, share)), confidence)
        held = np.array([np.mean(logs <= math.log(found.value)) for logs in rounds])
        reached = share + steps(len(held), confidence) * float(held.std(ddof=1)) / math.sqrt(len(held))
        woodruff = math.exp(float(np.quantile(np.concatenate(rounds), min(1.0, reached))))
        return replace(found, high=max(found.high, woodruff))

    def throughput(self, *, confidence: float = 0.95) -> Estimate:
        """Samples in a second, if calls follow each other: it depends on the mean time, not on the median."""
        import numpy as np

        rounds = [times.ravel() for times in self.rounds]
        return sectioned(rounds, lambda times: math.log(self.batch / float(np.mean(times))), confidence)

    def ratio_to(self, other: Times, *, confidence: float = 0.95) -> Estimate:
        """Median time of a call of this file / median time of a call of `other`, which was measured beside it.

        Within a round both meet the same load of the machine, so the rounds' ratios differ less than their times.
        """
        import numpy as np

        pairs = zip(self.rounds, other.rounds, strict=True)
        rounds = [np.log(np.stack([own.ravel(), theirs.ravel()], axis=1)) for own, theirs in pairs]
        return sectioned(rounds, lambda logs: float(np.subtract(*np.median(logs, axis=0))), confidence)


def sectioned(rounds: Sequence[np.ndarray], logarithm_of: Callable[[np.ndarray], float], confidence: float) -> Estimate:
    """Estimate over all rounds, with the interval that the single rounds give.

    Args:
        rounds: the values of each round; two rounds at least.
        logarithm_of: gives the logarithm of the estimate.
        confidence: how many of such intervals hold the true value.
    """
    import numpy as np

    count = len(rounds)
    middle = logarithm_of(np.concatenate(list(rounds)))
    variance = sum((logarithm_of(values) - middle) ** 2 for values in rounds) / (count * (count - 1))
    half = steps(count, confidence) * math.sqrt(variance)
    return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def steps(count: int, confidence: float) -> float:
    """How many standard errors of a mean of `count` rounds an interval reaches to each side, by Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + confidence) / 2))
