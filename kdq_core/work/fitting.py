"""A stage's fit: runs the training loop on the site's device, with scoring, progress and resumption."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from kdq_core.errors import StageError
from kdq_core.recipe.spec import FitSpec, Site
from kdq_core.store.records import EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.fit import FitHooks, Loss, fit
from kdq_core.training.losses import validation
from kdq_core.training.resume import Due
from kdq_core.training.stopping import Stop, stopping_on_sigterm
from kdq_core.work.data import EVALUATION_BATCH, training_batches
from kdq_core.work.shown import request_of

if TYPE_CHECKING:
    from kdq_core.work.shown import Shown


def fitted(
    work: Shown, model: nn.Module, loss: Loss, spec: FitSpec, where: Accelerator, *,
    scheduled: Mapping[str, float] | None = None,
    read: Callable[[Batch], Batch] = lambda batch: batch,
    hooks: Mapping[str, Callable[..., None]],
    first: int = 0, last: int | None = None,
) -> tuple[EpochRecord, ...]:  # fmt: skip
    """Fit `model` on the training split, or resume its unfinished fit.

    KDQ keeps the state of an unfinished fit in `scratch`: after each epoch, as often within an epoch as the recipe's
    `retry` says, and when SIGTERM asks it to stop. The curves of a stage's second fit have names such as
    `2/train/loss`.

    Args:
        work: of the stage.
        model: trained in place, on the device of `where`.
        loss: the loss to minimise.
        spec: how long and how.
        where: device and processes; the precision is that of the stage's site.
        scheduled: values that KDQ adds to the curves at the end of each epoch.
        read: selects the inputs of a batch that the model reads.
        hooks: further hooks of `FitHooks`, by name.
        first: epochs of the schedule that are done before; see `kdq_core.training.fit.fit`.
        last: epochs of the schedule that are done afterwards; by default all.
    """
    workload, number = work.workload, max(len(work.fits), work.number)
    work.fits.append(number)
    retry = request_of(work).recipe.retry_of(work.title)
    named = partial(_named, number)

    def batches(epoch: int) -> Iterator[Batch]:
        for batch in training_batches(work, epoch, spec.batch_size):
            yield replace(read(batch), view=batch.view)

    with stopping_on_sigterm() as stop:
        score = _scoring(work, where, read, stop)
        history = fit(
            model,
            loss,
            batches,
            spec,
            samples=workload.samples("train"),
            accelerator=where,
            half=work.site.precision == "bf16",
            resume=work.scratch / f"fit{number or ''}.safetensors",
            due=Due(retry.checkpoint_seconds, retry.checkpoint_steps),
            first=first,
            last=last,
            hooks=FitHooks(
                score=lambda model: {**score(model), **(scheduled or {})},
                on_step=_showing(work, spec, first, spec.epochs if last is None else last),
                on_epoch=lambda record: work.emit(_event(work, named(record))),
                on_smaller=lambda text: work.emit({"event": "note", "text": text}),
                stop=stop,
                **hooks,
            ),
        )
    return tuple(named(record) for record in history)


def _named(number: int, record: EpochRecord) -> EpochRecord:
    """The record with the names of a stage's fit `number`, from 0."""
    values = {f"{number + 1}/{name}": value for name, value in record.values.items()}
    return record.model_copy(update={"values": values}) if number else record


def _showing(work: Shown, spec: FitSpec, first: int, last: int) -> Callable[[int, int, float], None]:
    """A hook that shows how far a fit is of its part of the schedule."""

    def show(done: int, total: int, value: float) -> None:
        begin, end = (total * epochs // spec.epochs for epochs in (first, last))
        work.progress(done - begin, end - begin, _note(done, total, spec.epochs, value))

    return show


def _note(done: int, total: int, epochs: int, loss: float) -> str:
    """The epoch that step `done` of `total` belongs to, and the loss."""
    return f"epoch {max(0, done - 1) * epochs // max(total, 1) + 1} of {epochs}, loss {loss:.3f}"


def _event(work: Shown, record: EpochRecord) -> dict[str, Any]:
    return {"event": "epoch", "stage": work.title, "record": record.model_dump(mode="json")}


def _scoring(
    work: Shown, where: Accelerator, read: Callable[[Batch], Batch], stop: Stop
) -> Callable[[nn.Module], Mapping[str, float]]:
    """The curves of the validation split; scoring ends early if somebody asks the fit to stop."""

    def seen(batch: Batch) -> Batch:
        stop.check()
        return read(batch)

    return validation(work.workload, where.device, EVALUATION_BATCH, seen)


def accelerator(site: Site) -> Accelerator:
    """The device of a site. Accelerate's own mixed precision stays off: it would validate in bf16 too; see `in_bf16`.

    Raises:
        StageError: this machine has no such device.
    """
    check_device(site.device)
    with _plain_accelerate():
        return Accelerator(cpu=site.device == "cpu", mixed_precision="no")


@contextlib.contextmanager
def _plain_accelerate() -> Iterator[None]:
    """Hide the variables that Accelerate reads: they would change results, and no key holds them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def check_device(device: str) -> None:
    """Refuse a GPU that is not there: falling back to the CPU would store its results under the GPU's key.

    Raises:
        StageError: torch sees no such device.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise StageError(
            f"the device {device!r} was asked for, but torch {torch.__version__} sees no CUDA device here; "
            "set KDQ_DEVICE=cpu, or install a CUDA build of torch and a driver"
        )
