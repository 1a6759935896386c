"""Quantizer `weight-only`: weights are stored as integers, arithmetic stays float.

What
    A small file at the speed and nearly the quality of the float model. Weights have 2 to 8 bits, symmetric, with one
    scale per channel or per group of consecutive inputs. Nothing is trained.
Formula
    q = clamp(round(w / s), qmin, qmax), s = max|w| / qmax over the channel or the group; w' = q * s.
Source
    Rounding to nearest is the baseline of Frantar et al. 2023, GPTQ, https://arxiv.org/abs/2210.17323; groups as in
    section 4 there.
Defaults and where they come from
    group none: one scale per channel is enough at 8 bits. At 4 bits use 32, or 64 for a smaller file: each group adds a
    float32 scale, which is 1 bit per weight at 32.
Costs
    ONNX Runtime turns the file's integers into floats once, when it loads the file, and then runs its float kernels:
    speed and memory are those of a float model. Measured with ONNX Runtime 1.31, linear 512 x 512, 4 bits in groups of
    32, one thread, on a CPU with AVX2, as parts of the float time. This form: 1.00 at batch 1 and 0.98 at batch 32.
    DequantizeLinear with block_size (opset 21), which runs at every call: 14.5 and 4.4. MatMulNBits: 1.5 and 1.3, or
    0.64 and 1.25 with accuracy_level 4, which rounds the activations too and is no standard ONNX.
Limits
    No faster than float, and no smaller in memory. `coverage` shows float kernels, so a gate of your own on
    `coverage_macs` fails; the default gates do not have it. Some layers have one scale per channel: those whose inputs
    are no multiple of `group` (such as a depthwise conv), embeddings and recurrent layers. `quantize.activations` has
    no effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Field, Place, Quantizer

if TYPE_CHECKING:
    from kdq_core.api import FakeQuantize


class WeightOnly(Quantizer):
    """Integer weights for float arithmetic."""

    trains: ClassVar[bool] = False
    activations: ClassVar[Literal["static", "dynamic", "none"]] = "none"
    group: int | None = Field(
        default=None, ge=2, le=65_536, description="how many inputs share a scale; none: all inputs of a channel"
    )

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """Return a fake-quantizer with a scale per channel, or per group."""
        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers.grouped import GroupedFakeQuantize, groups_of

        groups = groups_of(place, self.group)
        return GroupedFakeQuantize(place, groups) if groups > 1 else MinMaxFakeQuantize(place)
