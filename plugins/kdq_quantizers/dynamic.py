"""Quantizer `dynamic`: int8 linear layers whose input range the runtime measures for each batch.

What
    No calibration and no training. Weights are rounded once, symmetric with one scale per channel. The runtime rounds
    the input of each linear layer to 256 integers between the least and the greatest value of the batch, and computes
    the product in integers. For models whose activations vary much from input to input.
Formula
    Weights: q = clamp(round(w / s_w), qmin, qmax), s_w = max|w| / qmax. Inputs: s = (max - min) / 255 with
    min <= 0 <= max over the whole tensor, z = round(-min / s), q_x = clamp(round(x / s) + z, 0, 255).
    y = s * s_w * sum((q_x - z) * q) + bias.
Source
    DynamicQuantizeLinear and MatMulInteger of the ONNX standard, https://onnx.ai/onnx/operators/. Ranges per batch
    replace the fixed ranges of Jacob et al. 2018, https://arxiv.org/abs/1712.05877.
Defaults and where they come from
    No options. The recipe gives the bits of weights. Inputs always have 8 bits, because the operator knows no others.
Costs
    A pass for the range and one for rounding before each linear layer. Linear 512 x 512 in ONNX Runtime 1.31, one
    thread, on a CPU with AVX2: 0.83 of the float time at batch 1 and 0.69 at batch 32.
Limits
    The answer for a sample depends on the samples it shares a batch with, because their values set the range. For the
    same reason parity compares equal batches. Convolutions stay float: ONNX Runtime's ConvInteger takes 4.6 (batch 32)
    to 7.2 times (batch 1) as long as its float conv (64 to 64 channels, 3 x 3, 16 x 16 positions, measured as above).
    Recurrent layers and embeddings have int8 weights only. KDQ refuses `quantize.activations`. The default gates ask
    for `coverage_linear_macs` instead of `coverage_macs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class Dynamic(Quantizer):
    """Linear layers with ranges measured by the runtime."""

    trains: ClassVar[bool] = False
    activations: ClassVar[Literal["static", "dynamic", "none"]] = "dynamic"

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a min-max fake-quantizer for a weight."""
        from kdq_core.api import MinMaxFakeQuantize

        return MinMaxFakeQuantize(place)
