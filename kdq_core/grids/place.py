"""A tensor of a graph that gets a quantizer. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Place:
    """A tensor of the graph that gets a quantizer. Decided by the target.

    Attributes:
        name: readable and unique, such as `layer1.0.conv1.weight` or `layer1.0.relu:output`.
        role: a weight is a parameter, an activation is computed.
        node: name of the FX node whose value is quantized.
        dtype: container in the runtime.
        qmin: least integer the runtime's kernels take for this tensor.
        qmax: largest integer the runtime's kernels take for this tensor.
        symmetric: the zero point is 0 (int8) and the range is symmetric.
        axis: channel axis for one scale a channel, or `None` for one scale a tensor.
        channels: length of `axis`, or `None` without one.
        shared_with: name of the place whose scale and zero point this one repeats, for operators that only move data.
        path: module path of the operator that makes the tensor, or whose weight it is; rules match it.
        operator: type of that operator, such as `conv` or `linear`; rules match it too.
        bits: how many bits the recipe asks for, 2 to 8. Below 8 the core has narrowed `qmin` and `qmax` accordingly.
        limits: the integers the kernels take, where `qmin` and `qmax` were narrowed to fewer; see `kernel_range`.
        weight_only: its operator computes in float; only the weight is stored as integers.
        shape: of a weight; filled in by `prepare`.
    """

    name: str
    role: Literal["weight", "activation"]
    node: str
    dtype: Literal["int8", "uint8"]
    qmin: int
    qmax: int
    symmetric: bool
    axis: int | None = None
    channels: int | None = None
    shared_with: str | None = None
    path: str = ""
    operator: str = ""
    bits: int = 8
    limits: tuple[int, int] | None = None
    weight_only: bool = False
    shape: tuple[int, ...] | None = None

    @property
    def kernel_range(self) -> tuple[int, int]:
        """Least and largest integer the kernels take; weights of at most 2 ** bits levels may use all of it."""
        return self.limits or (self.qmin, self.qmax)
