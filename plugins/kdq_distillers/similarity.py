"""Distiller `similarity`: samples that are alike to the teacher are alike to the student.

What: squared difference of the two models' similarity matrices of the batch, beside the workload's own loss on hard
    labels. The loss compares only products between samples, so the layers may differ in channels and positions.
Formula: Q `[B, n]` holds the features of one sample in each row, and G is Q Q^T with each row scaled to length 1.
    L = gamma * sum over the pairs of ||G_s - G_t||_F^2 / B^2 + hard_weight * L_hard. Rows shorter than 1e-6 count as
    zero.
Source: Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", arXiv:1907.09682, equations 1 to 4.
Defaults and where they come from: gamma 3000 and a hard weight of 1 are the paper's.
Costs: the teacher runs beside the student; one product `[B, n] [n, B]` for each layer and model.
Limits: the loss sees only the batch, so its value depends on the batch size; one sample gives zero. After a relu all
    products are positive and the matrices differ little, which is why gamma is large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs
from kdq_distillers.features import pairs, unit

if TYPE_CHECKING:
    from torch import Tensor


class Similarity(Distiller):
    """Similarity-preserving distillation (Tung and Mori 2019)."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"
    gamma: float = Field(default=3000.0, ge=0, le=1_000_000, description="weight of the difference, a sum over pairs")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def takes_top_k(self) -> bool:
        """True, because the loss reads no logits."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the soft term `similarity`, and `hard_weight` for the hard loss.

        Args:
            student: features `[B, ...]`, any shape.
            teacher: features of the same names, any shape.
            batch: not needed here.

        Raises:
            StageError: features are missing or not finite.
        """
        import torch

        found = [
            (similarities(ours) - similarities(theirs)).square().mean()
            for _, ours, theirs in pairs("similarity", student, teacher)
        ]
        return LossTerms(terms={"similarity": self.gamma * torch.stack(found).sum()}, hard_weight=self.hard_weight)


def similarities(features: Tensor) -> Tensor:
    """Products between samples, each row of length 1: `[B, ...]` gives `[B, B]`."""
    rows = features.flatten(1)
    return unit(rows @ rows.T)
