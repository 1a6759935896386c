"""A metric with the influence of each sample on it, which gives its interval and that of a difference of two models.

Formula: the standard error is s / sqrt(N), where s is the standard deviation of the influences. For a mean, influences
    are the deviations from it; for a function of means, those of its linearisation. A share has Wilson's interval with
    the effective number of samples v (1 - v) / error^2; any other value v has v +- t error. The error of a difference
    of two models on the same samples is that of the differences of the influences.
    A metric that is no function of means has the jackknife over 20 groups of samples, drawn once for all models.
Source: infinitesimal jackknife, the limit of the bootstrap for many samples: Efron 1982, "The Jackknife, the Bootstrap
    and Other Resampling Plans", chapter 6. Effective samples: Franco et al. 2019, "Comparative Study of Confidence
    Intervals for Proportions in Complex Sample Surveys", https://doi.org/10.1093/jssam/smy019. Groups: Kott 2001, "The
    Delete-a-Group Jackknife", Journal of Official Statistics 17(4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdq_core.api import Z95, Metric, student_975

if TYPE_CHECKING:
    import numpy as np


class Sampled(NamedTuple):
    """A metric measured on N samples.

    Attributes:
        name: of the metric.
        value: over all samples.
        influence: of each sample, float `[N]`, with mean 0.
        unit: of the value; `fraction` is a share between 0 and 1.
        direction: which way is better.
        worth: to how many samples a share is equal that has no spread at all, such as 1; 0 means N.
        excess: by how much noise may raise the value, for a distance; it lowers the lower end.
        least: the smallest possible value, if it is no share.
        samples: N, where the influences are not of samples but of groups of them; 0 if they are of samples.
        pair: whether the interval allows for one more sample each way, as that of a difference of shares does.
    """

    name: str
    value: float
    influence: np.ndarray
    unit: str = "fraction"
    direction: Literal["higher", "lower"] = "higher"
    worth: float = 0.0
    excess: float | None = None
    least: float = 0.0
    samples: int = 0
    pair: bool = False

    def metric(self) -> Metric:
        """The value with its 95 % interval."""
        import numpy as np

        each = np.append(self.influence, (1.0, -1.0)) if self.pair else self.influence
        count, error = len(each), standard_error(each)
        steps = student_975(count - 1) if count > 1 else math.inf
        if self.unit == "fraction":
            spread = self.value * (1 - self.value)
            worth = spread / error**2 if error > 0 and spread > 0 else self.worth or self.samples or count
            low, high = score(self.value, worth, min(steps, 1e3))
            low = low if self.excess is None else max(0.0, self.value - self.excess - steps * error)
        else:
            low, high = max(self.least, self.value - steps * error), self.value + steps * error
        return self._made(self.name, self.value, low, high)

    def difference(self, other: Sampled) -> Metric:
        """The difference from the value of another model on the same samples, with its paired 95 % interval.

        For a share, one sample each way is added in which only one of both models is right, as Bonett and Price 2012
        do, so that the interval has a width even if the models answer alike.
        """
        import numpy as np

        each, value = self.influence - other.influence, self.value - other.value
        if self.pair or (self.unit == "fraction" and not self.samples):
            each = np.append(each, (1.0, -1.0))
        half = student_975(len(each) - 1) * standard_error(each) if len(each) > 1 else math.inf
        return self._made(f"{self.name}_difference", value, value - half, value + half)

    def _made(self, name: str, value: float, low: float, high: float) -> Metric:
        return Metric(
            name=name, value=value, unit=self.unit, direction=self.direction, low=min(low, value),
            high=max(high, value), samples=self.samples or len(self.influence),
        )  # fmt: skip


def mean_of(
    name: str, each: np.ndarray, unit: str = "fraction", direction: Literal["higher", "lower"] = "higher"
) -> Sampled:
    """The mean of one value for each sample, `[N]`."""
    import numpy as np

    value = float(each.mean(dtype=np.float64))
    return Sampled(name, value, each - value, unit, direction)


def ratio_of(
    name: str, over: np.ndarray, under: np.ndarray, unit: str, direction: Literal["higher", "lower"] = "lower"
) -> Sampled:
    """The ratio of two sums over samples, such as of errors and words, each `[N]`."""
    value = float(over.sum() / under.sum())
    return Sampled(name, value, (over - value * under) / under.mean(), unit, direction)


def excess(sums: np.ndarray) -> float:
    """By how much noise may raise a distance, the sum over K places of |sum of the amounts at the place|.

    The distance is at least the sum with any other signs. So the signs of each half of the samples are taken from the
    other half, where they do not follow the noise of that half: the sum then is too low rather than too high.

    Args:
        sums: sums of the amounts of each half, `[K, 2]`.
    """
    import numpy as np

    whole = sums.sum(1, keepdims=True)
    return float(np.abs(whole).sum() - (np.sign(whole - sums) * sums).sum())


def standard_error(influence: np.ndarray) -> float:
    """Standard error of a metric from its influences `[N]`."""
    import numpy as np

    count = len(influence)
    squares = sum(float(np.square(influence[part], dtype=np.float64).sum()) for part in pieces(count, 1))
    return float(np.sqrt(squares / max(1, count - 1) / count))


PIECE = 1_000_000
"""How many numbers are in memory at a time."""


def pieces(samples: int, width: int) -> Iterator[slice]:
    """Yield slices of samples of `width` values each, so that a piece has at most `PIECE` values."""
    size = max(1, PIECE // max(1, width))
    yield from (slice(start, start + size) for start in range(0, samples, size))


def filled(samples: int, function: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Compute a float32 `[N]` piece by piece, so that only the result needs memory for all samples."""
    import numpy as np

    found = np.empty(samples, np.float32)
    for part in pieces(samples, 8):
        found[part] = function(part)
    return found


def score(value: float, samples: float, steps: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share of a number of samples that need not be whole; by default the 95 % interval."""
    middle = (value + steps**2 / (2 * samples)) / (1 + steps**2 / samples)
    half = steps / (1 + steps**2 / samples) * math.sqrt(value * (1 - value) / samples + steps**2 / (4 * samples**2))
    return max(0.0, middle - half), min(1.0, middle + half)


GROUPS = 20
"""Groups of samples that are left out in turn."""


def groups_of(samples: int) -> np.ndarray:
    """Draw a group for each sample, int64 `[N]`; the same for every model."""
    import numpy as np

    return np.random.default_rng(0).permutation(samples) % min(GROUPS, samples)


def grouped(name: str, value: float, without: np.ndarray, samples: int) -> Sampled:
    """A share that is no mean over samples, by the delete-a-group jackknife.

    Args:
        name: of the metric.
        value: over all samples.
        without: the metric without each group, `[G]`.
        samples: how many there are.
    """
    count = len(without)
    pseudo = count * value - (count - 1) * without
    return Sampled(name, value, pseudo - pseudo.mean(), samples=samples)
