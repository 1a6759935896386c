"""The batches that a stage reads from the workload. KDQ checks the type of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kdq_core.errors import RecipeError, StageError, listing
from kdq_core.plugins.kinds import Workload
from kdq_core.plugins.views import takes_views
from kdq_core.store.records import TeacherOutputs
from kdq_core.tensors import Batch, Example, Split, View

if TYPE_CHECKING:
    from kdq_core.work.shown import Shown

EVALUATION_BATCH = 256
"""Samples in a batch outside of training."""


def two_samples(workload: Workload) -> Batch:
    """Read the first two validation samples; their inputs are an `Example`.

    Raises:
        StageError: there are fewer.
        RecipeError: the workload names an input that its batches do not have.
    """
    given = next(iter(workload.batches("validation", batch_size=2)), None)
    batch = None if given is None else checked(given, "validation")
    count = 0 if batch is None else len(batch.ids)
    if batch is None or count < 2:
        raise StageError(
            f"the workload's split 'validation' gives {count} of the two samples that tracing a model takes; "
            "put more into it"
        )
    return replace(batch, inputs=_example(batch.inputs, workload))


def _example(inputs: tuple[Tensor, ...], workload: Workload) -> Example:
    """The inputs with the names and the free axes that the workload states."""
    example = Example(inputs)
    names = workload.input_names()[: len(inputs)]
    free = workload.free_axes()
    usual = _usual(len(inputs))
    known = names if len(names) == len(inputs) else usual
    strange = sorted(free.keys() - set(known))
    if strange:
        raise RecipeError(
            f"the workload frees axes of the input {strange[0]!r}, which its batches do not have; they have: "
            f"{listing(known)}"
        )
    example.names = known if known != usual else ()
    example.free = tuple(tuple(free.get(name, ())) for name in known) if free else ()
    for name, axes, x in zip(known, example.free, inputs, strict=False):
        _check_axes(name, axes, x)
    return example


def _usual(count: int) -> tuple[str, ...]:
    """The names of inputs that have none of their own."""
    return ("input",) if count == 1 else tuple(f"input_{index}" for index in range(count))


def _check_axes(name: str, axes: tuple[int, ...], x: Tensor) -> None:
    wrong = [axis for axis in axes if not 0 < axis < x.dim()]
    if wrong:
        raise RecipeError(
            f"the workload frees axis {wrong[0]} of the input {name!r}, whose shape is {tuple(x.shape)}; name an axis "
            f"from 1 to {x.dim() - 1}"
        )


def check_shapes(workload: Workload, tried: int = 4) -> None:
    """Compare the shapes of a few samples of each split with those of the two that the model is traced with.

    Raises:
        StageError: an axis differs that is not free.
    """
    example = cast(Example, two_samples(workload).inputs)
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        for given in islice(workload.batches(split, batch_size=2), tried):
            for index, (x, seen) in enumerate(zip(checked(given, split).inputs, example, strict=False)):
                axes = example.free[index] if example.free else ()
                for axis in range(1, max(x.dim(), seen.dim())):
                    sizes = x.shape[axis : axis + 1], seen.shape[axis : axis + 1]
                    if sizes[0] != sizes[1] and axis not in axes:
                        raise StageError(_two_shapes(index, split, axis, x, seen, example))


def _two_shapes(index: int, split: str, axis: int, x: Tensor, seen: Tensor, example: Example) -> str:
    name = (example.names or _usual(len(example)))[index]
    return (
        f"input {name!r} has batches of two shapes: {tuple(seen.shape)} in 'validation' and {tuple(x.shape)} in "
        f"{split!r}; KDQ traces the model with one size of axis {axis}: pad every batch to the same size, or free the "
        f"axis, which the workloads for own models do by dynamic: {{{name}: [{axis}]}}"
    )


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


def _labels(batch: Batch) -> tuple[Tensor, ...]:
    return tuple(x for x in (batch.targets, *batch.tasks.values()) if isinstance(x, Tensor))


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
    elif away := [x.device for x in (*given.inputs, *_labels(given)) if x.device.type != "cpu"]:
        wrong = f"a batch with tensors on {str(away[0])!r}, not on the CPU"
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
