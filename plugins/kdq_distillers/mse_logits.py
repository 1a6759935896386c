"""Distiller `mse-logits`: the student reproduces the teacher's logits or probabilities.

What: squared difference of logits or of class probabilities, beside the workload's own loss on hard labels.
Formula: L = alpha * mean over the batch of (sum over the classes of (y_s - y_t)^2) + (1 - alpha) * L_hard, with y = z
    for `on: logits` and y = softmax(z) for `on: probabilities`. The sum over the classes is not divided by their
    number: [.9, .1, 0] and [.8, .2, .1] give .03, [.9, .1, 0] and [.6, .3, .1] give .14.
Source: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", arXiv:1312.6184 (without its factor 1/2).
    Kim et al. 2021, "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation", arXiv:2105.08919, compare it with `logit-kd`. On probabilities it is the Brier score, Brier 1950.
Defaults and where they come from: `on: logits` as in both papers. alpha 0.5, an equal share, is our own; Ba and
    Caruana have no hard loss at all (alpha 1).
Costs: one pass over `[B, C]` in float32, and one wait for the device to check that the teacher is finite.
Limits: the same classes in the same order in teacher and student. On logits the loss grows with the number of classes
    and with the square of the teacher's logits, so many classes may need a smaller alpha. A constant added to all
    logits of a sample changes no answer, but it changes this loss. On probabilities the gradient vanishes where the
    student is sure but wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Field
from kdq_distillers.logits import AlphaDistiller

if TYPE_CHECKING:
    from torch import Tensor


class MseLogits(AlphaDistiller):
    """Regression on the teacher's outputs (Ba and Caruana 2014)."""

    catalog_name: ClassVar[str] = "mse-logits"
    on: Literal["logits", "probabilities"] = Field(
        default="logits", description="what is compared: outputs of the last layer, or their softmax"
    )

    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return `mse`, the squared difference summed over the classes."""
        if self.on == "probabilities":
            student, teacher = student.softmax(dim=1), teacher.softmax(dim=1)
        soft = (student - teacher).square().sum() / len(student)
        return {"mse": self.alpha * soft}
