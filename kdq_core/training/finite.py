"""Finds the samples for which a model gives NaN or infinity, so that messages can name them.

A model can do so for a sample that is finite itself, such as a sentence whose mask is all zero. Rounding turns NaN into
a number, so an int8 file would answer for such a sample as for any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdq_core.tensors import Batch, Outputs
from kdq_core.training.losses import outputs_of


def odd_samples(outputs: Outputs, batch: Batch) -> list[int]:
    """Numbers of the samples of `batch` for which an output holds NaN or infinity."""
    fine = torch.ones(len(batch.ids), dtype=torch.bool)
    for value in outputs.tasks.values() or (outputs.logits,):
        if value.is_floating_point() and len(value) == len(fine):
            fine &= value.detach().isfinite().reshape(len(value), -1).all(1).cpu()
    return [int(number) for number in batch.ids[~fine]]


@torch.no_grad()
def odd_samples_of(model: nn.Module, batch: Batch) -> list[int]:
    """Numbers of the samples of `batch` for which `model` gives NaN or infinity."""
    return odd_samples(outputs_of(model, batch), batch)


def why_odd(who: str, numbers: Sequence[int], split: str, count: int) -> str:
    """Word what to do about the samples `numbers`, of `count` in `split`, for which `who` gives NaN or infinity."""
    said = f"{who} gives NaN or infinity for {len(numbers)} of {count} samples of the split {split!r}"
    said += f", first for sample {min(numbers)}"
    if 2 * len(numbers) > count:
        return f"{said}; look for a division by zero or a logarithm of zero in the model"
    return (
        f"{said}; let the model answer for such a sample, for instance a sentence whose mask is all zero, or drop it "
        "from the data"
    )
