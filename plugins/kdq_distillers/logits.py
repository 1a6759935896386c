"""Base classes, checks and the divergence that the distillers on logits share."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, StageError

if TYPE_CHECKING:
    from torch import Tensor


class LogitDistiller(Distiller, abc.ABC):
    """A loss that compares logits `[B, C]` of both models and reads nothing else."""

    catalog_name: ClassVar[str]
    """The distiller's name in recipes, for messages."""

    @abc.abstractmethod
    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the soft terms by name, each a scalar multiplied by its weight.

        Args:
            student: logits `[B, C]`, float32.
            teacher: logits `[B, C]`, float32, finite and without gradient.
        """

    @abc.abstractmethod
    def label_weight(self) -> float:
        """Return the weight of the hard loss beside the soft terms."""

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the soft terms and the weight of the hard loss.

        Args:
            student: logits `[B, C]`, any floating type.
            teacher: logits `[B, C]`, any floating type.
            batch: not needed here.

        Raises:
            StageError: the shapes differ, or the teacher's logits are not finite.
        """
        ours, theirs = comparable(self.catalog_name, student, teacher)
        return LossTerms(terms=self.soft_terms(ours, theirs), hard_weight=self.label_weight())


class AlphaDistiller(LogitDistiller, abc.ABC):
    """A loss on logits: the teacher has weight `alpha`, which `soft_terms` applies, the labels have `1 - alpha`."""

    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")

    def label_weight(self) -> float:
        """Return `1 - alpha`."""
        return 1 - self.alpha


def comparable(name: str, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Check the logits of both models and return them in float32, the teacher's without gradient.

    Args:
        name: of the distiller, for messages.
        student: logits `[B, C]`, any floating type.
        teacher: logits `[B, C]`, any floating type.

    Returns:
        Logits `[B, C]` of the student, and of the teacher.

    Raises:
        StageError: the shapes differ or are not `[B, C]`, or the teacher's logits are not finite.
    """
    ours, theirs = student.logits, teacher.logits.detach()
    if ours.shape != theirs.shape:
        raise StageError(
            f"distiller {name!r} compares logits of one shape, but the student's are {tuple(ours.shape)} and the "
            f"teacher's {tuple(theirs.shape)}; give both models the same classes and the same batch"
        )
    if ours.ndim != 2:
        raise StageError(
            f"distiller {name!r} needs logits [samples, classes], but those of student and teacher are "
            f"{tuple(ours.shape)}; give one row of logits a sample"
        )
    if not theirs.isfinite().all():
        wrong = int((~theirs.isfinite()).sum())
        raise StageError(
            f"distiller {name!r} needs finite teacher logits, but {wrong} of {theirs.numel()} are NaN or infinite; "
            "train the teacher with a lower learning rate or with 'clip_norm', or check the file it was read from"
        )
    return ours.float(), theirs.float()


def class_labels(name: str, batch: Batch, logits: Tensor) -> Tensor:
    """Check the labels of the batch and return one class number per sample.

    Args:
        name: of the distiller, for messages.
        batch: one class number per sample.
        logits: `[B, C]`; their shape gives the number of samples and of classes.

    Returns:
        int64 `[B]`, each from 0 to C - 1.

    Raises:
        StageError: the batch has no labels, or they are not one class number per sample.
    """
    samples, classes = logits.shape
    labels, instead = batch.targets, "use a distiller that needs none, such as 'logit-kd'"
    if labels is None:
        raise StageError(
            f"distiller {name!r} needs a label for each sample, but the batch of {samples} samples has none; "
            f"label the data, or {instead}"
        )
    if labels.shape != (samples,) or labels.is_floating_point():
        raise StageError(
            f"distiller {name!r} needs one class number a sample, shape ({samples},), but the labels have shape "
            f"{tuple(labels.shape)} and type {str(labels.dtype).removeprefix('torch.')}; {instead}"
        )
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= classes:
        raise StageError(
            f"distiller {name!r} needs labels from 0 to {classes - 1}, because the models give {classes} logits, but "
            f"the labels go from {low} to {high}; correct the workload's labels, or {instead}"
        )
    return labels.long()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each sample, as the mean over the batch: `sum of p * (log p - log q) / B`.

    It sums over all axes but the batch, and returns a scalar.

    Args:
        log_p: logarithms of the teacher's probabilities, `[B, ...]`.
        log_q: logarithms of the student's, the same shape.
    """
    return (log_p.exp() * (log_p - log_q)).sum() / len(log_p)


def others(logits: Tensor, index: Tensor) -> Tensor:
    """Leave one entry out of each row.

    Args:
        logits: `[B, C]`.
        index: int64 `[B]`, the entry to leave out.

    Returns:
        `[B, C - 1]`, in the order of the classes.
    """
    import torch

    kept = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, kept + (kept >= index[:, None]))


def nothing(logits: Tensor) -> Tensor:
    """A loss of zero with a gradient of zero, for a batch with nothing to compare."""
    return 0 * logits.sum()
