"""Splits: those that the data has, and seeded, disjoint ones that KDQ makes where it has none."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdq_core.api import Batch, Field, Split, StageError, View
from kdq_workloads.own import OwnModels
from kdq_workloads.samples import Samples

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")
WHOLE = "whole"
"""The key of data that has no splits."""


class SplitModels(OwnModels):
    """The user's own models, on data with numbered samples."""

    validation: float = Field(default=0.1, gt=0, lt=0.9, description="share of samples held out for validation")
    test: float = Field(default=0.1, gt=0, lt=0.9, description="share of samples held out for the test")
    split_seed: int = Field(default=0, ge=0, description="another seed makes other splits")

    def given(self) -> Mapping[str, Samples]:
        """The splits that the data has, or all samples as `WHOLE`. `validation` may be missing."""
        raise NotImplementedError

    def split(self, split: Split) -> Samples:
        """The samples of a split; KDQ makes the splits that the data lacks."""
        return _splits(self)[split]

    def samples(self, split: Split) -> int:
        """Number of samples of `split`."""
        return len(self.split(split))

    def columns(self, split: Split) -> Mapping[str, np.ndarray]:
        """What the data have beside inputs and labels."""
        return self.split(split).columns()

    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterator[Batch]:
        """Yield batches of a split; `train` is shuffled by (seed, epoch)."""
        import numpy as np

        samples, shown = self.split(split), None
        order = np.arange(len(samples))
        if split == "train":
            order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(samples))
            shown = view or View(seed, epoch)
        for start in range(0, len(order), batch_size):
            yield samples.batch(order[start : start + batch_size], shown)

    def split_text(self) -> str:
        """The definition of the splits, for fingerprints."""
        return json.dumps([1, self.validation, self.test, self.split_seed])


@dataclass(frozen=True)
class Part:
    """Some of the samples of other data, numbered anew.

    Attributes:
        whole: the other data.
        ids: numbers of the samples there, int64.
    """

    whole: Samples
    ids: np.ndarray

    def __len__(self) -> int:
        """How many there are."""
        return len(self.ids)

    def batch(self, ids: np.ndarray, view: View | None) -> Batch:
        """The batch of these samples."""
        import torch

        return replace(self.whole.batch(self.ids[ids], view), ids=torch.from_numpy(ids))

    def classes(self) -> np.ndarray | None:
        """Class numbers of the samples, if they are known."""
        known = self.whole.classes()
        return None if known is None else known[self.ids]

    def columns(self) -> Mapping[str, np.ndarray]:
        """Further values of the samples."""
        return {name: values[self.ids] for name, values in self.whole.columns().items()}


@functools.lru_cache(maxsize=4)
def _splits(workload: SplitModels) -> dict[str, Samples]:
    given: dict[str, Samples] = dict(workload.given())
    shares = {"validation": workload.validation}
    if WHOLE in given:
        shares["test"] = workload.test
    elif "validation" in given:
        return given
    source = given.pop(WHOLE, None) or given.pop("train")
    held = made(len(source), source.classes(), shares, workload.split_seed)
    return given | {name: Part(source, ids) for name, ids in held.items()}


def made(count: int, labels: np.ndarray | None, shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Assign each sample to a split.

    Samples are shuffled by `seed`. Within each class, the sample of rank r among n gets the place (r + 1/2) / n. The
    splits take the samples in the order of their places.

    Args:
        count: number of samples.
        labels: class numbers `[N]`, to give each split its part of each class; or `None`.
        shares: the share of each split that is held out of `train`, by its name.
        seed: another one gives other splits.

    Returns:
        Sample numbers by split, int64, sorted.

    Raises:
        StageError: a split would have fewer than two samples.
    """
    import numpy as np

    order = np.random.Generator(np.random.Philox(key=[seed, count])).permutation(count)
    place = np.empty(count)
    groups: list[Any] = [order] if labels is None else [order[labels[order] == one] for one in np.unique(labels)]
    for group in groups:
        place[group] = (np.arange(len(group)) + 0.5) / max(len(group), 1)
    ranked = order[np.argsort(place[order], kind="stable")]
    found, start = {}, 0
    for name, share in shares.items():
        size = round(count * share)
        found[name] = np.sort(ranked[start : start + size])
        start += size
    found["train"] = np.sort(ranked[start:])
    for name, ids in found.items():
        if len(ids) < 2:
            raise StageError(
                f"{count} samples are too few to give the split {name!r} two of them; give more data, or splits of "
                "your own"
            )
    return found
