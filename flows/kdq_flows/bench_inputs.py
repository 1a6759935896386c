"""Inputs for two ONNX files: made from what the files describe, or read from an npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError, listing
from kdq_core.store.records import TensorSpec

if TYPE_CHECKING:
    import numpy as np

Named = tuple[str, tuple[TensorSpec, ...]]


def common_inputs(first: Named, second: Named) -> tuple[TensorSpec, ...]:
    """The inputs that both files take, by the names of the first; an axis is free only if it is free in both.

    Raises:
        RecipeError: they differ in number, type or shape.
    """
    pairs = list(zip(first[1], second[1]))
    same = len(first[1]) == len(second[1]) and all(_alike(one, other) for one, other in pairs)
    if not same:
        raise RecipeError(
            f"the files take different inputs, so one measurement cannot compare them: {first[0]!r} takes "
            f"{_told(first[1])}; {second[0]!r} takes {_told(second[1])}; give two files of one model"
        )
    return tuple(one.model_copy(update={"shape": tuple(map(max, one.shape, other.shape))}) for one, other in pairs)


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    same = one.dtype == other.dtype and len(one.shape) == len(other.shape)
    return same and all(a == b or -1 in (a, b) for a, b in zip(one.shape, other.shape))


def _told(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{_shape(spec)}" for spec in specs) or "none"


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("free" if size == -1 else str(size) for size in spec.shape) + "]"


def fitting_batches(specs: Sequence[TensorSpec], asked: Sequence[int]) -> tuple[int, ...]:
    """The batch sizes to measure: those asked for, or else what the files fix, or else 1.

    Raises:
        RecipeError: an input has another number of samples in each call.
    """
    fixed = {spec.name: spec.shape[0] for spec in specs if spec.shape and spec.shape[0] != -1}
    sizes = tuple(dict.fromkeys(asked)) or (next(iter(fixed.values()), 1),)
    for size in sizes:
        wrong = next(((name, number) for name, number in fixed.items() if number != size), None)
        if wrong:
            raise RecipeError(
                f"--batch {size} does not fit: the first axis of input {wrong[0]!r} is fixed to {wrong[1]}; leave "
                "--batch out, or export the files with a free first axis"
            )
    return sizes


def made(specs: Sequence[TensorSpec], batch: int, seed: int) -> tuple[np.ndarray, ...]:
    """Random inputs: floats from a normal distribution, integers 0 or 1; a free axis behind the first has length 1."""
    import numpy as np

    random = np.random.default_rng(seed)
    found = []
    for spec in specs:
        shape = tuple(size if size != -1 else 1 if axis else batch for axis, size in enumerate(spec.shape))
        floats = np.dtype(spec.dtype).kind == "f"
        values = random.normal(size=shape) if floats else random.integers(0, 2, size=shape)
        found.append(values.astype(spec.dtype))
    return tuple(found)


def read(file: Path, specs: Sequence[TensorSpec], batch: int) -> tuple[np.ndarray, ...]:
    """The first `batch` samples of an npz file with an array for each input; fewer samples are repeated.

    Raises:
        RecipeError: the file is missing or no npz file, or its arrays do not fit the inputs.
    """
    import numpy as np

    try:
        with np.load(file) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise RecipeError(f"no file {str(file)!r} with inputs; check the path") from None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):
        raise RecipeError(f"{str(file)!r} is no npz file of arrays; write one with numpy.savez") from None
    return tuple(_samples(spec, given, str(file), batch) for spec in specs)


def _samples(spec: TensorSpec, given: dict[str, np.ndarray], file: str, batch: int) -> np.ndarray:
    import numpy as np

    if spec.name not in given:
        raise RecipeError(
            f"{file!r} has no array {spec.name!r}, which the files take as input; it has: {listing(given)}"
        )
    values = given[spec.name]
    fits = values.ndim == len(spec.shape) and all(
        size in (-1, length) for size, length in list(zip(spec.shape, values.shape))[1:]
    )
    if not fits or not values.size or values.dtype != spec.dtype:
        raise RecipeError(
            f"array {spec.name!r} of {file!r} is {values.dtype}{list(values.shape)}, and the files take "
            f"{spec.dtype}{_shape(spec)}; write it with that type and shape"
        )
    return np.ascontiguousarray(values[np.arange(batch) % len(values)]) if values.ndim else values
