"""Distiller `dkd`: decoupled knowledge distillation, with separate weights for the true class and the others.

What: two divergences between teacher and student at temperature T: of the true class against all others together
    (TCKD), and among the other classes (NCKD). The workload's own loss on hard labels is added.
Formula: L = T^2 * mean over the batch of (alpha * TCKD + beta * NCKD) + hard_weight * L_hard, where p = softmax(z / T),
    y the label, TCKD = KL([p_y, 1 - p_y] of teacher || student), and NCKD = KL(softmax over the classes other than y of
    z_t / T || the same of z_s / T). Hinton's loss is TCKD + (1 - p_y of the teacher) * NCKD: there, NCKD fades on the
    very samples the teacher knows best.
Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", arXiv:2203.08679; T^2 as in their code.
Defaults and where they come from: alpha 1, beta 8, temperature 4 and a hard weight of 1 are the defaults of the
    authors' code (mdistiller). The authors let the soft terms grow over the first 20 epochs; here they are constant.
Costs: two log-softmaxes of `[B, C]` in float32 for each model, and two waits for the device to check that the teacher
    is finite and that the labels are classes.
Limits: single-label classification, the same classes in the same order in teacher and student, and a label for every
    sample: an unlabelled batch is an error. Two classes have no NCKD; one class gives zero. A large beta suits a
    teacher that is very sure. If the loss is unsteady, lower beta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs
from kdq_distillers.logits import class_labels, comparable, divergence, nothing, others

if TYPE_CHECKING:
    from torch import Tensor


class Dkd(Distiller):
    """Decoupled knowledge distillation (Zhao et al. 2022)."""

    needs_labels: ClassVar[bool] = True
    alpha: float = Field(default=1.0, ge=0, le=1000, description="weight of the true class against the others")
    beta: float = Field(default=8.0, ge=0, le=1000, description="weight of the distribution among the other classes")
    temperature: float = Field(default=4.0, ge=0.01, le=100, description="softens all distributions; 1 leaves them")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def takes_top_k(self) -> bool:
        """True, because the loss compares softmax distributions."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
        """Return the soft terms `tckd` and `nckd`, and `hard_weight` for the hard loss.

        Args:
            student: logits `[B, C]`, any floating type.
            teacher: logits `[B, C]`, any floating type.
            batch: labels `[B]`.

        Raises:
            StageError: the shapes differ, the teacher's logits are not finite, or labels are missing or wrong.
        """
        ours, theirs = comparable("dkd", student, teacher)
        labels = class_labels("dkd", batch, ours)
        target, rest = decoupled(ours / self.temperature, theirs / self.temperature, labels)
        scale = self.temperature**2
        terms = {"tckd": self.alpha * scale * target, "nckd": self.beta * scale * rest}
        return LossTerms(terms=terms, hard_weight=self.hard_weight)


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each a mean over the batch.

    Args:
        student: logits over temperature, `[B, C]`.
        teacher: logits over temperature, `[B, C]`.
        labels: int64 `[B]`.
    """
    if student.shape[1] == 1:
        return nothing(student), nothing(student)
    target = divergence(log_target_and_rest(teacher, labels), log_target_and_rest(student, labels))
    log_p, log_q = (others(z, labels).log_softmax(dim=1) for z in (teacher, student))
    return target, divergence(log_p, log_q)


def log_target_and_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Logarithms `[B, 2]` of the probability of the label, and of all other classes together."""
    import torch

    target = logits.gather(1, labels[:, None]).squeeze(1)
    return torch.stack((target, others(logits, labels).logsumexp(dim=1)), dim=1).log_softmax(dim=1)
