"""Rows of one shape in a flat file. The file is memory-mapped, so that reading some rows needs no memory for all.

Touched pages count as the process's memory until they are released; `Rows` releases them every few batches.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import numpy as np

from kdq_core.store.records import StoredTensor

KEPT_BYTES = 16 << 20
FAULT_BYTES = 64 << 10
"""Bytes that the kernel maps around one touched page."""


class Rows:
    """The rows of a `StoredTensor`, in an existing file."""

    def __init__(self, path: Path, tensor: StoredTensor, count: int, *, writable: bool = False) -> None:
        """Map `count` rows.

        Raises:
            OSError: the file is missing, or its size is not that of `count` rows.
        """
        self._row_bytes, self._touched = row_bytes(tensor), 0
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        with path.open("r+b" if writable else "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != self._row_bytes * count:
                raise OSError(f"{path} has {found} bytes where {count} rows of {self._row_bytes} are needed")
            self._map = mmap.mmap(file.fileno(), 0, access=access)
        self._array = np.ndarray((count, *tensor.shape), np.dtype(tensor.dtype), buffer=self._map)

    def read(self, at: np.ndarray) -> np.ndarray:
        """Give copies of the rows `at` `[B]`."""
        rows: np.ndarray = self._array[at]
        self._let_go(len(at))
        return rows

    def write(self, at: np.ndarray, values: np.ndarray) -> None:
        """Write `values` `[B, ...]` into the rows `at` `[B]`."""
        self._array[at] = values
        self._let_go(len(at))

    def flush(self) -> None:
        """Flush written rows to the disk."""
        self._map.flush()

    def _let_go(self, rows: int) -> None:
        self._touched += rows * (self._row_bytes + FAULT_BYTES)
        if len(self._map) > KEPT_BYTES and self._touched > KEPT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def row_bytes(tensor: StoredTensor) -> int:
    """Give the number of bytes of one row."""
    return np.dtype(tensor.dtype).itemsize * math.prod(tensor.shape)


def reserve(path: Path, size: int) -> None:
    """Create `path` with `size` bytes allocated on the disk, so that a full disk is an error now, not a signal later.

    Raises:
        OSError: the disk is full.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
