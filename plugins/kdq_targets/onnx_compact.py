"""Remove what a file does not need: default attributes, bias scales that are products, repeated clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

MOVERS = {"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"}
"""Operators that return values of their first input unchanged."""


def drop_defaults(graph: Any) -> None:
    """Remove attributes that have the operator's default value."""
    scalars = {tensor.name for tensor in graph.initializer if not tensor.dims}
    for node in graph.node:
        kept = [item for item in node.attribute if not _says_nothing(node, item, scalars)]
        del node.attribute[:]
        node.attribute.extend(kept)


def _says_nothing(node: Any, item: Any, scalars: set[str]) -> bool:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        per_tensor = item.name == "axis" and node.input[1] in scalars
        return per_tensor or (item.name in ("saturate", "axis") and int(item.i) == 1)
    if node.op_type != "Conv":
        return False
    defaults: dict[str, bool] = {
        "auto_pad": item.s in (b"", b"NOTSET"),
        "dilations": set(item.ints) == {1},
        "strides": set(item.ints) == {1},
        "pads": set(item.ints) == {0},
        "group": item.i == 1,
        "kernel_shape": True,  # it is the weight's
    }
    return defaults.get(item.name, False)


def derive_bias_scales(graph: Any) -> None:
    """Write the step of an int32 bias as input scale times weight scale, where that is bit-exact.

    The runtime folds the product when it loads the file; this saves four bytes per channel. Equal constants are
    already merged: with an input scale of 1 the bias has the weight's own scale, and two layers may share a step. So
    KDQ replaces only scales that biases alone read, each once, and keeps the factors as constants.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    replaced: set[str] = set()
    elsewhere = _read_beside_biases(graph)
    for node in graph.node:
        product = _product(node, makers, tensors)
        if product is not None and product.output[0] not in elsewhere | replaced:
            replaced.add(product.output[0])
            nodes.append(product)
    if not nodes:
        return
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes + rest)
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _read_beside_biases(graph: Any) -> set[str]:
    """Names that anything but the dequantization of a bias reads, also in the bodies of subgraphs."""
    biases = {node.input[2] for node in graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) == 3}
    bodies = [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
    return {
        name
        for node in (*graph.node, *(inner for body in bodies for inner in body.node))
        if node.op_type != "DequantizeLinear" or node.output[0] not in biases
        for name in node.input
    }


def _product(node: Any, makers: dict[str, Any], tensors: dict[str, Any]) -> Any:
    """Make the multiplication that computes the bias scale of a quantized conv or linear, or return `None`."""
    wides = [makers.get(value) for value in node.input[:3]]
    if (
        node.op_type not in ("Conv", "Gemm")
        or len(node.input) != 3
        or any(wide is None or wide.op_type != "DequantizeLinear" or wide.input[1] not in tensors for wide in wides)
    ):
        return None
    names = [wide.input[1] for wide in wides if wide is not None]
    x, weight, bias = (numpy_helper.to_array(tensors[name]) for name in names)
    if bias.size < 8 or not np.array_equal(np.asarray(x * weight, dtype=np.float32), bias):
        return None
    return onnx.helper.make_node("Mul", names[:2], [names[2]])


def drop_repeated_clips(graph: Any) -> None:
    """Remove a clip of integers that were clipped to the same range before and only moved since.

    After max pooling, flatten and similar operators the same grid appears again, and its values are already in range.
    """
    makers = {output: node for node in graph.node for output in node.output}
    values = {tensor.name: numpy_helper.to_array(tensor).item() for tensor in graph.initializer if not tensor.dims}
    ranges: dict[str, tuple[Any, ...]] = {}
    instead: dict[str, str] = {}
    for node in graph.node:
        second = makers.get(node.input[0]) if node.op_type == "Clip" else None
        if second is None or second.op_type != "QuantizeLinear":
            continue
        kept = tuple(values.get(name) for name in (*second.input[1:], *node.input[1:]))
        if ranges.get(_moved_from(second.input[0], makers)) == kept:
            instead[node.output[0]] = node.input[0]
        ranges[node.output[0]] = kept
    nodes = [node for node in graph.node if node.output[0] not in instead]
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    del graph.node[:]
    graph.node.extend(nodes)


def _moved_from(value: str, makers: dict[str, Any]) -> str:
    """Name of the integers that `value` holds after dequantizing and moving; empty if it holds anything else."""
    maker = makers.get(value)
    while maker is not None and maker.op_type in MOVERS:
        maker = makers.get(maker.input[0])
    return str(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else ""
