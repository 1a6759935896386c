"""Quantizer `power-of-two`: fixed point, for weights and activations.

What
    Every scale is a power of two, 2^-f with f fractional bits, so that rescaling is a shift. f comes from the range.
    Weights: one f per channel, from the current absolute maximum. Activations: one f per tensor, from a moving average
    of each batch's minimum and maximum. If values are never negative the zero point is qmin, an integer without a sign.
    Otherwise it is the middle, an integer with a sign.
Formula
    q = clamp(round(x * 2^f) + z, qmin, qmax), x' = (q - z) * 2^-f. `up`: 2^-f is the least power of two not below
    max|w| / qmax; for activations not below max(-min / (z - qmin), max / (qmax - z)). `nearest`: the power of two
    nearest to that by ratio, which clips by a factor of sqrt(2) at most.
    Straight-through gradient where nothing was clipped, else 0.
Source
    The training: Jacob et al. 2018, https://arxiv.org/abs/1712.05877. Powers of two: Jain et al. 2020, Trained
    Quantization Thresholds, https://arxiv.org/abs/1903.08066, section 3. They learn their thresholds; KDQ measures its
    ranges.
Defaults and where they come from
    rounding `up`: clips nothing at 8 bits, where a bit less of resolution costs little. averaging 0.05 as in
    `minmax-qat`.
Costs
    As `minmax-qat`. In ONNX Runtime the file is as fast as with any scale, because its kernels rescale in float. The
    gain there is exactness: sums and averages on such grids round the same halves in the simulation and in the file.
Limits
    Up to a bit of resolution is lost against a free scale; below 4 bits that is much. While ranges follow the data, a
    range that wavers about a power of two makes the step jump by a factor of 2. If batch norm is folded after training,
    the scales of weights are no longer powers of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class PowerOfTwo(Quantizer):
    """Training with scales that are powers of two."""

    rounding: Literal["up", "nearest"] = Field(
        default="up", description="how the scale becomes a power of two: up fits the range; nearest may clip it"
    )
    averaging: float = Field(
        default=0.05, gt=0, le=1, description="weight of the newest batch in an activation's range; 1 keeps no past"
    )

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a fixed-point fake-quantizer for `place`."""
        from kdq_quantizers.steps import PowerOfTwoFakeQuantize

        return PowerOfTwoFakeQuantize(place, rounding=self.rounding, averaging=self.averaging)
