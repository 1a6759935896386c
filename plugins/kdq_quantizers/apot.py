"""Quantizer `apot`: weights that are sums of powers of two, with a learned clipping threshold.

What
    Weights lie densely near zero, and so do these levels. Each level is a sum of a few powers of two, times a threshold
    per channel that is trained with the weights. Below 7 bits all levels are whole multiples of one step within int8,
    so that int8 kernels run them unchanged. Activations: min-max ranges by moving average, as in `minmax-qat`.
Formula
    w' = threshold * sign(w) * nearest level to |w| / threshold, at most 1. For b bits, b - 1 of them for the magnitude,
    levels are gamma * sum of n = floor((b - 1) / 2) terms of {0 and three powers of two}, and for even b one more of
    {0 and one power of two}; the terms take turns in 1/2, 1/4, 1/8, ... and gamma makes the largest level 1.
    2 bits: {0, 1}; 3 bits: {0, 1, 2, 4} / 4; 4 bits: {0, 1, 2, 3, 4, 6, 8, 10} / 10.
    Gradients: to w, 1 where |w| is at most the threshold, else 0; to the threshold, level - |w| / threshold inside and
    1 beyond, with the sign of w.
Source
    Li, Dong and Wang 2020, Additive Powers-of-Two Quantization, https://arxiv.org/abs/1909.13144; the levels of an even
    number of bits as in the authors' code, which stops at 7 bits.
Defaults and where they come from
    sigmas 3: the authors' threshold starts at 3 standard deviations. KDQ starts it at the channel's largest weight if
    that is less. averaging 0.05 as in `minmax-qat`.
Costs
    One binary search per weight in the forward pass, about as much as the other operations of a fake-quantizer
    together. Nothing at run time: there are 2^b - 1 levels, which the file holds in b bits if the target packs.
Limits
    The authors normalise weights to mean 0 and deviation 1 before rounding. KDQ leaves weights as the float student has
    them, and uses a threshold per channel instead. The authors use these levels for activations too; int8 kernels
    cannot. From 7 bits on (6 if the target keeps weights to 7 bits) the finest levels are finer than the kernels'
    integers. KDQ rounds them to those integers, so that some levels coincide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Apot(Quantizer):
    """Training with additive powers of two for weights."""

    sigmas: float = Field(
        default=3.0, gt=0, le=100, description="where a threshold starts, in root mean squares of the channel's weights"
    )
    averaging: float = Field(
        default=0.05, gt=0, le=1, description="weight of the newest batch in an activation's range; 1 keeps no past"
    )

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return additive powers of two for a weight, a min-max range for an activation."""
        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers.uneven import ApotFakeQuantize

        if place.role == "weight":
            return ApotFakeQuantize(place, self.sigmas)
        return MinMaxFakeQuantize(place, averaging=self.averaging)
