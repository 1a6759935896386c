"""Quantizer `auto`: calibrates first, and trains where that loses too much or bits are few.

What
    With 8 bits everywhere KDQ calibrates (`static`) and compares the result with the float student on the labelled
    samples of the validation split. If it loses more than the tolerance, KDQ trains with `minmax-qat` and takes the
    better of both. With fewer bits it trains with `lsq` at once. Training is the last part of the schedule of
    `distill`: it starts from the float weights of that epoch, at the learning rate of that epoch, so that every student
    has seen the same number of epochs, whichever way KDQ took.
Formula
    Of classes: lost = top1(float) - top1(calibrated) > tolerance, with a 95 % interval that excludes zero. Of numbers:
    hard loss(calibrated) / hard loss(float) - 1 > loss_tolerance.
Source
    The order, calibration before training, is that of Nagel et al. 2021, A White Paper on Neural Network Quantization,
    https://arxiv.org/abs/2106.08295, sections 3 and 4. The interval: Bonett and Price 2012.
Defaults
    tolerance 0.005 (half a point of top-1) and loss_tolerance 0.02 were chosen, not tuned. On text and speech that no
    recipe was tuned for, all epochs in float and then calibration beat a tail of `minmax-qat` by 2.6 and 4 points at 8
    bits; at 4 bits training won by far.
Costs
    Two passes over the validation split. If it trains, KDQ has trained the epochs of the tail twice: in float, and with
    quantizers. With few bits it trains none twice.
Limits
    The interval of a small validation split is wide: with 300 samples, a loss of less than about two points is not
    shown. Without labels in that split nothing is compared, and calibration stays. It does not choose among bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Choosing, Place

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Auto(Choosing):
    """Calibration, or training where that is needed."""

    def ways(self, bits: int) -> tuple[str, ...]:
        """Calibration and then min-max training for 8 bits, learned steps for fewer."""
        return ("static", "minmax-qat") if bits >= 8 else ("lsq",)

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a min-max fake-quantizer; a run asks the quantizers that `ways` names instead."""
        from kdq_core.api import MinMaxFakeQuantize

        return MinMaxFakeQuantize(place)
