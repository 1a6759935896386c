"""Quantizer `fixed-step`: weights are divided by one fixed step and rounded.

What
    The simplest quantization there is: one step q per weight tensor. The recipe states it, or KDQ takes it once from
    the largest weight; then it never changes. Training moves the weights between the fixed levels. Activations: min-max
    ranges by moving average, as in `minmax-qat`.
Formula
    w_q = round(w / q), halves to even; then clip(w_q, qmin, qmax): what does not fit the bits is cut off. With
    w = [1.2, 2.5, 3.7] and q = 0.1, w_q = [12, 25, 37]. Without `step`, q = max|w| / qmax over the tensor, when the
    ranges first see data.
    Gradient: straight through where nothing was clipped, else 0.
Source
    Uniform quantization with a constant step, as in Gersho and Gray 1992, Vector Quantization and Signal Compression,
    chapter 5. Straight-through gradient: Bengio et al. 2013, https://arxiv.org/abs/1308.3432.
Defaults and where they come from
    step none: a step that fits every tensor's range clips nothing at the start. averaging 0.05 as in `minmax-qat`.
Costs
    As `minmax-qat`; the weights' range is measured once.
Limits
    A stated step applies to all tensors, at any number of bits. With 8 bits and q = 0.1 weights beyond 12.7 are clipped
    (beyond 6.3 if the target keeps weights to -63..63, as on CPUs without VNNI), with 4 bits those beyond 0.7. One step
    per tensor wastes levels on channels with small weights; a step too large makes all of them zero. If a step comes
    from data, weights that outgrow it are clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class FixedStep(Quantizer):
    """Weights on multiples of a fixed step."""

    step: float | None = Field(
        default=None, gt=0, le=1e6, description="step of all weights; none: each tensor's largest weight just fits"
    )
    averaging: float = Field(
        default=0.05, gt=0, le=1, description="weight of the newest batch in an activation's range; 1 keeps no past"
    )

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a fixed step for a weight, a min-max range for an activation."""
        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers.steps import FixedStepFakeQuantize

        if place.role == "weight":
            return FixedStepFakeQuantize(place, self.step)
        return MinMaxFakeQuantize(place, averaging=self.averaging)
