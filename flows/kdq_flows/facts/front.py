"""The Pareto front: models that no other one beats in everything that counts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def on_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each model is on the front.

    Args:
        points: what counts of each model, in the same order; less is better, so give a quality with a minus.

    Returns:
        False for a model that another one equals or beats in everything, and beats in something; and for a value that
        is not finite.
    """
    known = [tuple(point) for point in points if all(map(math.isfinite, point))]
    distinct = set(known)

    def beaten(point: tuple[float, ...]) -> bool:
        return any(other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in distinct)

    return [all(map(math.isfinite, point)) and not beaten(tuple(point)) for point in points]
