"""Distiller `fitnet`: hidden layers of the student reproduce those of the teacher (hints).

What: mean squared difference between hidden layers of student and teacher, beside the workload's own loss on hard
    labels. If the two differ in channels, KDQ trains a linear map of the student's channels with the student and throws
    it away afterwards. The map is a 1x1 convolution, or a linear layer for sequences and vectors.
Formula: L = beta * sum over the pairs of mean over all elements of (r(f_s) - f_t)^2 + hard_weight * L_hard, with
    r the projector, or the identity where the shapes agree. Maps of different sizes are averaged to the smaller one.
Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, equation 3. They sum, with the factor
    1/2; the mean makes the size of the loss independent of the layer's size. They train on hints first and on labels
    afterwards; one joint loss, and the 1x1 regressor, are those of Tian et al. 2020, arXiv:1910.10699. A schedule on
    `weight` comes near to the two steps: {schedule: linear, start: 1, end: 0}.
Defaults and where they come from: beta 1 and a hard weight of 1 are our own. Tian et al. take beta 100 with a mean for
    CIFAR-100; a good value depends on the size of the teacher's features.
Costs: the teacher runs beside the student; one 1x1 convolution forward and backward for each pair that needs it.
Limits: features are compared as they are: a teacher with large activations gives a large loss. A position must mean the
    same in student and teacher: both models see images cropped alike and tokens split alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, Shapes, StageError
from kdq_distillers.features import channel_maps, pairs, same_places

if TYPE_CHECKING:
    from torch import Tensor, nn


class Fitnet(Distiller):
    """Hints from hidden layers (Romero et al. 2015)."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"
    beta: float = Field(default=1.0, ge=0, le=100_000, description="weight of the difference, a sum over pairs")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def projectors(self, student: Shapes, teacher: Shapes) -> Mapping[str, nn.Module]:
        """Return a linear map of channels for each pair whose channels differ."""
        return channel_maps(student, teacher)

    def takes_top_k(self) -> bool:
        """True, because the loss reads no logits."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the soft term `hint`, and `hard_weight` for the hard loss.

        Args:
            student: features, projected to the teacher's channels.
            teacher: features of the same names and dimensions.
            batch: not needed here.

        Raises:
            StageError: features are missing or not finite, or their shapes cannot be compared.
        """
        import torch

        found = []
        for name, given, wanted in pairs("fitnet", student, teacher):
            ours, theirs = same_places(given, wanted)
            if ours.shape != theirs.shape:
                raise StageError(f"distiller 'fitnet' cannot compare the pair {name!r}: {_unlike(given, wanted)}")
            found.append((ours - theirs).square().mean())
        return LossTerms(terms={"hint": self.beta * torch.stack(found).sum()}, hard_weight=self.hard_weight)


def _unlike(given: Tensor, wanted: Tensor) -> str:
    """Say what differs and what to do. It names no channels: the student's are those after the projector."""
    ours, theirs = _positions(given), _positions(wanted)
    if ours != theirs:
        maps = " (of features `[B, C, L]`, as 1-d convolutions give them, C is taken for the positions)"
        theirs += maps if given.ndim == 3 else ""
        return f"the student's features are at {ours}, the teacher's at {theirs}; tap layers with the same positions"
    return (
        f"the student's features have the shape {tuple(given.shape)}, the teacher's {tuple(wanted.shape)}; let them go "
        "through the module that projectors() gives for the pair"
    )


def _positions(features: Tensor) -> str:
    if features.ndim == 2:
        return "none (one vector a sample)"
    sizes = features.shape[1:2] if features.ndim == 3 else features.shape[2:]
    return f"{'x'.join(map(str, sizes))} positions"
