"""Quantizer `lsq`: quantization-aware training with learned steps (LSQ), and learned offsets (LSQ+).

What
    The scale of every weight (one per channel) and of every activation is a parameter. It is trained with the model by
    the same loss. Zero points are fixed; `offset` trains those of activations too.
Formula
    q = clamp(round(x / s) + z, qmin, qmax), x' = (q - z) * s. Gradient of x' to s: round(x / s) - x / s inside the
    range, the bound (qmin - z or qmax - z) where clipped, the mask taken after rounding; times g = 1 / sqrt(N * Q), N
    the number of values that share s (of one sample, for activations), Q = qmax - z. Gradient to the offset
    b = -z * s: 1 where clipped, else 0, times g. The parameter is log s. Its gradient is multiplied such that plain
    gradient descent moves s as in the paper. It is cut to -1 .. 1, so that one step moves s by at most the learning
    rate, relative to s: small scales do not jump. z is trained in the same way, as a share of the levels, and rounded.
Source
    Esser et al. 2020, Learned Step Size Quantization, https://arxiv.org/abs/1902.08153, sections 2.1 and 2.2; offsets:
    Bhalgat et al. 2020, LSQ+, https://arxiv.org/abs/2004.09576, section 3.1.
Defaults
    offset false: zero points come from calibration; after a relu they are 0. The paper starts from
    2 mean|x| / sqrt(Q). KDQ starts from the scale with the least squared error (LSQ+ does so for activations):
    activations from the mean over the calibration batches, weights per channel. The paper's start is wide for normal
    weights, and stays so in the short trainings KDQ is made for.
Costs
    As `minmax-qat`, and two dot products backward for each activation. Nothing is observed once training has begun. One
    parameter per channel and per activation; two per activation with `offset`.
Limits
    AdamW steps by the learning rate relative to s, whatever the gradient's size. With a rate of 2e-4 a scale moves by
    at most a fifth in 1,000 steps, so the start matters. The recipe's `freeze_observers` has no effect: learned scales
    learn to the end. A channel of zeros gets the mean of the others' scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Lsq(Quantizer):
    """Training with learned steps."""

    offset: bool = Field(default=False, description="train the zero points of activations too (LSQ+)")

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a learned step for `place`."""
        from kdq_quantizers.learned import LearnedStep

        return LearnedStep(place, offset=self.offset)
