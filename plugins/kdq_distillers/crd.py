"""Distiller `crd`: the student's feature of a sample is nearest to the teacher's feature of the same sample.

What: contrastive distillation. Among all teacher features in the batch, the student's feature has to pick the one of
    its own sample. The workload's own loss on hard labels is added. Maps and sequences are averaged over their
    positions. If student and teacher differ in channels, KDQ trains a linear map of the student's features with it and
    throws the map away afterwards.
Formula: with s_i and t_i the features of sample i scaled to length 1,
    L = beta * sum over the pairs of mean over i of -log(exp(s_i t_i / tau) / sum over j of exp(s_i t_j / tau))
    + hard_weight * L_hard. Here j runs over i itself and its negatives. The negatives are the samples of another class,
    or all others if the batch has no class labels.
Source: Tian, Krishnan and Isola 2020, "Contrastive Representation Distillation", arXiv:1910.10699. They draw 16384
    negatives of other classes from a memory of the whole data set, and embed both models in 128 dimensions. KDQ takes
    the negatives from the batch, with the loss of van den Oord et al. 2018, arXiv:1807.03748. It maps the student into
    the teacher's own space, so that it has to keep nothing beside the weights.
Defaults and where they come from: tau 0.07 and beta 0.8 as in their code. The hard weight of 1 is the paper's.
Costs: the teacher runs beside the student; one product `[B, C] [C, B]` for each pair.
Limits: a small batch has few negatives and teaches little; 256 samples or more are usual with in-batch negatives. Equal
    models do not give zero: the loss is zero only if the teacher's own features are infinitely far apart in units of
    tau. The class says so (`zero_for_equal_models = False`). A batch of one sample, or of one class, gives zero.
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
        """Return a linear map of channels for each pair whose channels differ."""
        return channel_maps(student, teacher)

    def takes_top_k(self) -> bool:
        """True, because the loss reads no logits."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
        """Return the soft term `contrast`, and `hard_weight` for the hard loss.

        Args:
            student: features, projected to the teacher's channels.
            teacher: features of the same names and channels.
            batch: class numbers `[B]` say which samples are negatives; without them all other samples are.

        Raises:
            StageError: features are missing or not finite, or their channels differ.
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
        same: bools `[B, B]`, true for two samples that are not negatives of each other; the diagonal always counts.
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
    """Say which samples share a class: bools `[B, B]`, or `None` if the batch has no class numbers.

    A number below 0 is no class.
    """
    labels = batch.targets
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        return None
    return (labels[:, None] == labels) & (labels >= 0)
