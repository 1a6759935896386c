"""Quantizer `weight-only`: weights are stored as integers, arithmetic stays float.

What
    A small file at the speed and nearly the quality of the float model. Weights of 2 to 8 bits, symmetric, one scale a
    channel, or one for each group of consecutive inputs. Nothing is trained.
Formula
    q = clamp(round(w / s), qmin, qmax), s = max|w| / qmax over the channel or the group; w' = q * s.
Source
    Rounding to nearest as it is the baseline of Frantar et al. 2023, GPTQ, https://arxiv.org/abs/2210.17323; groups
    as there, section 4.
Defaults and where they come from
    group none: one scale a channel is enough at 8 bits. At 4 bits use 32, or 64 for less to store: each group adds a
    float32 scale, 1 bit a weight at 32.
Costs
    In ONNX Runtime the file's integers are turned into floats once, when it is loaded, and the float kernels run: a
    float model's speed and memory. Tried with ONNX Runtime 1.31, linear 512 x 512, 4 bits in groups of 32, one thread,
    on a CPU with AVX2: this form takes 1.00 of the float time at batch 1 and 0.98 at batch 32; DequantizeLinear with
    block_size (opset 21) 14.5 and 4.4, for it runs at every call; MatMulNBits 1.5 and 1.3, or 0.64 and 1.25 with
    accuracy_level 4, which rounds the activations too and is no standard ONNX.
Limits
    No faster than float, and no smaller in memory: coverage shows float kernels, so a gate of your own on
    `coverage_macs` fails; the default gates do without it. A layer whose inputs are no multiple of `group` (such as a
    depthwise conv), an embedding and a recurrent layer have one scale a channel. `quantize.activations` means nothing
    to it.
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
    group: int | None = Field(default=None, ge=2, le=65_536, description="inputs that share a scale; none: a channel's")

    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """A fake-quantizer with a scale a channel, or a group."""
        from kdq_core.api import MinMaxFakeQuantize
        from kdq_quantizers.grouped import GroupedFakeQuantize, groups_of

        groups = groups_of(place, self.group)
        return GroupedFakeQuantize(place, groups) if groups > 1 else MinMaxFakeQuantize(place)
