"""Compare a version with the champion, sample by sample.

Metrics that are right or wrong on each sample: McNemar's exact test (McNemar 1947), and the interval of Bonett and
Price (2012). Others: a paired bootstrap of the difference (Efron and Tibshirani 1993), percentile interval, 2,000
draws, seed 0. A version is shown to be worse if p < 0.05, or the whole interval is on the worse side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from kdq_core.frozen import Frozen
from kdq_core.intervals import mcnemar, paired
from kdq_core.store.records import EvaluationReport

if TYPE_CHECKING:
    import numpy as np

SIGNIFICANT = 0.05
DRAWS = 2000
OF = "int8"
"""The model that a version ships."""


class Comparison(Frozen):
    """One metric of a version and of the champion, on the same samples."""

    metric: str
    version: float
    champion: float
    difference: float
    low: float
    high: float
    p: float | None
    samples: int
    test: Literal["McNemar", "paired bootstrap"]
    verdict: Literal["better", "worse", "undecided"]


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], report: EvaluationReport
) -> Iterator[Comparison]:
    """Compare every metric of which both kept the outcomes by sample.

    Args:
        ours: outcomes of the version on each sample `[N]`, by metric.
        theirs: those of the champion on the same samples.
        report: says for each metric which way is better.
    """
    higher = {metric.name: metric.direction == "higher" for metric in report.models.get(OF, ())}
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].shape == theirs[name].shape and len(ours[name]):
            yield _compared(name, ours[name], theirs[name], higher=higher.get(name, True))


def _compared(name: str, ours: np.ndarray, theirs: np.ndarray, *, higher: bool) -> Comparison:
    import numpy as np

    root = name.partition("/")[0] == "rmse"

    def total(values: np.ndarray, axis: int = -1) -> np.ndarray:
        mean = values.mean(axis=axis)
        return np.sqrt(mean) if root else mean

    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    version, champion = float(total(a)), float(total(b))
    yes_or_no = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    p = None
    if yes_or_no:
        low, high, p = _mcnemar(a, b)
        decided = p < SIGNIFICANT
    else:
        low, high = _bootstrap(a, b, total)
        decided = low > 0 or high < 0
    better = (version > champion) == higher
    return Comparison(
        metric=name, version=version, champion=champion, difference=version - champion, low=low, high=high, p=p,
        samples=len(a), test="McNemar" if yes_or_no else "paired bootstrap",
        verdict=("better" if better else "worse") if decided else "undecided",
    )  # fmt: skip


def _mcnemar(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    gained, lost = int((a > b).sum()), int((b > a).sum())
    return (*paired(gained, lost, len(a)), mcnemar(gained, lost))


def _bootstrap(a: np.ndarray, b: np.ndarray, total: object) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    if len(a) < 2:
        return -np.inf, np.inf

    def difference(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return total(x, axis) - total(y, axis)  # type: ignore[operator]

    found = bootstrap(
        (a, b), difference, paired=True, n_resamples=DRAWS, batch=100, method="percentile", random_state=0
    ).confidence_interval
    return float(found.low), float(found.high)
