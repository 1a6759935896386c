"""Shrink everything in a file that is not numbers: names of two letters, no stack traces, no doc strings.

Operators keep a mark that leads back to the captured graph. Its angle brackets separate it from ONNX Runtime's own
additions to a name: `<conv2d_3>` for a quantized conv or linear (its FX node), `<@relu_2>` for another operator (the FX
node that is quantized after it), `<%layer.weight>` for a float conv or linear (its parameter).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx

from kdq_targets.onnx_compact import derive_bias_scales, drop_defaults, drop_repeated_clips

LABEL = "kdq"
WEIGHTED = {"Conv", "Gemm", "MatMul", "ConvTranspose"}
CARRIERS = {"DequantizeLinear", "Transpose", "Cast", "Reshape", "QuantizeLinear"}
ATTENTION = 23
"""The first opset of ONNX that has the operator `Attention`."""
THROUGH = {"Relu", "Clip", "Identity", "Flatten", "Reshape", "Squeeze"}


def mark(node: str) -> str:
    """Return the mark of a quantized conv or linear."""
    return f"<{node}>"


def mark_behind(node: str) -> str:
    """Return the mark of an operator that is found by the quantized tensor after it."""
    return f"<@{node}>"


def mark_weight(parameter: str) -> str:
    """Return the mark of a float conv or linear."""
    return f"<%{parameter}>"


def label_layers(graph: Any) -> None:
    """Label each layer of a fresh IR graph with its mark, while equal weights are still apart.

    Torch's optimizer merges constants and operators that are equal; a layer's weight no longer tells which it is then.
    """
    for node in graph:
        value, label = (node.inputs[1] if node.op_type in WEIGHTED else None), ""
        while value is not None and not value.is_initializer():
            maker = value.producer()
            if maker is None or maker.op_type not in CARRIERS:
                value = None  # a product of two activations
            else:
                label = label or maker.metadata_props.get(LABEL, "")
                value = maker.inputs[0]
        if value is not None:
            node.metadata_props[LABEL] = mark(label) if label else mark_weight(value.name)


def shrink(proto: Any, rewrites: Sequence[Callable[[Any], None]] = (), tasks: Sequence[str] = ()) -> None:
    """Rewrite a fresh ONNX model in place: mark operators, shorten names, remove what is not used.

    The `rewrites` of a target run between marking and renaming: they see the marks, and may name values as they like.
    Outputs are named after `tasks`, or else `logits`, `output_1` and so on.
    """
    graph = proto.graph
    _name_nodes(graph)
    _guard_float(graph)
    drop_defaults(graph)
    drop_repeated_clips(graph)
    derive_bias_scales(graph)
    for rewrite in rewrites:
        rewrite(graph)
    _strip(proto)
    if any(node.op_type == "Attention" for node in graph.node):
        next(entry for entry in proto.opset_import if not entry.domain).version = ATTENTION
    _rename_values(graph, tasks)


def _name_nodes(graph: Any) -> None:
    makers = {output: node for node in graph.node for output in node.output}
    initializers = {tensor.name for tensor in graph.initializer}
    labels = {id(node): p.value for node in graph.node for p in node.metadata_props if p.key == LABEL}
    names: dict[int, str] = {}
    for node in graph.node:
        if node.op_type in WEIGHTED:
            names[id(node)] = _weight_mark(node, makers, initializers, labels)
        elif node.op_type == "MatMulInteger" and id(node) in labels:
            names[id(node)] = mark(labels[id(node)])
    for node in graph.node:
        behind = labels.get(id(node), "") if node.op_type == "QuantizeLinear" else ""
        maker = makers.get(node.input[0]) if behind else None
        while maker is not None and maker.op_type in THROUGH:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type not in CARRIERS:
            own = maker.name if maker.name.startswith("<") else ""
            names[id(maker)] = names.get(id(maker)) or own or mark_behind(behind)
    taken: set[str] = set()
    for node in graph.node:
        name = names.get(id(node), node.name if node.name.startswith("<") else "")
        while name in taken:  # operators with one weight
            name += "'"
        taken |= {name} - {""}
        node.name = name


def _weight_mark(node: Any, makers: dict[str, Any], initializers: set[str], labels: dict[int, str]) -> str:
    """The mark that `label_layers` gave; else, if a rewrite made the node anew, that of its weight."""
    if labels.get(id(node), "").startswith("<"):
        return labels[id(node)]
    value, label = node.input[1], ""
    while value not in initializers:
        maker = makers.get(value)
        if maker is None or maker.op_type not in CARRIERS:
            return ""
        label = label or labels.get(id(maker), "")
        value = maker.input[0]
    return mark(label) if label else mark_weight(value)


def _guard_float(graph: Any) -> None:
    """Keep a float layer float.

    If a float layer lies between DequantizeLinear and QuantizeLinear, ONNX Runtime rounds its weight to int8 by itself.
    A LeakyRelu of slope 1 after the layer prevents that. It changes no value and is fused into the layer.
    """
    makers = {output: node for node in graph.node for output in node.output}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        maker = makers.get(node.input[0]) if _is_float_layer(node, makers) else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            value = f"{node.output[0]}_float"
            guard = onnx.helper.make_node("LeakyRelu", [value], [node.output[0]], alpha=1.0)
            graph.node[-1].output[0] = value
            graph.node.append(guard)


def _is_float_layer(node: Any, makers: dict[str, Any]) -> bool:
    """Whether a layer has a float weight, or integers that the runtime turns into floats when it loads the file."""
    if node.name.startswith("<%"):
        return True
    value = makers.get(node.input[1]) if node.op_type in WEIGHTED and node.name.startswith("<") else None
    while value is not None and value.op_type in CARRIERS:
        if value.op_type == "DequantizeLinear":
            return False
        value = makers.get(value.input[0])
    return value is not None and value.op_type == "Mul"


def _strip(proto: Any) -> None:
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "kdq"
    proto.producer_name, proto.producer_version = "kdq", ""
    bodies = [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
    used = {node.domain for part in (graph, *bodies) for node in part.node} | {""}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _rename_values(graph: Any, tasks: Sequence[str]) -> None:
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        if shape.dim and shape.dim[0].dim_param:
            shape.dim[0].dim_param = "batch"
    names = {value.name: value.name for value in graph.input} | {"": ""}
    for index, value in enumerate(graph.output):
        names[value.name] = tasks[index] if tasks else f"output_{index}" if index else "logits"
    short = (name for name in _short_names() if name not in names.values())
    for item in (*graph.initializer, *graph.output):
        if item.name not in names:
            names[item.name] = next(short)
        item.name = names[item.name]
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                if name not in names:
                    names[name] = next(short)
                values[index] = names[name]
        for inner in (inner for item in node.attribute if item.HasField("g") for inner in item.g.node):
            inner.input[:] = [names.get(name, name) for name in inner.input]  # values of this graph that a body reads


def _short_names() -> Iterator[str]:
    letters = string.ascii_lowercase + string.digits
    yield from string.ascii_lowercase
    for first in string.ascii_lowercase:
        for second in letters:
            yield first + second
    for first in string.ascii_lowercase:
        for second in letters:
            for third in letters:
                yield first + second + third
