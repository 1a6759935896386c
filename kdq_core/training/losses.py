"""The hard loss of a fit, and the curves of the validation split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from kdq_core.errors import StageError, listing
from kdq_core.grids.fake import FakeQuantize
from kdq_core.plugins.kinds import Workload
from kdq_core.tensors import Batch, Outputs, Split
from kdq_core.training.fit import Loss
from kdq_core.training.rows import IGNORED, to_device


def outputs_of(model: nn.Module, batch: Batch) -> Outputs:
    """Call `model` on the inputs of `batch`.

    Raises:
        StageError: it gives neither a tensor nor a dict of tensors.
    """
    given = model(*batch.inputs)
    if isinstance(given, Tensor):
        return Outputs(logits=given)
    if isinstance(given, Mapping) and given and all(isinstance(value, Tensor) for value in given.values()):
        return Outputs(logits=next(iter(given.values())), tasks=dict(given))
    raise StageError(
        f"the model gave {type(given).__name__!r} where a tensor of logits is needed, or for several tasks a dict of "
        "tensors by task; return the logits alone"
    )


def hard_loss(workload: Workload) -> Loss:
    """Make a loss from the workload's own loss alone. Unlabelled batches give 0 and no gradient."""

    def loss(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if not batch.labelled:
            return {"hard": torch.zeros((), device=batch.inputs[0].device, requires_grad=True)}
        outputs = outputs_of(model, batch)
        check_names(outputs, batch)
        return {"hard": loss_of(workload, outputs, batch)}

    return loss


def loss_of(workload: Workload, outputs: Outputs, batch: Batch, split: Split = "train") -> Tensor:
    """Compute the workload's own loss.

    Raises:
        StageError: the workload gives something other than a scalar tensor, or fails on a label that is no class.
    """
    try:
        given: object = workload.loss(outputs, batch)
    except (IndexError, RuntimeError) as error:
        _check_classes(outputs, batch, split, error)
        raise
    if isinstance(given, Tensor) and not given.ndim:
        return given
    what = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__!r}"
    raise StageError(
        f"the workload's loss() gave {what}; it must give one scalar tensor, the mean over the samples of the batch"
    )


def _check_classes(outputs: Outputs, batch: Batch, split: Split, error: Exception) -> None:
    """Explain `error` by the first label that is no class of the model, if there is one."""
    for name, (logits, labels) in by_task(outputs, batch).items():
        if labels is None or labels.is_floating_point() or labels.ndim != logits.ndim - 1:
            continue
        classes = logits.shape[-1 if labels.shape == logits.shape[:-1] else 1]
        wrong = ((labels >= classes) | (labels < 0)) & (labels != IGNORED)
        if bool(wrong.any()):
            row = int(wrong.reshape(len(labels), -1).any(1).int().argmax())
            label = int(labels[row][wrong[row]].max())
            task = f" of the task {name!r}" if name else ""
            raise StageError(
                f"sample {int(batch.ids[row])} of the split {split!r} has the label {label}{task}, but the model gives "
                f"{classes} classes, 0 to {classes - 1}; mend the labels, or let the model give more classes "
                f"({IGNORED} marks a missing label)"
            ) from error


def labelled(batches: Iterable[Batch]) -> bool:
    """Tell whether one of `batches` has labels; reading stops at the first that has."""
    return any(batch.labelled for batch in batches)


def labelled_tasks(batches: Iterable[Batch], wanted: Iterable[str]) -> set[str]:
    """Give the tasks among `wanted` that have labels in some batch; reading stops when all are found."""
    left, found = set(wanted), set[str]()
    for batch in batches:
        found |= left.intersection(batch.tasks)
        if found == left:
            break
    return found


def validation(
    workload: Workload, device: torch.device, batch_size: int, read: Callable[[Batch], Batch] = lambda batch: batch
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Make the `score` hook of a fit: `curves` of the validation split, with observers off.

    `read` gives the batch as the model reads it.
    """

    def score(model: nn.Module) -> Mapping[str, float]:
        with observers_off(model):
            return curves(model, workload, device, batch_size, read)

    return score


def curves(
    model: nn.Module,
    workload: Workload,
    device: torch.device,
    batch_size: int,
    read: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, float]:
    """Compute the mean loss over the labelled samples of the validation split and, for class labels, top-1.

    With several tasks, each task has its own top-1. `read` gives the batch as the model reads it.
    """
    loss, seen = 0.0, 0
    hits: dict[str, int] = {}
    classed: dict[str, int] = {}
    for given in workload.batches("validation", batch_size=batch_size):
        batch = to_device(read(given), device)
        if not batch.labelled:
            continue
        outputs, count = outputs_of(model, batch), len(batch.ids)
        check_names(outputs, batch)
        seen += count
        loss += loss_of(workload, outputs, batch, "validation").item() * count
        for name, (one, labels) in by_task(outputs, batch).items():
            if labels is not None and has_classes(one, labels):
                curve = f"validation/top1{'/' if name else ''}{name}"
                hits[curve] = hits.get(curve, 0) + int((one.argmax(1) == labels).sum())
                classed[curve] = classed.get(curve, 0) + int((labels >= 0).sum())
    values = {"validation/loss": loss / seen} if seen else {}
    return values | {curve: hits[curve] / classed[curve] for curve in hits if classed[curve]}


def check_names(outputs: Outputs, batch: Batch) -> None:
    """Refuse labels that match no output of the model.

    Raises:
        StageError: the names of the labels are not names of the outputs, or only one of both has names.
    """
    strange = sorted(set(batch.tasks) - set(outputs.tasks))
    if strange or (outputs.tasks and batch.targets is not None and not batch.tasks):
        gives = f"the tasks {listing(outputs.tasks)}" if outputs.tasks else "one output without a name"
        there = f"labels of {listing(batch.tasks)}" if strange else "labels without a name ('targets')"
        raise StageError(
            f"the model gives {gives}, but the workload's batches have {there}; put labels into `Batch.tasks` under "
            "the names of a model's dict, or let the model give one tensor and put them into `targets`"
        )


def by_task(outputs: Outputs, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Give logits and labels by task; a model with one output has them under the empty name."""
    if not outputs.tasks:
        return {"": (outputs.logits, batch.targets)}
    return {name: (logits, batch.tasks.get(name)) for name, logits in outputs.tasks.items()}


def has_classes(logits: Tensor, targets: Tensor) -> bool:
    """Tell whether each sample has logits of classes and one class as its label, so that an answer is right or wrong.

    One logit per sample is no choice between classes. A label below 0, such as -100, marks a sample without a label.
    """
    return logits.ndim == 2 and logits.shape[1] > 1 and targets.ndim == 1 and not targets.is_floating_point()


@contextlib.contextmanager
def observers_off(model: nn.Module) -> Iterator[None]:
    """Stop all fake-quantizers from observing while the body runs: its data must not change their ranges."""
    observing = [m for m in model.modules() if isinstance(m, FakeQuantize) and m.observing]
    for module in observing:
        module.observing = False
    try:
        yield
    finally:
        for module in observing:
            module.observing = True
