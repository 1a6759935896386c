"""Quantizer `minmax-qat`: quantization-aware training with ranges from the least and largest value seen.

What
    Every place rounds to its grid in the forward pass, and the gradient passes straight through where nothing was
    clipped. Weights: symmetric, one scale per channel, from the current absolute maximum. Activations: affine, one
    scale per tensor, from a moving average of each batch's minimum and maximum; zero is always on the grid.
Formula
    q = clamp(round(x / s) + z, qmin, qmax), x' = (q - z) * s. Weights: s = max|w| / qmax, z = 0. Activations:
    s = (max - min) / (qmax - qmin), z = qmin - round(min / s), with min <= 0 <= max; after each batch
    min <- min + averaging * (batch min - min), max alike; the first batch sets both.
Source
    Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    https://arxiv.org/abs/1712.05877, sections 2.1 and 3. Straight-through gradient: Bengio et al. 2013,
    https://arxiv.org/abs/1308.3432.
Defaults
    averaging 0.05: the range forgets half of its past in 14 batches, so that a fine-tuning of some tens of batches is
    enough. The paper's smoothing near 1 assumes thousands of steps.
Costs
    Four vectorised operations forward and one backward per place, and one pass for minimum and maximum while observing.
    On CUDA each step reads the clipping bounds back to the host.
Limits
    One outlier widens a range for some batches. Below 4 bits learned steps (`lsq`) keep more quality. 2-bit weights use
    three of their four levels: -1, 0 and 1. Weights that grow after their ranges are frozen are clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class MinMaxQat(Quantizer):
    """Training with min-max ranges."""

    averaging: float = Field(
        default=0.05, gt=0, le=1, description="weight of the newest batch in an activation's range; 1 keeps no past"
    )

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a min-max fake-quantizer for `place`."""
        from kdq_core.api import MinMaxFakeQuantize

        return MinMaxFakeQuantize(place, averaging=self.averaging)
