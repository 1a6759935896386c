"""Other forms of a graph for which ONNX Runtime is faster. They change no value."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from kdq_targets.onnx_parts import drop_unread

THREE, FOUR = 3, 4
"""The int8 convolution takes four input channels at a time. With three, as in images, padding gains a tenth of a small
residual net; with one it would quadruple the work, and loses."""
MOST_PACKED = 64
"""An embedding of at most so many levels may be packed, and keeps its integers."""


def pad_channels(graph: Any) -> None:
    """Pad the integers in front of convolutions of three channels to four, with weights 0.

    The added channel holds the zero point, so it stands for 0.
    """
    makers = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, list[Any]] = {}
    nodes: list[Any] = []
    for node in graph.node:
        wide, weight = (makers.get(name) for name in node.input[:2]) if node.op_type == "Conv" else (None, None)
        if wide is not None and weight is not None and _few(node, wide, weight, tensors):
            if wide.output[0] not in made:
                values = numpy_helper.to_array(tensors[weight.input[0]])
                made[wide.output[0]] = _padding(wide, values.ndim, FOUR - values.shape[1], graph)
                nodes += made[wide.output[0]]
            node.input[0] = made[wide.output[0]][-1].output[0]
            node.input[1] = _padded_weight(weight, tensors, graph, nodes)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph, "DequantizeLinear")


def _few(node: Any, wide: Any, weight: Any, tensors: dict[str, Any]) -> bool:
    """Whether a convolution has int8 input and weight, one group, and three input channels."""
    pair = {wide.op_type, weight.op_type} == {"DequantizeLinear"} and weight.input[0] in tensors
    groups = next((item.i for item in node.attribute if item.name == "group"), 1)
    return pair and groups == 1 and len(wide.input) == 3 and tensors[weight.input[0]].dims[1] == THREE


def _padding(wide: Any, rank: int, count: int, graph: Any) -> list[Any]:
    name = f"{wide.output[0]}_four"
    pads = np.zeros(2 * rank, dtype=np.int64)
    pads[rank + 1] = count
    graph.initializer.append(numpy_helper.from_array(pads, f"{name}_pads"))
    return [
        helper.make_node("Pad", [wide.input[0], f"{name}_pads", wide.input[2]], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", *wide.input[1:]], [name]),
    ]


def _padded_weight(weight: Any, tensors: dict[str, Any], graph: Any, nodes: list[Any]) -> str:
    """Write the dequantization of the padded weight; give its output."""
    values = numpy_helper.to_array(tensors[weight.input[0]])
    more = np.zeros((len(values), FOUR - values.shape[1], *values.shape[2:]), dtype=values.dtype)
    name = f"{weight.output[0]}_four"
    if f"{name}_q" not in tensors:
        tensors[f"{name}_q"] = numpy_helper.from_array(np.concatenate([values, more], 1), f"{name}_q")
        graph.initializer.append(tensors[f"{name}_q"])
        padded = helper.make_node("DequantizeLinear", [f"{name}_q", *weight.input[1:]], [name])
        padded.attribute.extend(weight.attribute)
        nodes.append(padded)
    return name


def requantize_tables(graph: Any) -> None:
    """Store an embedding that is quantized again behind its look-up on the second grid, with one scale.

    The runtime would dequantize each column with a scale of its own, and quantize the result, in every call.
    """
    makers = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for name in (*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)):
        readers[name] = readers.get(name, 0) + 1
    dropped: set[str] = set()
    for node in graph.node:
        wide = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        look_up = makers.get(wide.input[0]) if wide is not None and wide.op_type == "DequantizeLinear" else None
        if wide is None or look_up is None or look_up.op_type != "Gather":
            continue
        alone = all(readers[name] == 1 for name in (wide.output[0], look_up.output[0], look_up.input[0]))
        constants = [tensors.get(name) for name in (look_up.input[0], wide.input[1], *node.input[1:3])]
        if not alone or any(one is None for one in constants):
            continue
        table, columns, scale, zero = (numpy_helper.to_array(one) for one in constants)
        if len(np.unique(table)) <= MOST_PACKED:
            continue
        values = table.astype(np.float32) * columns
        kind = np.iinfo(zero.dtype)
        integers = np.clip(np.rint(values / scale) + zero.astype(np.float32), kind.min, kind.max).astype(zero.dtype)
        tensors[look_up.input[0]].CopyFrom(numpy_helper.from_array(integers, look_up.input[0]))
        look_up.output[0] = node.output[0]
        dropped |= {wide.output[0]}
        node.input[0] = ""
    nodes = [
        n for n in graph.node if n.output[0] not in dropped and not (n.op_type == "QuantizeLinear" and not n.input[0])
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unread(graph, "DequantizeLinear")
