"""What the workloads do alike: the order of samples in an epoch, and the labels that a loss needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kdq_core.api import Batch, Split, StageError
from kdq_examples.draws import stream

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def rows_of_batches(split: Split, count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield the rows of each batch, int64 `[B]`: the train split in an order by seed and epoch, others as they are."""
    import numpy as np

    order = stream(seed, epoch, 0).permutation(count) if split == "train" else np.arange(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]


def targets_of(batch: Batch, workload: str, needs: str = "labels") -> Tensor:
    """Return the targets of a batch.

    Raises:
        StageError: it has none.
    """
    if batch.targets is None:
        raise StageError(f"the loss of workload {workload!r} needs {needs}; this batch has none")
    return batch.targets
