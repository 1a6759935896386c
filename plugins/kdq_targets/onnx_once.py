"""Graphs that the exporter need not trace a second time.

`torch.onnx.export` traces a captured graph again, to decompose operators that it cannot translate. That is half of the
time of an export. For the operators here the second graph gives the same file, byte for byte, so KDQ leaves that trace
out if a graph has no others. `tests/plugins/targets/test_onnx_once.py` compares the files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from onnxscript import opset18 as op
from torch.fx import Graph, Node

from kdq_core.api import dequantize, dynamic_linear, quantize

aten = torch.ops.aten


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:  # noqa: ARG001
    """Write `flatten(x, 1)` as the decomposed graph has it: as a view."""
    size = 1
    for length in x.shape[1:]:
        size *= length
    return op.Reshape(x, op.Constant(value_ints=[-1, size]), allowzero=1)


def batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float,
    cudnn: bool = False,
) -> Any:  # fmt: skip
    """Write batch normalisation by running statistics."""
    del training, cudnn
    return op.BatchNormalization(
        x, weight, bias, mean, variance, epsilon=eps, momentum=1.0 - momentum, training_mode=False
    )


def dropout(x: Any, p: float, train: bool) -> Any:
    """Write a dropout in eval mode."""
    del p, train
    return op.Identity(x)


def _flattens_samples(node: Node) -> bool:
    """Whether a `flatten` leaves the batch alone, and joins axes of known sizes."""
    given: Any = node.args[0]
    sizes = given.meta["val"].shape[1:]
    return node.args[1:] in ((1,), (1, -1)) and len(sizes) > 0 and all(type(size) is int for size in sizes)


def _has_statistics(node: Node) -> bool:
    return all(isinstance(value, Node) for value in node.args[:5]) and node.args[5] is False


def _always(node: Node) -> bool:  # noqa: ARG001
    return True


SAME: dict[Any, Callable[[Node], bool]] = {
    aten.flatten.using_ints: _flattens_samples,
    aten.batch_norm.default: _has_statistics,
    aten.dropout.default: lambda node: node.args[2] is False,
    **dict.fromkeys(
        (
            aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.relu.default,
            aten.sigmoid.default, aten.add.Tensor, aten.mul.Tensor, aten.adaptive_avg_pool1d.default,
            aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
            quantize._opoverload, dequantize._opoverload, dynamic_linear._opoverload,
        ),
        _always,
    ),
}  # fmt: skip
"""Operators that need no second trace, each with the condition on its node."""
TRANSLATIONS: dict[Any, Any] = {
    aten.flatten.using_ints: flatten,
    aten.batch_norm.default: batch_norm,
    aten.dropout.default: dropout,
}
"""How they are written if the exporter sees them; elsewhere they are decomposed before."""


def needs_one_trace(graph: Graph) -> bool:
    """Whether a captured graph has only operators that need no second trace."""
    called = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    return all(node.op == "call_function" and SAME.get(node.target, _never)(node) for node in called)


def _never(node: Node) -> bool:  # noqa: ARG001
    return False


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Let exports in this block take the captured graph as it is. If torch decomposes elsewhere, they trace it."""
    try:
        from torch.onnx._internal.exporter import _fx_passes
    except ImportError:
        yield
        return
    with mock.patch.object(_fx_passes, "decompose_with_registry", lambda program, _: program, create=True):
        yield
