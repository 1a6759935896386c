"""Parts of a batch: on another device, some of its samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdq_core.tensors import Batch

IGNORED = -100
"""Marks a missing label, as in `torch.nn.functional.cross_entropy`. A sample with only such labels is left out."""


def rows_of(batch: Batch, at: Tensor) -> Batch:
    """Give the samples of `batch` at the positions `at` `[n]`."""
    return replace(
        batch,
        inputs=tuple(x[at] for x in batch.inputs),
        targets=None if batch.targets is None else batch.targets[at],
        ids=batch.ids[at],
        extra={name: x[at] for name, x in batch.extra.items()},
        tasks={name: x[at] for name, x in batch.tasks.items()},
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on `device`; the numbers of the samples stay on the CPU."""
    if device.type == "cpu":
        return batch
    return replace(
        batch,
        inputs=tuple(x.to(device, non_blocking=True) for x in batch.inputs),
        targets=None if batch.targets is None else batch.targets.to(device, non_blocking=True),
        extra={name: x.to(device, non_blocking=True) for name, x in batch.extra.items()},
        tasks={name: x.to(device, non_blocking=True) for name, x in batch.tasks.items()},
    )
