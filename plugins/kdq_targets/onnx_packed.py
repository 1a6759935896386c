"""A packed weight: which numbers it has, and in which digits they are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

IN_A_BYTE = {2: 8, 3: 5, 4: 4, 6: 3, 16: 2}
"""Digits that fit in a byte, by base."""
SPLITS = {8: (4, 2), 32: (16, 2), 64: (16, 4), 128: (16, 4, 2)}
"""Bases of the digits, lowest first, that stand together for one of more levels."""
OVERHEAD = 250
"""Bytes that the nodes and constants of one decoder take, at most."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight and how it is packed.

    Attributes:
        name: of the initialiser.
        values: int8, two or more dimensions, with the signs of turned channels turned back.
        turned: bool, one for each channel (first axis), or `None` where no sign is turned.
        levels: the distinct integers of `values`, ascending.
        bases: of the digits of a weight, lowest first.
    """

    name: str
    values: np.ndarray
    turned: np.ndarray | None
    levels: np.ndarray
    bases: tuple[int, ...]

    @property
    def joined(self) -> bool:
        """Whether split digits are the bits of the integers themselves, in two's complement."""
        half = math.prod(self.bases) // 2
        return len(self.bases) > 1 and -half <= int(self.levels[0]) and int(self.levels[-1]) < half

    def codes(self) -> np.ndarray:
        """The numbers that are written in digits: int64, `[N]`."""
        flat = self.values.reshape(-1).astype(np.int64)
        return flat % math.prod(self.bases) if self.joined else np.searchsorted(self.levels, flat)

    @property
    def saved(self) -> int:
        """Bytes less in the file, tables aside."""
        packed = sum(math.ceil(self.values.size / IN_A_BYTE[base]) for base in self.bases)
        channels = 0 if self.turned is None else len(self.turned)
        return self.values.size - packed - channels - OVERHEAD * len(self.bases)
