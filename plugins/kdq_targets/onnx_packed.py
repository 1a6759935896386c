"""A packed weight: its numbers, and the digits that they are written in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

IN_A_BYTE = {2: 8, 3: 5, 4: 4, 6: 3, 16: 2}
"""How many digits fit in a byte, by base."""
SPLITS = {8: (4, 2), 32: (16, 2), 64: (16, 4), 128: (16, 4, 2)}
"""Bases of the digits, lowest first, that together represent one number, by its number of levels."""
OVERHEAD = 250
"""Most bytes that the nodes and constants of one decoder take."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight and how it is packed.

    Attributes:
        name: name of the initialiser.
        values: int8, two or more dimensions, with the signs of turned channels turned back.
        turned: bool, one for each channel (first axis), or `None` if no sign is turned.
        levels: the distinct integers of `values`, ascending.
        bases: bases of the digits of a weight, lowest first.
    """

    name: str
    values: np.ndarray
    turned: np.ndarray | None
    levels: np.ndarray
    bases: tuple[int, ...]

    @property
    def joined(self) -> bool:
        """Say whether the split digits are the bits of the integers themselves, in two's complement."""
        half = math.prod(self.bases) // 2
        return len(self.bases) > 1 and -half <= int(self.levels[0]) and int(self.levels[-1]) < half

    def codes(self) -> np.ndarray:
        """Return the numbers to write in digits: int64, `[N]`."""
        flat = self.values.reshape(-1).astype(np.int64)
        return flat % math.prod(self.bases) if self.joined else np.searchsorted(self.levels, flat)

    @property
    def saved(self) -> int:
        """Return how many bytes packing saves in the file, not counting tables."""
        packed = sum(math.ceil(self.values.size / IN_A_BYTE[base]) for base in self.bases)
        channels = 0 if self.turned is None else len(self.turned)
        return self.values.size - packed - channels - OVERHEAD * len(self.bases)
