"""Two operators that stand for a runtime's QuantizeLinear and DequantizeLinear in a converted graph.

Both divide, multiply and round exactly as ONNX states it (`x / scale`, round half to even, then the zero point), so
that the converted model and the exported file break ties alike. A target translates them when it writes its file.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("kdq::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, label: str) -> Tensor:  # noqa: ARG001
    """`clamp(round(x / scale) + zero_point, qmin, qmax)` with one scale for the tensor.

    Args:
        x: float32, any shape.
        scale: float32, shape `[]`.
        zero_point: shape `[]`; its dtype (uint8 or int8) is the result's.
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
    """`(q - zero_point) * scale` as float32.

    Args:
        q: int8, uint8 or int32, any shape.
        scale: float32, shape `[]`, or `[C]` along `axis`.
        zero_point: same shape as `scale` and dtype as `q`; `None` is zero.
        axis: channel axis where `scale` has one value a channel.
        label: for a weight, the name of the FX node of its operator; otherwise empty.

    Returns:
        float32 of the shape of `q`.
    """
    shape = [-1 if dim == axis else 1 for dim in range(q.dim())] if scale.dim() else []
    wide = q.to(torch.float32)
    if zero_point is not None:
        wide = wide - zero_point.to(torch.float32).reshape(shape)
    return wide * scale.reshape(shape)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, label: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(q, dtype=torch.float32)
