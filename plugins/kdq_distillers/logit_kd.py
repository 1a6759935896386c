"""Distiller `logit-kd`: the student follows the teacher's softened class probabilities.

What: Kullback-Leibler divergence between the class distributions of teacher and student at temperature T, beside the
    workload's own loss on hard labels. `standardize` first gives the logits of each sample mean 0 and standard
    deviation 1.
Formula: L = alpha * T^2 * mean over the batch of KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - alpha) * L_hard.
    The factor T^2 keeps the size of the soft gradient independent of T: for large T and logits of zero mean it tends to
    (z_s - z_t) / C for each sample, C the number of classes.
    Standardized: z becomes (z - mean z) / sqrt(mean (z - mean z)^2 + 1e-8), over the classes of each sample.
Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    Standardized: Sun et al. 2024, "Logit Standardization in Knowledge Distillation", arXiv:2403.01427. Their published
    code divides by the sample standard deviation (C - 1), a slightly higher temperature.
Defaults and where they come from: most of the follow-up literature compares itself with temperature 4 and alpha 0.9
    (for one Cho and Hariharan 2019, arXiv:1910.01348). The paper itself says that a considerably lower weight on the
    hard labels works best. `standardize` is off; with it, the code of Sun et al. takes a temperature of 2.
Costs: two log-softmaxes of `[B, C]` in float32, and one wait for the device to check that the teacher is finite.
Limits: single-label classification, and the same classes in the same order in teacher and student. The student also
    learns the teacher's mistakes. Standardized logits do not say how sure the teacher is: any two models of two classes
    that agree are equal, and so are all models of one class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Field
from kdq_distillers.logits import AlphaDistiller, divergence

if TYPE_CHECKING:
    from torch import Tensor

LEAST_VARIANCE = 1e-8


class LogitKd(AlphaDistiller):
    """Distillation from logits (Hinton et al. 2015)."""

    catalog_name: ClassVar[str] = "logit-kd"
    alpha: float = Field(default=0.9, ge=0, le=1, description="weight of the teacher; the labels get 1 - alpha")
    temperature: float = Field(default=4.0, ge=0.01, le=100, description="softens both distributions; 1 leaves them")
    standardize: bool = Field(default=False, description="give each sample's logits mean 0 and standard deviation 1")

    def takes_top_k(self) -> bool:
        """True unless logits are standardized, which needs all of them."""
        return not self.standardize

    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return `kd`, the divergence of the softened distributions."""
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        soft = soft_loss(student, teacher, self.temperature)
        return {"kd": self.alpha * soft}


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * mean over the batch of KL(softmax(teacher / T) || softmax(student / T))`, a scalar.

    Args:
        student: logits `[B, C]`.
        teacher: logits `[B, C]`.
        temperature: T.
    """
    log_p, log_q = ((z / temperature).log_softmax(dim=1) for z in (teacher, student))
    return temperature**2 * divergence(log_p, log_q)


def standardized(logits: Tensor) -> Tensor:
    """Give each row of `[B, C]` mean 0 and standard deviation 1; a row without variance becomes zeros."""
    import torch.nn.functional as F

    return F.layer_norm(logits, logits.shape[1:], eps=LEAST_VARIANCE)
