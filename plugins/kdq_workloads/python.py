"""Workload `python`: a model of yours, and data from a function of yours.

What: `data` names a function of a split's name ("train", "validation" or "test"), which returns a map-style data set, a
    `DataLoader` of one, a pair of arrays or tensors (inputs, labels), a dict of them, or an iterable of batches. A
    function without arguments returns all samples, and KDQ makes the splits; or a dict of data sets by split. It may
    return `None` for validation. Items of a data set may hold lists of numbers, as those of Hugging Face do.
Formula: random numbers that a map-style data set draws (augmentation) are seeded by (view, sample), so that a view can
    be repeated. Items and batches: of a tuple, the last is the labels; a dict has them as `y`, `label`, `labels`,
    `target` or `targets`; a tensor alone has none.
Source: none.
Defaults and where they come from: a tenth of the samples for validation and a tenth for the test, where KDQ makes the
    splits.
Costs: a map-style data set is read item by item in the process of the stage.
Limits: KDQ hashes the code, and the files and folders in `files`; it cannot know of other data that the function
    reads. An iterable of batches is read in its own order and batch size, at most `limit` samples; if
    `limit` is null, KDQ reads it for 10 s before a run, and refuses it if it has not ended.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdq_core.api import USER_CODE, Batch, Field, RecipeError, Split, View, user_object
from kdq_workloads.arrays import digest
from kdq_workloads.samples import DatasetSamples, Samples
from kdq_workloads.sources import Named, Stream, samples_of
from kdq_workloads.splits import SPLITS, WHOLE, SplitModels


class Python(SplitModels):
    """Your model on data from your own function."""

    data: str = Field(pattern=USER_CODE, description="`file.py:function` or `module:function` that gives the data")
    files: tuple[str, ...] = Field(default=(), description="files and folders that it reads; keys hold their content")
    limit: int | None = Field(
        default=None,
        ge=1,
        description="most samples of an iterable; KDQ refuses one with more. null: 1,000,000, and before it trains "
        "anything, KDQ refuses one that has not ended after 10 s",
    )

    def runs(self) -> tuple[str, ...]:
        """The files with the models, the loss and the data."""
        return (*super().runs(), self.data)

    def fingerprint(self) -> str:
        """Sha256 of the files, and of the splits; the code is in the key beside it."""
        known = [f"{name}\0{digest(path)}" for one in self.files for name, path in sorted(_files(one))]
        return hashlib.sha256("\0".join([self.data, self.split_text(), *known]).encode()).hexdigest()

    def data_names(self) -> tuple[str, ...]:
        """The names, if the data gives dicts."""
        samples = _given(self).get("train") or _given(self)[WHOLE]
        return samples.names if isinstance(samples, DatasetSamples | Stream | Named) else ()

    def given(self) -> Mapping[str, Samples]:
        """What the function gives."""
        return _given(self)

    def check(self) -> None:
        """Read each iterable to its end once.

        Raises:
            StageError: one does not end.
        """
        for samples in self.given().values():
            if isinstance(samples, Stream):
                samples.check()

    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterator[Batch]:
        """Yield batches of a split; an iterable gives its own."""
        samples = self.split(split)
        if isinstance(samples, Stream):
            yield from samples.batches()
        else:
            yield from super().batches(split, batch_size=batch_size, seed=seed, epoch=epoch, view=view)


@functools.lru_cache(maxsize=4)
def _given(workload: Python) -> dict[str, Samples]:
    function = user_object(workload.data)
    takes = _takes_split(function, workload.data)
    if not takes:
        given = function()
        if not isinstance(given, Mapping) or not {"train", "test"} <= given.keys():
            return {WHOLE: samples_of(given, function, workload.limit, workload.data)}
        function = given.get
    found: dict[str, Samples] = {}
    for split in SPLITS:
        what = f"{workload.data}({split!r})"
        given = function(split)
        if given is not None:
            found[split] = samples_of(given, functools.partial(function, split), workload.limit, what)
        elif split != "validation":
            raise RecipeError(f"{what} gave None; only the split 'validation' may be missing")
    return found


def _takes_split(function: Any, target: str) -> bool:
    if not callable(function):
        raise RecipeError(
            f"data {target!r} is a {type(function).__name__!r}; it must be a function of the name of a split"
        )
    try:
        inspect.signature(function).bind("train")
    except TypeError:
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            raise RecipeError(
                f"data {target!r} cannot be called with the name of a split, nor without arguments: {error}"
            ) from None
        return False
    return True


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """The files behind a name, each with its path seen from there."""
    path = Path(name)
    if path.is_dir():
        yield from ((one.relative_to(path).as_posix(), one) for one in path.rglob("*") if one.is_file())
    elif path.is_file():
        yield path.name, path
    else:
        raise RecipeError(
            f"'files' of the workload names {name!r}, which is not there, seen from {str(Path.cwd())!r}; correct it"
        )
