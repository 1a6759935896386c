"""Describes a tensor of a graph that gets a quantizer. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Place:
    """A tensor of the graph that gets a quantizer. The target decides which tensors do.

    Attributes:
        name: readable and unique, such as `layer1.0.conv1.weight` or `layer1.0.relu:output`.
        role: a weight is a parameter, an activation is computed.
        node: name of the FX node whose value is quantized.
        dtype: type of the integers in the runtime.
        qmin: least integer the runtime's kernels take for this tensor.
        qmax: largest integer the runtime's kernels take for this tensor.
        symmetric: whether the zero point is 0 (int8) and the range symmetric.
        axis: channel axis for one scale per channel, or `None` for one scale per tensor.
        channels: length of `axis`, or `None` without one.
        shared_with: name of the place whose scale and zero point this one repeats, for operators that only move data.
        path: module path of the operator that computes the activation or has the weight; rules match it.
        operator: type of that operator, such as `conv` or `linear`; rules match it too.
        bits: how many bits the recipe asks for, 2 to 8. Below 8, the core has narrowed `qmin` and `qmax` accordingly.
        limits: the integers the kernels take, if `qmin` and `qmax` were narrowed; see `kernel_range`.
        weight_only: whether only the weight is stored as integers, and its operator computes in float.
        shape: shape of a weight; `prepare` fills it in.
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
        """Least and largest integer the kernels take; a weight of at most 2 ** bits levels may use the whole range."""
        return self.limits or (self.qmin, self.qmax)
