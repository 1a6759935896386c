"""The batches that a stage reads from the workload. KDQ checks the type of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdq_core.errors import StageError
from kdq_core.plugins.kinds import Workload, takes_views
from kdq_core.store.records import TeacherOutputs
from kdq_core.tensors import Batch, View

if TYPE_CHECKING:
    from kdq_core.work.shown import Shown

EVALUATION_BATCH = 256
"""Samples in a batch outside of training."""


def two_samples(workload: Workload) -> Batch:
    """Read the first two validation samples.

    Raises:
        StageError: there are fewer.
    """
    given = next(iter(workload.batches("validation", batch_size=2)), None)
    batch = None if given is None else checked(given, "validation")
    count = 0 if batch is None else len(batch.ids)
    if batch is None or count < 2:
        raise StageError(
            f"the workload's split 'validation' gives {count} of the two samples that tracing a model takes; "
            "put more into it"
        )
    return batch


def training_batches(work: Shown, epoch: int, batch_size: int) -> Iterator[Batch]:
    """The training batches of one epoch of a stage, each with the number of its view."""
    asked: dict[str, Any] = {"seed": work.seed_of(f"{work.wired.stage_name}/batches"), "epoch": epoch}
    view = view_of(work, epoch)
    asked |= {} if view is None else {"view": view}
    for batch in work.workload.batches("train", batch_size=batch_size, **asked):
        yield replace(checked(batch, "train"), view=epoch if view is None else view.number)


def view_of(work: Shown, epoch: int) -> View | None:
    """Choose the view of the training samples in an epoch; `None` lets the workload derive it from seed and epoch.

    If the plan keeps the teacher's outputs, the epochs take the kept views in turn. If the teacher runs beside the
    student, each epoch has a new view.
    """
    if not takes_views(work.workload):
        return None
    if work.has("outputs"):
        kept = work.record("outputs", TeacherOutputs)
        return View(kept.seed, epoch % kept.views)
    if not work.may_read("teacher", "cache.seed"):
        return None
    return View(work.section("teacher").cache.seed, epoch)


def checked(given: object, split: str) -> Batch:
    """Give back what the workload gave, if it is a batch of tensors.

    Raises:
        StageError: it is not a `Batch`, or holds something else than tensors, or floats of another type than float32.
    """
    if not isinstance(given, Batch):
        wrong = f"a {type(given).__name__!r}"
    elif not isinstance(given.inputs, tuple) or not all(isinstance(x, Tensor) for x in given.inputs):
        wrong = f"a batch whose inputs are a {type(given.inputs).__name__!r}, not a tuple of tensors"
    elif not isinstance(given.ids, Tensor):
        wrong = f"a batch whose ids are a {type(given.ids).__name__!r}, not a tensor"
    else:
        _check_floats(given, split)
        return given
    raise StageError(
        f"the workload's batches({split!r}) gave {wrong}; it must give Batch(inputs=(tensor, ...), targets=tensor "
        "or None, ids=tensor of sample numbers) of kdq_core.api"
    )


def _check_floats(batch: Batch, split: str) -> None:
    for index, x in enumerate(batch.inputs):
        if x.is_floating_point() and x.dtype != torch.float32:
            which = "its input" if len(batch.inputs) == 1 else f"its input {index}"
            raise StageError(
                f"the workload's batches({split!r}) gave floats of type {str(x.dtype).removeprefix('torch.')!r} as "
                f"{which}, but models and files take 'float32'; give x.float()"
            )
