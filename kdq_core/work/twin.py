"""A student and its twin: the same start and the same fit, once with the teacher and once without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from kdq_core.store.records import EpochRecord, Gain
from kdq_core.training.fit import Loss
from kdq_core.training.gains import gains, remembered
from kdq_core.training.losses import hard_loss
from kdq_core.work.data import EVALUATION_BATCH

if TYPE_CHECKING:
    import torch

    from kdq_core.work.work import StageWork

History = tuple[EpochRecord, ...]


def with_gains(
    work: StageWork,
    student: nn.Module,
    fit: Callable[[], History],
    start_twin: Callable[[], nn.Module],
    fit_twin: Callable[[StageWork, nn.Module, Loss], History],
    *,
    batch_size: int,
    device: torch.device,
) -> tuple[History, tuple[Gain, ...]]:
    """Train the student, then its twin on hard labels alone, with the same random numbers.

    Args:
        work: of the stage; torch's generators must have the state in which the student's fit begins.
        student: the model that `fit` trains.
        fit: trains the student, and gives its curves.
        start_twin: gives the twin, equal to the student before its fit, on `device`.
        fit_twin: trains the twin with a loss, as the second fit of the stage.
        batch_size: batch size of the fits.
        device: device of both models.

    Returns:
        The curves of both fits, and the student's gains over its twin on the test split.
    """
    rewind = remembered(device)
    history = fit()
    twin = start_twin()
    rewind()
    history += fit_twin(replace(work, number=1), twin, hard_loss(work.workload))
    seen = partial(work.batches, 0, batch_size)
    return history, gains(student, twin, work.workload, device, EVALUATION_BATCH, train=seen)
