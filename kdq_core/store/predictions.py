"""Outputs of a model's file, in flat files of an entry: KDQ writes them batch by batch, and reads them by mmap."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from kdq_core.errors import StoreError
from kdq_core.store.records import StoredArray, StoredPredictions

if TYPE_CHECKING:
    from kdq_core.store.store import Entry


def write_outputs(parts: Iterable[tuple[np.ndarray, ...]], paths: list[Path]) -> list[tuple[str, tuple[int, ...]]]:
    """Concatenate the outputs of all batches, one file for each output; memory holds one batch at a time.

    Args:
        parts: the outputs of each batch, each `[B, ...]`; only B may differ between batches.
        paths: one for each output; their folder must exist.

    Returns:
        NumPy's name of the type, and the shape `(N, ...)`, of each output.
    """
    forms: list[tuple[str, tuple[int, ...]]] = []
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = [stack.enter_context(path.open("wb")) for path in paths]
        for outputs in parts:
            forms = forms or [(values.dtype.newbyteorder("<").str, (0, *values.shape[1:])) for values in outputs]
            for number, (file, values) in enumerate(zip(files, outputs, strict=True)):
                kind, (rows, *rest) = forms[number]
                file.write(values.astype(kind, casting="equiv", copy=False).tobytes())
                forms[number] = (kind, (rows + len(values), *rest))
    return forms


def write_array(folder: Path, name: str, path: str, values: np.ndarray) -> StoredArray:
    """Write one array to `path` below an entry's folder, whose parent must exist."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    (folder / path).write_bytes(little.tobytes())
    return StoredArray(name=name, path=path, dtype=little.dtype.str, shape=little.shape)


def opened(folder: Path, stored: StoredPredictions | StoredArray) -> np.ndarray:
    """Open an array in an entry's folder, memory-mapped and read-only.

    Raises:
        StoreError: the file is missing, or has another size than its record says.
    """
    if 0 in stored.shape:
        return np.empty(stored.shape, stored.dtype)
    path, wanted = folder / stored.path, math.prod(stored.shape) * np.dtype(stored.dtype).itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != wanted:
        there = "is missing" if size is None else f"has {size:,} bytes"
        raise StoreError(
            f"{_title(stored)} in {str(path)!r} should have {wanted:,} bytes, but the file "
            f"{there}; run the recipe again: KDQ drops the damaged entry and computes it anew"
        )
    return np.asarray(np.memmap(path, dtype=stored.dtype, mode="r", shape=stored.shape))


def outcomes_of(report: Entry) -> dict[str, np.ndarray]:
    """What the int8 file did on each sample, by metric, of every evaluator that kept it."""
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = {}
    for file in report.manifest.files:
        if fnmatch(file.path, "files/*/int8/outcomes.safetensors"):
            found |= load_file(report.file(file.path))
    return found


def _title(stored: StoredPredictions | StoredArray) -> str:
    if isinstance(stored, StoredPredictions):
        return f"the predictions of the {stored.model} model"
    return f"the values of {stored.name!r}"
