"""Average pooling as torch computes it: which number it divides each window by, and its ONNX form.

Runtimes disagree on padding with `count_include_pad` (OpenVINO pads integers with 0 instead of their zero point) and on
windows that reach beyond it with `ceil_mode`. So KDQ pads before it pools, and corrects the divisor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from onnxscript import opset18 as op

aten = torch.ops.aten
AXES = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
"""Average poolings, each with the number of its axes."""


@dataclass(frozen=True)
class Windows:
    """Windows over some axes; every field but the last three has one number an axis."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool
    with_padding: bool
    divisor: int | None

    @classmethod
    def of(cls, shape: Sequence[Any], axes: int, args: Sequence[Any]) -> Windows:
        """Read the arguments of an ATen operator behind its input, which has that shape."""
        given = [*args, *([], 0, False, True, None)[len(args) - 1 :]]
        sizes = [
            (one if isinstance(one, list | tuple) else [one]) for one in (given[0], given[1] or given[0], given[2])
        ]
        kernel, strides, padding = (tuple(one) * (axes // len(one)) for one in sizes)
        return cls(tuple(shape[-axes:]), kernel, strides, padding, bool(given[3]), bool(given[4]), given[5])

    def counts(self) -> tuple[int, ...]:
        """The number of windows; with `ceil`, a further one that begins within the input or the padding before it."""
        found = []
        for size, kernel, stride, pad in zip(self.sizes, self.kernel, self.strides, self.padding, strict=True):
            room = size + 2 * pad - kernel
            further = self.ceil and room % stride and (room // stride + 1) * stride < size + pad
            found.append(room // stride + 1 + bool(further))
        return tuple(found)

    def simple(self) -> bool:
        """Whether every window is divided by its number of values, without padding."""
        return self.divisor is None and not (self.with_padding and any(self.padding))

    def factors(self) -> np.ndarray:
        """What the mean over each padded window is multiplied by, float32 `[...]`, one axis a pooled axis."""
        whole = math.prod(self.kernel)
        if self.divisor is not None:
            return np.full(self.counts(), whole / self.divisor, dtype=np.float32)
        ways = []
        for size, kernel, stride, pad, n in zip(
            self.sizes, self.kernel, self.strides, self.padding, self.counts(), strict=True
        ):
            start = np.arange(n) * stride - pad
            ways.append(np.minimum(start + kernel, size + pad) - start)
        divisors = ways[0]
        for way in ways[1:]:
            divisors = np.multiply.outer(divisors, way)
        return (whole / divisors).astype(np.float32)


def why_float_pool(shape: Sequence[Any], axes: int, args: Sequence[Any]) -> str:
    """Say why an average pooling has no int8 form; empty if it has one."""
    windows = Windows.of(shape, axes, args)
    if windows.simple() or (windows.factors() == 1).all():
        return ""
    return "it divides windows by another number than that of their values"


def avg_pool1d(x: Any, *args: Any) -> Any:
    """Write average pooling over one axis."""
    return _avg_pool(x, 1, args)


def avg_pool2d(x: Any, *args: Any) -> Any:
    """Write average pooling over two axes."""
    return _avg_pool(x, 2, args)


def avg_pool3d(x: Any, *args: Any) -> Any:
    """Write average pooling over three axes."""
    return _avg_pool(x, 3, args)


def _avg_pool(x: Any, axes: int, args: Sequence[Any]) -> Any:
    if len(x.shape) == axes + 1:  # without a batch
        first = op.Constant(value_ints=[0])
        return op.Squeeze(_avg_pool(op.Unsqueeze(x, first), axes, args), first)
    windows = Windows.of(x.shape, axes, args)
    kernel, strides, padding = windows.kernel, windows.strides, windows.padding
    if windows.simple():
        floor = replace(windows, ceil=False).counts() == windows.counts()
        return op.AveragePool(
            x, kernel_shape=kernel, strides=strides, pads=(*padding, *padding), ceil_mode=int(not floor)
        )
    ends = [
        max((n - 1) * stride + size - given - pad, 0)
        for n, stride, size, given, pad in zip(windows.counts(), strides, kernel, windows.sizes, padding, strict=True)
    ]
    y = op.AveragePool(pad_zeros(x, [0, 0, *padding], [0, 0, *ends]), kernel_shape=kernel, strides=strides)
    factors = windows.factors()
    if (factors == 1).all():
        return y
    return op.Mul(y, op.Constant(value=numpy_helper.from_array(factors, "factors")))


def pad_zeros(x: Any, before: Sequence[int], after: Sequence[int]) -> Any:
    """Write padding with zeros. Around a dequantized tensor, they become its zero point around the integers."""
    sizes = op.Constant(value_ints=[*before, *after])
    producer = x.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < 3:
        return op.Pad(x, sizes, op.Constant(value_float=0.0))
    q, scale, zero = producer.inputs
    return op.DequantizeLinear(op.Pad(q, sizes, zero), scale, zero)


POOLS: dict[Any, Any] = {
    aten.avg_pool1d.default: avg_pool1d,
    aten.avg_pool2d.default: avg_pool2d,
    aten.avg_pool3d.default: avg_pool3d,
}
