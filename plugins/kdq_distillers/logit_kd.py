"""Distiller `logit-kd`: the student follows the teacher's softened class probabilities.

What: Kullback-Leibler divergence between the class distributions of teacher and student at temperature T, beside the
    workload's own loss on hard labels.
Formula: L = alpha * T^2 * mean over the batch of KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) * L_hard.
    The factor T^2 keeps the size of the soft gradient independent of T: for large T and logits of zero mean it tends to
    (z_s - z_t) / C for each sample, C the number of classes.
Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
Defaults and where they come from: temperature 4 and alpha 0.9 are the setting most of the follow-up literature compares
    itself with (for one Cho and Hariharan 2019, arXiv:1910.01348); the paper itself says that a considerably lower
    weight on the hard labels works best.
Costs: two log-softmaxes of `[B, C]` in float32, and one wait for the device to see that the teacher is finite.
Limits: single-label classification, and the same classes in the same order in teacher and student. What the teacher has
    learned wrongly is taught too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, StageError

if TYPE_CHECKING:
    from torch import Tensor


class LogitKd(Distiller):
    """Distillation from logits (Hinton et al. 2015)."""

    alpha: float = Field(default=0.9, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")
    temperature: float = Field(default=4.0, ge=0.01, le=100, description="softens both distributions; 1 leaves them")

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """The soft term `kd`, and `1 - alpha` for the hard loss.

        Args:
            student: logits `[B, C]`, any floating type.
            teacher: logits `[B, C]`, any floating type.
            batch: not needed here.

        Raises:
            StageError: the shapes differ, or the teacher's logits are not finite.
        """
        check(student.logits, teacher.logits)
        soft = soft_loss(student.logits, teacher.logits.detach(), self.temperature)
        return LossTerms(terms={"kd": self.alpha * soft}, hard_weight=1 - self.alpha)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * mean over the batch of KL(softmax(teacher / T) || softmax(student / T))`, a float32 scalar.

    Args:
        student: logits `[B, C]`.
        teacher: logits `[B, C]`.
        temperature: T.
    """
    log_q = (student.float() / temperature).log_softmax(dim=-1)
    log_p = (teacher.float() / temperature).log_softmax(dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum() / len(student)


def check(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that cannot be compared.

    Raises:
        StageError: the shapes differ, or the teacher's logits are not finite.
    """
    if student.shape != teacher.shape:
        raise StageError(
            f"distiller 'logit-kd' compares logits of one shape, but the student's are {tuple(student.shape)} and the "
            f"teacher's {tuple(teacher.shape)}; give both models the same classes and the same batch"
        )
    if not teacher.isfinite().all():
        wrong = int((~teacher.isfinite()).sum())
        raise StageError(
            f"distiller 'logit-kd' needs finite teacher logits, but {wrong} of {teacher.numel()} are NaN or infinite; "
            "train the teacher with a lower learning rate or with 'clip_norm'"
        )
