"""Micro-batches: after a lack of memory, a step computes its batch in parts and adds up their gradients.

The gradient is that of the whole batch up to rounding. A term weighs in each part by its share of the samples, the hard
loss by its share of the labels, because it is a mean over those. Limits: a distiller that compares the samples of a
batch with each other compares those of a part; batch norm and observers measure a part at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdq_core.quantization.capture import BatchNorm
from kdq_core.tensors import Batch
from kdq_core.training.rows import IGNORED, rows_of

HARD = "hard"
"""Name of the hard loss among the terms; with several tasks, `hard/<task>`."""
MICRO = ".micro"
"""Ending of the file that remembers the size, beside the state of the fit."""

Weigh = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class MicroBatch:
    """How many samples a fit computes at a time; a file remembers it.

    Attributes:
        size: number of samples; `None`: whole batches.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Take the size from `file`, if it is there."""
        self._file = file
        kept = file.read_text().strip() if file is not None and file.exists() else ""
        self.size = int(kept) if kept.isdigit() else None

    def halve(self, model: nn.Module, batch_size: int) -> int | None:
        """Halve the size, or else `batch_size`, and remember it; `None` if `model` cannot train on less."""
        least = 2 if measures_batches(model) else 1  # a batch norm needs two values a channel
        now = self.size or batch_size
        if now <= least:
            return None
        self.size = max(least, math.ceil(now / 2))
        if self._file is not None:
            self._file.write_text(f"{self.size}\n")
        return self.size

    def parts(self, batch: Batch, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Batch, Weigh]]:
        """Cut a batch into parts of about equal length, each with the function that weighs its terms.

        With several processes, those are parts of every n-th row, and the mean over the processes is that of the batch.
        In a batch with less than two rows for each, every process computes all.
        """
        mine = rows_of(batch, torch.arange(rank, len(batch.ids), ranks)) if len(batch.ids) >= 2 * ranks > 2 else batch
        count = math.ceil(len(mine.ids) / (self.size or len(mine.ids)))
        if count <= 1 and mine is batch:
            yield batch, lambda terms: terms
            return
        times = ranks if mine is not batch else 1
        for at in torch.arange(len(mine.ids)).tensor_split(count):
            part = rows_of(mine, at)
            yield part, lambda terms, part=part: weighed(terms, part, batch, times)  # type: ignore[misc]


def weighed(terms: Mapping[str, Tensor], part: Batch, whole: Batch, times: int = 1) -> dict[str, Tensor]:
    """The terms of `part` times its share of `whole`, and `times` that.

    A hard loss without a label in `part` is left out; with several processes it is zero, as all must have it.
    """
    found = {}
    for name, term in terms.items():
        kind, _, task = name.partition("/")
        weight = _share_of_labels(part, whole, task) if kind == HARD else len(part.ids) / len(whole.ids)
        if weight:
            found[name] = times * weight * term
        elif times > 1:
            found[name] = torch.zeros_like(term, requires_grad=True)
    return found


def _share_of_labels(part: Batch, whole: Batch, task: str) -> float:
    mine, all_ = (_labels(batch.tasks[task] if task else batch.targets) for batch in (part, whole))
    return len(part.ids) / len(whole.ids) if mine is None else mine / all_ if all_ else 0.0


def _labels(targets: Tensor | None) -> int | None:
    """The number of labels that are not missing; `None` if they are no classes."""
    if targets is None or targets.is_floating_point():
        return None
    return int((targets != IGNORED).sum())


def measures_batches(model: nn.Module) -> bool:
    """Whether a batch norm of `model` measures the batches that it trains on."""
    plain = any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
    return plain or any(isinstance(m, BatchNorm) and not (m.frozen or m.fixed) for m in model.modules())


def said_of_ranks(model: nn.Module, ranks: int, batch_size: int) -> str | None:
    """What it means that `ranks` devices share each batch; `None` if the result is that of one device."""
    if not measures_batches(model):
        return None
    return (
        f"{ranks} devices share each batch of {batch_size}; the batch norms measure each device's samples, and those "
        "of the first device are kept, so the result is not quite that of one device"
    )


def said_of(model: nn.Module, size: int, batch_size: int) -> str:
    """What it means to go on with micro-batches of `size` samples."""
    norms = (
        f"; its batch norms then measure {size} samples at a time, so the result is not quite that of whole batches"
        if measures_batches(model) else ""
    )  # fmt: skip
    return (
        f"out of memory: goes on with {size} samples at a time, whose gradients add up to those of a batch of "
        f"{batch_size}{norms}"
    )
