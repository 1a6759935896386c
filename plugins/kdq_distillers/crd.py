"""Distiller `crd`: contrast: the student's feature of a sample is nearest to the teacher's feature of that sample.

What: of all teacher features in the batch, the student's feature has to pick the one of its own sample; beside the
    workload's own loss on hard labels. Maps and sequences are averaged over their positions. Where student and teacher
    differ in channels, a linear map of the student's is trained with it and thrown away afterwards.
Formula: with s_i and t_i the features of sample i brought to length 1,
    L = beta * sum over the pairs of mean over i of -log(exp(s_i t_i / tau) / sum over j of exp(s_i t_j / tau))
    + hard_weight * L_hard, j over i itself and its negatives: the samples of another class, or all others where the
    batch has no class labels.
Source: Tian, Krishnan and Isola 2020, "Contrastive Representation Distillation", arXiv:1910.10699. They draw 16384
    negatives of other classes from a memory of the whole data set and embed both models in 128 dimensions; here the
    negatives are those in the batch, the loss is that of van den Oord et al. 2018, arXiv:1807.03748, and the student is
    mapped into the teacher's own space, so that nothing beside the weights has to be kept.
Defaults and where they come from: tau 0.07 and beta 0.8 as in their code. A hard weight of 1 as in the paper.
Costs: the teacher runs beside the student; one product `[B, C] [C, B]` for each pair.
Limits: a small batch has few negatives and teaches little: 256 samples or more are usual with in-batch negatives. Equal
    models do not give zero: the loss is zero only where the teacher's own features are infinitely far apart in units of
    tau. The class says so (`zero_for_equal_models = False`). One sample, or one class, gives zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, Shapes, StageError
from kdq_distillers.features import channel_maps, pairs, pooled, unit

if TYPE_CHECKING:
    from torch import Tensor, nn


class Crd(Distiller):
    """Contrastive distillation with the negatives of the batch (Tian et al. 2020)."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"
    zero_for_equal_models: ClassVar[bool] = False
    beta: float = Field(default=0.8, ge=0, le=1000, description="weight of the contrast, a sum over pairs")
    tau: float = Field(default=0.07, ge=0.001, le=10, description="temperature of the similarities")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def projectors(self, student: Shapes, teacher: Shapes) -> Mapping[str, nn.Module]:
        """A linear map of channels for each pair whose channels differ."""
        return channel_maps(student, teacher)

    def takes_top_k(self) -> bool:
        """It looks at no logits."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
        """The soft term `contrast`, and `hard_weight` for the hard loss.

        Args:
            student: features, projected to the teacher's channels.
            teacher: features of the same names and channels.
            batch: class numbers `[B]` tell which samples are negatives; without them all others are.

        Raises:
            StageError: features are missing, not finite, or of different channels.
        """
        import torch

        found = []
        for name, ours, theirs in pairs("crd", student, teacher):
            mine, wanted = pooled(ours), pooled(theirs)
            if mine.shape != wanted.shape:
                raise StageError(
                    f"distiller 'crd' compares features of the same channels, but for the pair {name!r} the student "
                    f"has {mine.shape[1]} and the teacher {wanted.shape[1]}; its projectors map one to the other"
                )
            found.append(contrast(unit(mine), unit(wanted), self.tau, same_class(batch)))
        return LossTerms(terms={"contrast": self.beta * torch.stack(found).sum()}, hard_weight=self.hard_weight)


def contrast(student: Tensor, teacher: Tensor, tau: float, same: Tensor | None) -> Tensor:
    """Mean of `-log softmax(s_i t / tau)[i]` over the samples.

    Args:
        student: vectors of length 1, `[B, C]`.
        teacher: vectors of length 1, `[B, C]`.
        tau: temperature.
        same: bools `[B, B]`, true for samples that are no negatives of each other; the diagonal counts in any case.
    """
    import torch
    import torch.nn.functional as F

    likeness = student @ teacher.T / tau
    own = torch.arange(len(student), device=student.device)
    if same is not None:
        others = same & (own[:, None] != own)
        likeness = likeness.masked_fill(others, -torch.inf)
    return F.cross_entropy(likeness, own)


def same_class(batch: Batch) -> Tensor | None:
    """Which samples `[B, B]` have one class, or `None` where the batch has no class numbers; below 0 is no class."""
    labels = batch.targets
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return None
    return (labels[:, None] == labels) & (labels >= 0)
