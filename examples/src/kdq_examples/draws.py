"""Random numbers that depend on named things alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def stream(seed: int, number: int, purpose: int) -> np.random.Generator:
    """Make a Philox stream that belongs to (seed, number, purpose) alone."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, purpose]))
