"""Operators of a converted graph that compute the same as a runtime's operators.

They are QuantizeLinear, DequantizeLinear, and a linear layer behind DynamicQuantizeLinear. They divide, multiply and
round exactly as ONNX defines it (`x / scale`, round half to even, then the zero point), so that the converted model and
the exported file break ties in the same way. A target translates them when it writes its file.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("kdq::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, label: str) -> Tensor:  # noqa: ARG001
    """Compute `clamp(round(x / scale) + zero_point, qmin, qmax)` with one scale for the tensor.

    Args:
        x: float32, any shape.
        scale: float32, shape `[]`.
        zero_point: shape `[]`; the result has its dtype (uint8 or int8).
        qmin: least integer.
        qmax: largest integer.
        label: name of the FX node that is quantized; exporters carry it into the file.

    Returns:
        Integers of the shape of `x`.
    """
    zero = zero_point.to(torch.float32)
    return x.div(scale).round_().add_(zero).clamp_(qmin, qmax).to(zero_point.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, label: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("kdq::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, label: str) -> Tensor:  # noqa: ARG001
    """Compute `(q - zero_point) * scale` as float32.

    Args:
        q: int8, uint8 or int32, any shape.
        scale: float32, shape `[]`, or `[C]` along `axis`, or `[C, G]`: each channel of axis 0 in G parts.
        zero_point: same shape as `scale` and dtype as `q`; `None` means zero, and is required with parts.
        axis: channel axis if `scale` has one value per channel.
        label: for a weight, the name of the FX node of its operator; otherwise empty.

    Returns:
        float32 of the shape of `q`.
    """
    wide = q.to(torch.float32)
    if scale.dim() == 2:
        return wide.reshape(*scale.shape, -1).mul(scale[..., None]).reshape(q.shape)
    shape = [-1 if dim == axis else 1 for dim in range(q.dim())] if scale.dim() else []
    if zero_point is not None:
        wide = wide - zero_point.to(torch.float32).reshape(shape)
    return wide * scale.reshape(shape)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, label: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(q, dtype=torch.float32)


def measured_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scale and zero point (float32 `[]` each) as DynamicQuantizeLinear does: uint8, over all values of `x`."""
    low, high = x.aminmax()
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = torch.where(high > low, (high - low) / 255.0, 1.0)
    return scale, (-low / scale).clamp(0.0, 255.0).round()


@torch.library.custom_op("kdq::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, label: str) -> Tensor:  # noqa: ARG001
    """Run a linear layer in integers; its input is rounded to the range that it has in this batch.

    Args:
        x: float32 `[..., I]`.
        weight: int8 `[C, I]`.
        weight_scale: float32 `[C]`.
        bias: float32 `[C]`, or `None`.
        label: name of the FX node of the layer; exporters carry it into the file.

    Returns:
        float32 `[..., C]`: the exact integer product, times both scales, plus the bias.
    """
    scale, zero = measured_grid(x)
    q = x.div(scale).round_().add_(zero).clamp_(0, 255).sub_(zero)
    product = torch.nn.functional.linear(q.double(), weight.double()).float()  # exact: below 2 ** 53
    y = product * (scale * weight_scale)
    return y if bias is None else y + bias


@dynamic_linear.register_fake
def _(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, label: str) -> Tensor:  # noqa: ARG001
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
