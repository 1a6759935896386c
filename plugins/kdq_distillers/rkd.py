"""Distiller `rkd`: the student keeps the teacher's distances and angles between samples.

What: compares where each sample lies among the others of the batch. The loss is Huber's, between the teacher's and the
    student's distances of all pairs of samples, and between the angles of all triples. The workload's own loss on hard
    labels is added. Features may have any width; maps and sequences are averaged over their positions.
Formula: with x_i the feature of sample i, d_ij = ||x_i - x_j|| / (mean of ||x_i - x_j|| over i != j) and
    cos_ijk = <e_ij, e_kj>, e_ij = (x_i - x_j) / ||x_i - x_j||,
    L = sum over the pairs of layers of (distance * mean over i != j of h(d_ij of student - that of teacher)
    + angle * mean over distinct i, j, k of h(cos_ijk of student - that of teacher)) + hard_weight * L_hard,
    with h(x) = x^2 / 2 up to 1 and |x| - 1/2 beyond. Samples nearer than 1e-6 count as one.
Source: Park et al. 2019, "Relational Knowledge Distillation", arXiv:1904.05068, equations 3 to 9. Their code includes
    i = j in the mean; those terms are always zero, and KDQ leaves them out.
Defaults and where they come from: 25 for distances and 50 for angles, as in the code of Tian et al. 2020
    (arXiv:1910.10699). A hard weight of 1 is our own.
Costs: the teacher runs beside the student; differences `[B, B, C]` and angles `[B, B, B]` of both models in float32.
    For 256 samples and 512 channels these take 134 MB and 67 MB.
Limits: the loss sees only the batch, so its value depends on the batch size. A batch of one sample has no distances,
    one of two has no angles; the term is then zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs
from kdq_distillers.features import LEAST_SQUARE, pairs, pooled, unit

if TYPE_CHECKING:
    from torch import Tensor


class Rkd(Distiller):
    """Relational distillation (Park et al. 2019)."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"
    distance: float = Field(default=25.0, ge=0, le=100_000, description="weight of the distances between samples")
    angle: float = Field(default=50.0, ge=0, le=100_000, description="weight of the angles of three samples")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def takes_top_k(self) -> bool:
        """True, because the loss reads no logits."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the soft terms `distance` and `angle`, and `hard_weight` for the hard loss.

        Args:
            student: features `[B, ...]`, any width.
            teacher: features of the same names, any width.
            batch: not needed here.

        Raises:
            StageError: features are missing or not finite.
        """
        import torch

        far, wide = [], []
        for _, ours, theirs in pairs("rkd", student, teacher):
            mine, wanted = pooled(ours), pooled(theirs)
            far.append(huber(distances(mine) - distances(wanted)))
            wide.append(huber(angles(mine) - angles(wanted)))
        terms = {"distance": self.distance * torch.stack(far).sum(), "angle": self.angle * torch.stack(wide).sum()}
        return LossTerms(terms=terms, hard_weight=self.hard_weight)


def distances(vectors: Tensor) -> Tensor:
    """Distances of all pairs i != j, divided by their mean: `[B, C]` gives `[B * (B - 1)]`."""
    import torch

    square = (vectors[:, None] - vectors[None]).square().sum(dim=2)[_distinct(vectors)]
    apart = square > LEAST_SQUARE
    found = torch.where(apart, square.clamp(min=LEAST_SQUARE).sqrt(), torch.zeros_like(square))
    return found / found.mean().clamp(min=LEAST_SQUARE) if len(found) else found


def angles(vectors: Tensor) -> Tensor:
    """Cosines of the angle at j between i and k, all distinct: `[B, C]` gives `[B * (B - 1) * (B - 2)]`."""
    towards = unit(vectors[None] - vectors[:, None])  # [j, i, C]
    apart = _distinct(vectors)
    triples = apart[:, :, None] & apart[:, None, :] & apart[None]
    return (towards @ towards.transpose(1, 2))[triples]


def huber(gap: Tensor) -> Tensor:
    """Mean of Huber's loss with its bend at 1; zero if there are no values."""
    import torch.nn.functional as F

    return F.smooth_l1_loss(gap, gap.new_zeros(()).expand_as(gap)) if gap.numel() else gap.sum()


def _distinct(vectors: Tensor) -> Tensor:
    """Bools `[B, B]`, false on the diagonal."""
    import torch

    return ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
