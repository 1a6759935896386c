"""Reads the data of a recipe: how many samples, of which shapes, with which labels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdq_core.errors import StageError
from kdq_core.work.data import EVALUATION_BATCH, checked
from kdq_core.work.quantizing import check_finite

if TYPE_CHECKING:
    from torch import Tensor

    from kdq_core.plugins.kinds import Workload
    from kdq_core.tensors import Batch, Split

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SECONDS = 10.0
"""How long KDQ reads one split."""
FINITE = 4
"""Training batches that KDQ searches for NaN."""


@dataclass
class Read:
    """What KDQ read of one split.

    Attributes:
        samples: how many.
        whole: whether that is all of it.
        batches: the first batch, and those with the least and the greatest class.
        classes: class numbers that are labels; empty if labels are no classes.
    """

    samples: int = 0
    whole: bool = False
    batches: dict[str, Batch] = field(default_factory=dict)
    classes: set[int] = field(default_factory=set)

    def take(self, batch: Batch) -> None:
        """Add one batch."""
        self.samples += len(batch.ids)
        self.batches.setdefault("first", batch)
        if batch.targets is None or batch.targets.ndim != 1 or batch.targets.is_floating_point():
            return
        numbers = set(batch.targets.tolist()) - {-100}
        if numbers and min(numbers) < min(self.classes, default=min(numbers) + 1):
            self.batches["least"] = batch
        if numbers and max(numbers) > max(self.classes, default=max(numbers) - 1):
            self.batches["greatest"] = batch
        self.classes |= numbers


def read(workload: Workload) -> dict[str, Read]:
    """Read each split, for at most `SECONDS` each.

    Raises:
        StageError: a split is empty, does not end, gives something else than batches, or numbers that are not finite.
    """
    workload.check()
    found: dict[str, Read] = {}
    for split in SPLITS:
        one, began = found.setdefault(split, Read()), time.monotonic()
        for number, batch in enumerate(workload.batches(split, batch_size=EVALUATION_BATCH), start=1):
            one.take(checked(batch, split))
            if split == "train" and number <= FINITE:
                check_finite(batch, number)
            if time.monotonic() - began > SECONDS:
                break
        else:
            one.whole = True
        if not one.samples:
            raise StageError(f"the workload's split {split!r} is empty; put samples into it")
    return found


def told(splits: dict[str, Read]) -> str:
    """Word what was read."""
    first = splits["train"].batches["first"]
    counts = (f"{split} {'' if one.whole else 'at least '}{one.samples:,} samples" for split, one in splits.items())
    inputs = " and ".join(shape(x) for x in first.inputs)
    return f"{', '.join(counts)}; inputs {inputs}; {labels(first, set().union(*(r.classes for r in splits.values())))}"


def labels(batch: Batch, classes: set[int]) -> str:
    """Word the labels."""
    if batch.tasks:
        return f"labels of {', '.join(f'{name} {shape(x)}' for name, x in sorted(batch.tasks.items()))}"
    if batch.targets is None:
        return "no labels"
    if classes:
        return f"labels {shape(batch.targets)}, {len(classes)} classes from {min(classes)} to {max(classes)}"
    return f"labels {shape(batch.targets)}"


def shape(x: Tensor) -> str:
    """Word type and shape of a tensor, without the batch."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}" if x.ndim > 1 else str(x.dtype)[len("torch.") :]


def probes(splits: dict[str, Read]) -> Iterator[tuple[str, Batch]]:
    """Yield the batches that a loss is tried on, each with its split: the first, and those with the labels' ends."""
    for name, split in splits.items():
        yield from ((name, batch) for batch in split.batches.values())
