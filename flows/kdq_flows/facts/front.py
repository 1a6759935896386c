"""The Pareto front: models that no other one beats in both cost and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence


def on_front(points: Sequence[tuple[float, float]], *, higher: bool = True) -> list[bool]:
    """Whether each model is on the front.

    Args:
        points: cost and quality of each model; less cost is better.
        higher: whether more of the quality is better, as with accuracy; false for an error.

    Returns:
        False for a model that another one equals or beats in both, and beats in one; and for a value that is not
        finite.
    """
    signed = [(cost, quality if higher else -quality) for cost, quality in points]
    known = [(cost, quality) for cost, quality in signed if math.isfinite(cost) and math.isfinite(quality)]

    def beaten(cost: float, quality: float) -> bool:
        return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in known)

    return [point in known and not beaten(*point) for point in signed]
