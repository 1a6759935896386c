"""Distiller `dist`: the student keeps the teacher's relations, not its exact probabilities.

What: correlates the class probabilities of student and teacher, over the classes of each sample (inter) and over the
    samples of the batch for each class (intra). The workload's own loss on hard labels is added.
Formula: p = softmax(z / T), `[B, C]`. With r the Pearson correlation,
    L = T^2 * (beta * mean over rows of (1 - r) + gamma * mean over columns of (1 - r)) + hard_weight * L_hard.
    1 - r is computed as half the squared distance of the two centred vectors of length 1. That is the same number
    without cancellation: equal models give exactly zero.
Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", arXiv:2205.10536, equations 8 and 9; T^2 as
    in their code.
Defaults and where they come from: beta 2, gamma 2, temperature 4 and a hard weight of 1 are the paper's for CIFAR-100;
    for ImageNet it takes temperature 1.
Costs: a few passes over `[B, C]` in float32, and one wait for the device to check that the teacher is finite.
Limits: single-label classification, and the same classes in the same order in teacher and student. The intra term sees
    only the batch, so its value depends on the batch size; in a batch of one sample it is zero. Vectors without spread
    (shorter than 1e-8 after centring) count as zero: 1 - r is 0 if both models have none, and 1/2 if one has. A student
    whose last layer starts at zero has no spread and gets a very large first gradient: use `clip_norm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Field
from kdq_distillers.logits import LogitDistiller

if TYPE_CHECKING:
    from torch import Tensor

LEAST_LENGTH = 1e-8


class Dist(LogitDistiller):
    """Distillation of relations between classes and between samples (Huang et al. 2022)."""

    catalog_name: ClassVar[str] = "dist"
    beta: float = Field(default=2.0, ge=0, le=1000, description="weight of the relations between classes")
    gamma: float = Field(default=2.0, ge=0, le=1000, description="weight of the relations between samples")
    temperature: float = Field(default=4.0, ge=0.01, le=100, description="softens both distributions; 1 leaves them")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def soft_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return `inter`, between classes, and `intra`, between samples."""
        q, p = (student / self.temperature).softmax(dim=1), (teacher / self.temperature).softmax(dim=1)
        scale = self.temperature**2
        return {
            "inter": self.beta * scale * unlike(q, p, dim=1),
            "intra": self.gamma * scale * unlike(q, p, dim=0),
        }

    def label_weight(self) -> float:
        """Return `hard_weight`."""
        return self.hard_weight


def unlike(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Mean of `1 - r`, a scalar; r is the Pearson correlation of two matrices `[B, C]` along `dim`."""
    ours, theirs = unit(student, dim), unit(teacher, dim)
    return (ours - theirs).square().sum(dim=dim).mean() / 2


def unit(values: Tensor, dim: int) -> Tensor:
    """Centre the values and scale them to length 1 along `dim`; without spread they become zero. The shape stays."""
    import torch.nn.functional as F

    return F.normalize(values - values.mean(dim=dim, keepdim=True), dim=dim, eps=LEAST_LENGTH)
