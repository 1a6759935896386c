"""Quantizer `dorefa`: weights through tanh before rounding, activations clipped to a fixed range.

What
    The tanh draws large weights in, so that few outliers leave more steps to the many other weights. Weights have 2^b
    levels on both sides of zero and none at zero. Activations have a fixed range. Training changes only the weights.
Formula
    w' = tanh(w) * m / tanh(m), m = max|w| of the channel; r = round((w' / m + 1) / 2 * n), n = 2^b - 1;
    integer 2 r - n, scale m / n. The gradient passes rounding straight through and includes the derivative of tanh; it
    treats m as a constant. With 8 bits (and 7 where kernels take 7-bit weights) integers up to n do not fit int8. Then
    the integer is round(w' / m * qmax), the scale m / qmax. Activations: clamp to [low, high], then min-max rounding.
Source
    Zhou et al. 2016, DoReFa-Net, https://arxiv.org/abs/1606.06160, sections 2.3 and 2.4, with three changes. The
    paper's weights lie in [-1, 1], which batch norm makes up for when a net is trained from scratch. KDQ starts from a
    trained net, which may have layers without batch norm, so each channel keeps its own range. The paper clips
    activations to [0, 1], but after batch norm they are not of that size. KDQ clips to the range with the least squared
    error over the calibration batches, for signed tensors too. It does not quantize gradients.
Defaults
    No options.
Costs
    A tanh for each weight and its gradient. Activations cost the same as in `minmax-qat`, and nothing is observed after
    calibration.
Limits
    Activation ranges never move again. If training changes the weights much, `lsq` or `pact` follow and this does not.
    With few bits a weight cannot be zero. Without calibration batches the first batch sets the ranges. Rounding a
    rounded weight again applies tanh again, and may move it to another level: the class says so
    (`idempotent = False`).
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
        """Return a tanh rounding for a weight, a calibrated range for an activation."""
        from kdq_quantizers.calibrated import FixedScale
        from kdq_quantizers.tanh import TanhFakeQuantize

        return TanhFakeQuantize(place) if place.role == "weight" else FixedScale(place)
