"""Workload `arrays`: a model of yours, and data in one npz or safetensors file.

What: the file has the inputs as `x`, or under the names in `inputs`, and the labels as `y`, or under the name in
    `labels`. If it has `x_train` and `x_test` (and `y_train`, ...), these are the splits. Otherwise KDQ makes splits.
Formula: made splits are seeded and disjoint; each has its part of each class. If the file has no validation split,
    KDQ holds one out of `train`.
Source: none; the split is a stratified shuffle.
Defaults and where they come from: a tenth of the samples for validation and a tenth for the test, as is common.
Costs: each process reads the file once, into memory.
Limits: no augmentation. Floating-point numbers become float32.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdq_core.api import Field, RecipeError, StageError
from kdq_workloads.samples import ArraySamples, Samples
from kdq_workloads.splits import SPLITS, WHOLE, SplitModels

VALIDATION = ("validation", "val", "valid")
"""Endings of the arrays of the validation split."""


class Arrays(SplitModels):
    """Your model on the arrays of one npz or safetensors file."""

    file: str = Field(min_length=1, description="the npz or safetensors file")
    inputs: tuple[str, ...] = Field(default=("x",), min_length=1, description="names of the inputs, in order")
    labels: str = Field(default="y", min_length=1, description="name of the labels; the file may lack it")

    def fingerprint(self) -> str:
        """Sha256 of the file's content, and of the splits."""
        return hashlib.sha256((digest(data_file(self.file)) + self.split_text()).encode()).hexdigest()

    def data_names(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return self.inputs

    def given(self) -> dict[str, Samples]:
        """The splits in the file, or all of it.

        Raises:
            RecipeError: it lacks an array, or has only some of the splits.
        """
        arrays, endings = read(data_file(self.file)), self._endings()
        return {split: self._samples(arrays, ending) for split, ending in (endings or {WHOLE: ""}).items()}

    def _endings(self) -> dict[str, str]:
        """The splits that the file has, each with the ending of its arrays; empty if it has none."""
        arrays, first = read(data_file(self.file)), self.inputs[0]
        found: dict[str, str] = {}
        for split in SPLITS:
            endings = VALIDATION if split == "validation" else (split,)
            there = [ending for ending in endings if f"{first}_{ending}" in arrays]
            found |= {split: f"_{there[0]}"} if there else {}
        if found and not {"train", "test"} <= found.keys():
            missing = "train" if "train" not in found else "test"
            raise RecipeError(
                f"{self.file!r} has arrays of the split {next(iter(found))!r}, and none of {missing!r}; add "
                f"'{first}_{missing}', or give all samples as {first!r}, so that KDQ makes the splits"
            )
        return found

    def _samples(self, arrays: dict[str, Any], ending: str) -> ArraySamples:
        missing = [f"{name}{ending}" for name in self.inputs if f"{name}{ending}" not in arrays]
        if missing:
            raise RecipeError(
                f"{self.file!r} has no array {missing[0]!r}; it has: {', '.join(arrays)}; name the inputs in 'inputs' "
                "of the workload's options"
            )
        labels = arrays.get(f"{self.labels}{ending}")
        found = {f"{name}{ending}": arrays[f"{name}{ending}"] for name in self.inputs}
        count = len(next(iter(found.values())))
        others = found if labels is None else {**found, f"{self.labels}{ending}": labels}
        for name, array in others.items():
            if len(array) != count:
                raise RecipeError(
                    f"{self.file!r} has {count} samples in {next(iter(found))!r}, and {len(array)} in {name!r}; each "
                    "array needs one row for each sample"
                )
        return ArraySamples(tuple(found.values()), labels, self._others(arrays, ending, others.keys(), count))

    def _others(self, arrays: dict[str, Any], ending: str, used: Collection[str], count: int) -> dict[str, Any]:
        """The other arrays with one number for each sample, by their names without the ending of the split."""
        found = {name: x for name, x in arrays.items() if name.endswith(ending) and name not in used}
        return {name.removesuffix(ending): x for name, x in found.items() if x.shape == (count,)}


def data_file(file: str) -> Path:
    """The path of a data file.

    Raises:
        RecipeError: it is not there.
    """
    path = Path(file)
    if not path.is_file():
        raise RecipeError(
            f"the data file {file!r} is not there, seen from {str(Path.cwd())!r}; correct its path, or give it whole"
        )
    return path


def digest(path: Path) -> str:
    """Sha256 of a file's content; a process reads a file again if its times or size have changed."""
    status = path.stat()
    return _digest(str(path), status.st_mtime_ns, status.st_ctime_ns, status.st_size)


@functools.lru_cache(maxsize=100_000)
def _digest(path: str, *_state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; each process reads it once. Floating-point numbers become float32.

    Raises:
        RecipeError: it is neither npz nor safetensors, or holds objects.
    """
    status = path.stat()
    return _read(str(path.resolve()), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _read(path: str, _changed: int, _size: int) -> dict[str, Any]:
    import numpy as np

    try:
        if path.endswith(".safetensors"):
            from safetensors.numpy import load_file

            arrays = load_file(path)
        else:
            with open(path, "rb") as data, np.load(data, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except Exception as error:
        raise RecipeError(
            f"{path!r} cannot be read as arrays: {type(error).__name__}: {str(error)[:200]}; write it with "
            "numpy.savez(path, x=..., y=...), with numbers alone"
        ) from None
    found = {name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays.items()}
    for name, array in found.items():
        if array.ndim == 0 or array.dtype.kind not in "fiub":
            raise StageError(
                f"array {name!r} of {path!r} has the type {array.dtype}; KDQ needs numbers, one row a sample: turn "
                "text into numbers, such as classes into 0, 1, 2, ..."
            )
    return found
