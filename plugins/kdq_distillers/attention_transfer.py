"""Distiller `attention-transfer`: the student looks where the teacher looks.

What: compares attention maps of hidden layers. An attention map says how strong a layer's activations are at each
    position, over all channels. The loss is the squared difference of the maps, beside the workload's own loss on hard
    labels. It needs no projector, because student and teacher may differ in channels.
Formula: a(f) = vec(mean over channels of |f|^p), q = a / ||a||_2, and
    L = beta * sum over the pairs of mean over samples and positions of (q_s - q_t)^2 + hard_weight * L_hard.
    Maps of different sizes are averaged to the smaller one first. The scale of the features does not matter. A map of
    zeros stays zero.
Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer", arXiv:1612.03928, section 3.1; mean and square as in their code.
Defaults and where they come from: p 2 and beta 1000 are theirs. The hard weight of 1 is the paper's.
Costs: the teacher runs beside the student; one pass over each tapped layer.
Limits: the layers need positions: maps `[B, C, H, W]`, or sequences `[B, L, C]` of one length. A pair of vectors
    `[B, C]` has no positions and adds nothing; if all pairs are vectors, that is an error. The loss compares how strong
    the activations at a position are, not what they represent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Distiller, Field, LossTerms, Outputs, StageError
from kdq_distillers.features import channels_last, pairs, same_places, unit

if TYPE_CHECKING:
    from torch import Tensor


class AttentionTransfer(Distiller):
    """Attention maps of hidden layers (Zagoruyko and Komodakis 2017)."""

    features: ClassVar[Literal["none", "pairs"]] = "pairs"
    beta: float = Field(default=1000.0, ge=0, le=1_000_000, description="weight of the difference, a sum over pairs")
    power: float = Field(default=2.0, ge=1, le=8, description="p: the larger, the more the strongest activations count")
    hard_weight: float = Field(default=1.0, ge=0, le=1000, description="weight of the labels")

    def takes_top_k(self) -> bool:
        """True, because the loss reads no logits."""
        return True

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:  # noqa: ARG002 - the kind's signature
        """Return the soft term `attention`, and `hard_weight` for the hard loss.

        Args:
            student: features with positions, any channels.
            teacher: features of the same names and positions.
            batch: not needed here.

        Raises:
            StageError: features are missing or not finite, their positions differ, or none has positions.
        """
        import torch

        found = []
        for name, ours, theirs in pairs("attention-transfer", student, teacher):
            if ours.ndim > 2 and theirs.ndim > 2:
                maps = [attention(f, self.power) for f in same_places(ours, theirs)]
                if maps[0].shape != maps[1].shape:
                    raise StageError(
                        f"distiller 'attention-transfer' cannot compare the pair {name!r}: the student's features are "
                        f"{tuple(ours.shape)} and the teacher's {tuple(theirs.shape)}; tap layers with the same "
                        "positions"
                    )
                found.append((maps[0] - maps[1]).square().mean())
        if not found:
            raise StageError(
                "distiller 'attention-transfer' needs features with positions, but all pairs are vectors "
                f"({', '.join(student.features)}); tap layers of maps [B, C, H, W] or sequences [B, L, C]"
            )
        return LossTerms(terms={"attention": self.beta * torch.stack(found).sum()}, hard_weight=self.hard_weight)


def attention(features: Tensor, power: float) -> Tensor:
    """The attention map of each sample as a vector of length 1, `[B, positions]`.

    The map does not depend on the scale of a sample's features. They are divided by their largest value before the
    power, so that tiny features do not vanish and large ones do not overflow.
    """
    import torch

    strength = channels_last(features).abs()
    largest = strength.detach().amax(dim=(1, 2), keepdim=True)
    shares = strength / largest.clamp(min=torch.finfo(strength.dtype).tiny)
    return unit(shares.pow(power).mean(dim=2))
