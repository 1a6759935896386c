"""Quantizer `dorefa`: weights through tanh before rounding, activations clipped to a range that stands still.

What
    The tanh draws large weights in, so that few outliers leave steps to the many. Weights have 2^b levels on both sides
    of zero and none at zero; activations have a fixed range. Only the weights learn.
Formula
    w' = tanh(w) * m / tanh(m), m = max|w| of the channel; r = round((w' / m + 1) / 2 * n), n = 2^b - 1;
    integer 2 r - n, scale m / n. The gradient passes rounding straight through and takes tanh as it is; m is taken as
    a constant. With 8 bits (and 7 where kernels take 7-bit weights) integers to n do not fit int8: then the integer is
    round(w' / m * qmax), the scale m / qmax. Activations: clamp to [low, high], then min-max rounding.
Source
    Zhou et al. 2016, DoReFa-Net, https://arxiv.org/abs/1606.06160, sections 2.3 and 2.4. Adapted: the paper's weights
    lie in [-1, 1], which batch norm makes up for when a net is trained from scratch; here a trained net comes in, and
    layers without batch norm too, so each channel keeps its own range. The paper's activations are clipped to [0, 1];
    behind batch norm they are not of that size, so the range is the one with the least squared error over the
    calibration batches, for signed tensors too. Gradients are not quantized.
Defaults
    No options.
Costs
    A tanh for each weight and its gradient; activations cost as `minmax-qat` does, and nothing is observed after
    calibration.
Limits
    Activation ranges never move again: where weights change much, `lsq` or `pact` follow and this does not. With few
    bits a weight cannot be zero. Without calibration batches the first batch sets the ranges. A weight that is rounded
    already goes through tanh once more, and may come to another level: the class says so (`idempotent = False`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class DoReFa(Quantizer):
    """Training with tanh weights and fixed activation ranges."""

    idempotent: ClassVar[bool] = False

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """A tanh rounding for a weight, a calibrated range for an activation."""
        from kdq_quantizers.calibrated import FixedScale
        from kdq_quantizers.tanh import TanhFakeQuantize

        return TanhFakeQuantize(place) if place.role == "weight" else FixedScale(place)
