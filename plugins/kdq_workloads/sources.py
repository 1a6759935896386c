"""Reads data sets, loaders, arrays and iterables of the user as samples."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdq_core.api import Batch, StageError, View
from kdq_workloads.collating import collated
from kdq_workloads.samples import LABELS, ArraySamples, DatasetSamples, Samples, input_names, on_cpu, parted, seeds_kept

if TYPE_CHECKING:
    import numpy as np


END = "let it end, such as with itertools.islice(batches, count)"


class Named(ArraySamples):
    """Arrays by name."""

    names: tuple[str, ...] = ()


SECONDS = 10.0
"""How long KDQ reads an iterable before a run, to see that it ends; an option `limit` lets it read on."""
LIMIT = 1_000_000
"""Most samples of an iterable without such an option."""


class Stream:
    """An iterable of batches, which KDQ asks for anew each time.

    Args:
        make: gives the iterable.
        limit: most samples; `None`: `LIMIT`.
        what: how messages call it.
    """

    def __init__(self, make: Any, limit: int | None, what: str) -> None:
        self._make, self._limit, self._what = make, limit or LIMIT, what
        self._seconds = SECONDS if limit is None else math.inf
        self.names = input_names(next(iter(make()), None))

    def check(self) -> None:
        """Read it to the end once.

        Raises:
            StageError: it has not ended after `SECONDS`, or gives more samples than the limit.
        """
        began, done = time.monotonic(), 0
        for batch in self.batches():
            done += len(batch.ids)
            if (took := time.monotonic() - began) > self._seconds:
                raise StageError(
                    f"{self._what} gave {done:,} samples in {took:.0f} s and did not end; {END}, or write how many "
                    "samples it has at most as 'limit' in the options of the workload, and KDQ reads on"
                )
        self._count = done

    def batches(self) -> Iterator[Batch]:
        """The batches; samples are numbered as they come.

        Raises:
            StageError: there are more than the limit.
        """
        import numpy as np

        done = 0
        for given in self._make():
            count = _length(given, self._what)
            yield parted(given, np.arange(done, done + count), self.names)
            done += count
            if done > self._limit:
                raise StageError(
                    f"{self._what} gave more than {self._limit:,} samples and did not end; {END}, or raise 'limit' in "
                    "the options of the workload"
                )

    @functools.cached_property
    def _count(self) -> int:
        return sum(len(batch.ids) for batch in self.batches())

    def __len__(self) -> int:
        """How many samples; reads all."""
        return self._count

    def batch(self, ids: np.ndarray, view: View | None) -> Batch:  # noqa: ARG002
        """Refuse: an iterable has no numbered samples."""
        raise StageError(
            f"{self._what} is an iterable, from which KDQ cannot hold samples out; return a map-style data set, or "
            "give the split 'validation' too"
        )

    def classes(self) -> None:
        """Unknown."""

    def columns(self) -> Mapping[str, np.ndarray]:
        """None: an iterable gives no more than batches."""
        return {}


def samples_of(given: Any, make: Any, limit: int | None, what: str) -> Samples:
    """Read a data set, a loader, arrays or an iterable of batches as samples.

    Args:
        given: what the user's function gave.
        make: gives it anew, for an iterator, which can be read once.
        limit: most samples of an iterable; `None`: `LIMIT`.
        what: how messages call it.

    Raises:
        StageError: it is something else.
    """
    from torch.utils.data import DataLoader, IterableDataset, default_collate

    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        collate = collated if given.collate_fn is default_collate else given.collate_fn
        return _dataset(given.dataset, collate, what)
    if isinstance(given, Mapping):
        _check_arrays(given, what)
        names = tuple(name for name in given if name not in LABELS)
        labels = next((_array(given[name]) for name in LABELS if name in given), None)
        found = Named([_array(given[name]) for name in names], labels)
        object.__setattr__(found, "names", names)
        return found
    if _are_arrays(given):
        *inputs, last = map(_array, given)
        return ArraySamples(inputs, last)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, tuple | list):
        return _dataset(given, collated, what)
    if hasattr(given, "__iter__"):
        again = given if not hasattr(given, "__next__") else None
        most = limit or LIMIT if isinstance(given, tuple | list) else limit  # these end
        return Stream((lambda: again) if again is not None else make, most, what)
    raise StageError(
        f"{what} gave a {type(given).__name__!r}; it must give a data set, a DataLoader, arrays (inputs, labels), "
        "or an iterable of batches"
    )


def _dataset(dataset: Any, collate: Any, what: str) -> DatasetSamples:
    if not len(dataset):
        raise StageError(f"{what} gave a data set without samples")
    with seeds_kept():
        names = input_names(collate([dataset[0]]))
    return DatasetSamples(dataset, collate, names)


def _check_arrays(given: Mapping[str, Any], what: str) -> None:
    """Refuse a dict with something else than arrays."""
    by_task = {name for name in LABELS if isinstance(given.get(name), Mapping)}
    wrong = [
        name for name, one in given.items()
        if name not in by_task and not isinstance(one, list) and not hasattr(one, "shape")
    ]  # fmt: skip
    if wrong or not given:
        found = f"{wrong[0]!r} is a {type(given[wrong[0]]).__name__!r}" if wrong else "there is nothing"
        raise StageError(
            f"{what} gave a dict in which {found}; a dict must have the inputs and the labels as arrays, each with one "
            "row for each sample; give a data set itself, one for each split"
        )


def _are_arrays(given: Any) -> bool:
    """Whether these are arrays (inputs, labels); labels may also be a list of one value for each sample."""
    if not isinstance(given, tuple | list) or len(given) < 2 or not all(hasattr(one, "shape") for one in given[:-1]):
        return False
    last = given[-1]
    return hasattr(last, "shape") or (
        isinstance(last, list) and len(last) == len(given[0]) and isinstance(last[0], str | int | float)
    )


def _array(given: Any) -> Any:
    """A tensor as an array, which batches index."""
    import numpy as np

    if isinstance(given, list):
        return np.asarray(given)
    return on_cpu(given, "an array").numpy() if hasattr(given, "detach") else given


def _length(batch: Any, what: str) -> int:
    """Samples in a batch, however deep they lie.

    Raises:
        StageError: it is no batch.
    """
    given = batch
    while isinstance(given, Mapping | tuple | list) and len(given):
        given = next(iter(given.values())) if isinstance(given, Mapping) else given[0]
    if not getattr(given, "shape", ()):
        raise StageError(
            f"{what} is an iterable of {type(given).__name__!r}, not of batches of tensors; wrap it in "
            "torch.utils.data.DataLoader(..., batch_size=32), or return a map-style data set"
        )
    return len(given)
