"""Quantizer `pact`: quantization-aware training with learned clipping of activations.

What
    The value at which an activation tensor is clipped is a parameter. The loss trains it and a decay pulls it down, so
    that the error of clipping is weighed against finer steps. Weights are rounded as in `dorefa`, or by min-max.
Formula
    Behind a relu: y = clamp(x, 0, alpha), x' = round(y * n / alpha) * alpha / n, n = 2^b - 1; gradient to alpha: 1
    where x' is clipped, else 0. Signed tensors keep the zero point z of calibration. Then alpha is the upper end
    (qmax - z) * s, and the lower end -z * s moves with it, so that the gradient to alpha is 1 above and -z / (qmax - z)
    below. The decay adds decay * alpha to the gradient. The parameter is log s. Its gradient is multiplied such that
    plain gradient descent moves alpha as in the paper, and cut to -1 .. 1 as in `lsq`.
Source
    Choi et al. 2018, PACT: Parameterized Clipping Activation for Quantized Neural Networks,
    https://arxiv.org/abs/1805.06085, sections 3 and 4. The paper covers activations behind a relu only. A fixed zero
    point is the smallest change that lets one alpha serve a signed tensor and keeps zero on the grid.
Defaults
    decay 1e-4: the weight decay of recipes. The start is not one large number for all tensors, but the range with the
    least squared error over the calibration batches: short trainings do not get far from it. weights dorefa: as in the
    paper.
Costs
    As `lsq`: two dot products backward for each activation.
Limits
    Where nothing is clipped, only the decay moves alpha. AdamW makes steps of the learning rate relative to alpha,
    whatever the size of the decay. Rounding errors inside the range give alpha no gradient; `lsq` uses those too.
    Weights as in `dorefa` go through tanh. Rounding a rounded weight again may move it to another level: the class says
    so (`idempotent = False`), although activations and min-max weights do not move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Pact(Quantizer):
    """Training with learned clipping."""

    idempotent: ClassVar[bool] = False
    decay: float = Field(default=1e-4, ge=0, le=1, description="L2 decay of the clipping values")
    weights: Literal["dorefa", "minmax"] = Field(default="dorefa", description="how weights are rounded")

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a learned clipping for an activation; for a weight, the rounding that `weights` names."""
        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers.learned import LearnedClip
        from kdq_quantizers.tanh import TanhFakeQuantize

        if place.role == "activation":
            return LearnedClip(place, self.decay)
        return TanhFakeQuantize(place) if self.weights == "dorefa" else MinMaxFakeQuantize(place)
