"""Changes of the QDQ graph that OpenVINO needs; other runtimes give the same results with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

ACTIVATIONS = ("Relu", "Clip", "LeakyRelu")
PRODUCTS = ("Conv", "Gemm")
INTEGER = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", *ACTIVATIONS)
"""Operators that are int8 if their result is rounded."""
MOVERS = {
    "QuantizeLinear", "DequantizeLinear", "Clip", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice",
    "Gather", "Split", "MaxPool", "Pad", "Resize", "Expand",
}  # fmt: skip


def separate_sums(graph: Any, *, every: bool) -> None:
    """Keep the grid of a conv's output that is added to another tensor, or that a float operator reads.

    OpenVINO adds within the conv before it rounds to that grid, and drops a clip of its integers. A LeakyRelu of slope
    1 between two quantizers of one grid prevents that. Before a float operator, OpenVINO 2026.4 can move the bias of
    the conv into the rounding, and then add it wrongly, by up to 15 steps. A LeakyRelu in front of the quantizer
    prevents that. Both change no value and become part of the conv.

    Args:
        graph: the ONNX graph.
        every: do so also for a sum on a grid of 8 bits, where only its rounding is at stake.
    """
    makers = {output: node for node in graph.node for output in node.output}
    readers = _readers(graph)
    nodes: list[Any] = []
    for node in graph.node:
        nodes.append(node)
        maker = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if maker is None or not _is_conv(maker, makers):
            continue
        clips = [reader for reader in readers.get(node.output[0], []) if reader.op_type == "Clip"]
        wides = readers.get((clips[0] if clips else node).output[0], [])
        added = any(r.op_type == "Add" for wide in wides for r in readers.get(wide.output[0], []))
        if added and (clips or every):
            value, grid = node.output[0], node.input[1:]
            node.output[0] = f"{value}_first"
            nodes += [
                helper.make_node("DequantizeLinear", [f"{value}_first", *grid], [f"{value}_wide"]),
                helper.make_node("LeakyRelu", [f"{value}_wide"], [f"{value}_same"], alpha=1.0),
                helper.make_node("QuantizeLinear", [f"{value}_same", *grid], [value]),
            ]
        elif _reaches_float(node, readers):
            value = f"{node.output[0]}_given"
            nodes.insert(-1, helper.make_node("LeakyRelu", [node.input[0]], [value], alpha=1.0))
            node.input[0] = value
    del graph.node[:]
    graph.node.extend(nodes)


def _readers(graph: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            found.setdefault(value, []).append(node)
    return found


def _reaches_float(node: Any, readers: dict[str, list[Any]]) -> bool:
    """Whether a float operator reads the value of `node`, as it is or moved."""
    for reader in (reader for value in node.output for reader in readers.get(value, [])):
        if reader.op_type in PRODUCTS:
            continue
        if reader.op_type in MOVERS:
            if _reaches_float(reader, readers):
                return True
        elif reader.op_type not in INTEGER or not _is_rounded(reader, readers):
            return True
    return False


def _is_rounded(node: Any, readers: dict[str, list[Any]]) -> bool:
    after = [reader for value in node.output for reader in readers.get(value, [])]
    return all(
        one.op_type == "QuantizeLinear" or (one.op_type in ACTIVATIONS and _is_rounded(one, readers)) for one in after
    )


def keep_means(graph: Any) -> None:
    """Write means, sums and extremes so that OpenVINO computes them correctly.

    In int8, OpenVINO 2026.4 gives wrong means over the last axis of `[B, C, L]`, wrong sums wherever the zero point is
    not 0, wrong extremes where they are rounded, and wrong values of a batch norm behind a mean or sum. Where the zero
    point is 0 it moves the scale behind a mean or sum over three axes, and then reads memory that nothing has written.
    KDQ writes pooling on `[B, C, L, 1]`, where OpenVINO is right. It keeps other means, sums and average pooling in
    float, and parts means, sums and extremes from what follows. A Max with the least float does both: it changes no
    value, and OpenVINO moves no scale through it.
    """
    known = [*graph.value_info, *graph.input, *graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    integers = (TensorProto.INT32, TensorProto.INT64)
    counted = {value.name for value in known if value.type.tensor_type.elem_type in integers}
    quantized = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    constants = {
        "kdq.add_axis": np.array([0, 0, 0, 1]),
        "kdq.drop_axis": np.array([0, 0, 1]),
        "kdq.lowest": np.array(np.finfo(np.float32).min),
    }
    nodes: list[Any] = []
    for node in graph.node:
        given, made = node.input[0] if node.input else "", node.output[0]
        if node.op_type == "GlobalAveragePool" and 3 in (ranks.get(given), ranks.get(made)):
            nodes += [helper.make_node("Reshape", [given, "kdq.add_axis"], [f"{made}_wide"]), node]
            nodes.append(helper.make_node("Reshape", [f"{made}_mean", "kdq.drop_axis"], [made]))
            node.input[0], node.output[0] = f"{made}_wide", f"{made}_mean"
        elif node.op_type in ("ReduceMax", "ReduceMin") and given not in counted:
            nodes += _kept_behind(node)
        elif node.op_type in ("ReduceMean", "ReduceSum") and given not in counted:
            nodes += [_kept_before(node), *_kept_behind(node)]
        elif node.op_type == "AveragePool" and made not in quantized:
            nodes += [_kept_before(node), node]
        else:
            nodes.append(node)
    used = {value for node in nodes for value in node.input} & constants.keys()
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in sorted(used))


def _kept_before(node: Any) -> Any:
    """A Max with the least float in front of `node`, which then reads it."""
    value = f"{node.output[0]}_given"
    made = helper.make_node("Max", [node.input[0], "kdq.lowest"], [value])
    node.input[0] = value
    return made


def _kept_behind(node: Any) -> list[Any]:
    """`node`, and a Max with the least float behind it."""
    made = node.output[0]
    node.output[0] = f"{made}_same"
    return [node, helper.make_node("Max", [f"{made}_same", "kdq.lowest"], [made])]


def part_products(graph: Any) -> None:
    """Part a product with a constant from what makes its other factor.

    OpenVINO 2026.4 fails to load some chains of such products, as of the layer scale of ConvNeXt. A LeakyRelu of slope
    1 in front changes no value.
    """
    constants = {tensor.name for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        if all(value in constants for value in node.input):
            constants.update(node.output)
        elif node.op_type == "Mul" and constants & set(node.input):
            index = 0 if node.input[1] in constants else 1
            value = f"{node.output[0]}_factor"
            nodes.append(helper.make_node("LeakyRelu", [node.input[index]], [value], alpha=1.0))
            node.input[index] = value
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def part_heads(graph: Any) -> None:
    """Part a Reshape from the layer without a bias in front of it.

    OpenVINO 2026.4 moves the scales of the layer's channels behind the Reshape. It then fails to load some files where
    the Reshape splits the channels, as into heads of attention. A LeakyRelu of slope 1 in between changes no value.
    """
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "Reshape" else None
        while maker is not None and maker.op_type in ACTIVATIONS:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type in (*PRODUCTS, "MatMul") and len(maker.input) == 2:
            value = f"{node.output[0]}_whole"
            nodes.append(helper.make_node("LeakyRelu", [node.input[0]], [value], alpha=1.0))
            node.input[0] = value
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def part_halves(graph: Any) -> None:
    """Move a scale by a millionth if 0.5, a sigmoid's value at 0, lies between two integers of its grid.

    The simulation divides by the scale; OpenVINO multiplies by its inverse. On the scale 1/255 of a sigmoid that
    reaches 1, the first gives 127.49999 and the second 127.5, for each input of 0. After the move both round alike.
    """
    scales = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    for tensor in graph.initializer:
        scale = numpy_helper.to_array(tensor) if tensor.name in scales else np.zeros(1)
        if scale.shape:
            continue
        exact = 0.5 / float(scale)
        if abs(exact % 1 - 0.5) < 1e-4:  # the distance that rounding errors of either way may have
            down = np.rint(np.float32(0.5) / scale) < exact
            moved = np.array(scale * np.float32(1 + 1e-6 if down else 1 - 1e-6))
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))


def keep_float(graph: Any) -> None:
    """Keep OpenVINO from computing layers in integers that have float arithmetic and integer weights.

    OpenVINO 2026.4 computes a convolution of a quantized tensor in integers then. A Max with the least float in front
    of it prevents that, and changes no value. A linear layer it computes in integers whatever is in front of it, and
    rounds its input by itself; so KDQ writes the weight of that as floats.
    """
    makers = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    widened: dict[str, Any] = {}
    for node in graph.node:
        value = makers.get(node.input[1]) if node.op_type in (*PRODUCTS, "MatMul") else None
        cast = makers.get(value.input[0]) if value is not None and value.op_type == "Mul" else None
        if value is not None and cast is not None and cast.op_type == "Cast" and node.op_type == "Conv":
            nodes.append(_kept_before(node))
        elif value is not None and cast is not None and cast.op_type == "Cast" and cast.input[0] in tensors:
            q, scale = (numpy_helper.to_array(tensors[name]) for name in (cast.input[0], value.input[1]))
            name = f"{value.output[0]}_floats"
            widened[name] = numpy_helper.from_array(q.astype(np.float32) * scale, name)
            node.input[1] = name
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [node for node in nodes if node.op_type not in ("Cast", "Mul") or node.output[0] in used]
    used = {name for node in kept for name in node.input}
    del graph.node[:]
    graph.node.extend(node for node in kept if node.op_type != "Cast" or node.output[0] in used)
    if "kdq.lowest" in used and "kdq.lowest" not in tensors:
        widened["kdq.lowest"] = numpy_helper.from_array(np.array(np.finfo(np.float32).min), "kdq.lowest")
    used = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*left, *widened.values()])


def separate_turned(graph: Any) -> None:
    """Give each layer that reads a weight the other way round a copy of it.

    OpenVINO 2026.4 gives wrong products if a MatMul and a transposing Gemm read one square constant.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    first: dict[str, bool] = {}
    for node in graph.node:
        name = node.input[1] if node.op_type in ("Gemm", "MatMul") else ""
        turned = any(item.name == "transB" and item.i for item in node.attribute)
        if name not in tensors or first.setdefault(name, turned) == turned:
            continue
        copy = f"{name}.turned"
        if copy not in tensors:
            tensors[copy] = numpy_helper.from_array(numpy_helper.to_array(tensors[name]), copy)
            graph.initializer.append(tensors[copy])
        node.input[1] = copy


def _is_conv(node: Any, makers: dict[str, Any]) -> bool:
    """Whether `node` is a conv, or an activation after one."""
    while node.op_type in ACTIVATIONS and node.input[0] in makers:
        node = makers[node.input[0]]
    return bool(node.op_type == "Conv")
