"""Write recurrent layers in the form that ONNX Runtime runs in int8.

LSTM: `DynamicQuantizeLSTM` measures the range of its whole input and of each state, so that a sample's answer would
depend on the other samples. KDQ pins both ranges. Two columns of the input, with weights 0, hold the ends of its range.
Two hidden units, with weights 0, stay at +1 and -1 (input gate shut, forget and output gate open). More
units that stay at 0 fill up to a multiple of four, for which the runtime's product is faster.
GRU: one product computes the input's part for all steps; a Scan computes the state's part with
`MatMulIntegerToFloat`. If the input is float, the weights are int8 in the file and float in memory: the runtime folds
`Cast` and `Mul`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from kdq_targets.onnx_gru import gru_scan
from kdq_targets.onnx_parts import Parts, drop_unread, find_constant, find_integers
from kdq_targets.onnx_translate import RECURRENT

ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}
"""ONNX's order of gates, as indices into PyTorch's: i f g o -> i o f g, r z n -> z r n."""
SHUT, OPEN, HELD = -60.0, 60.0, 30.0
"""Biases that make a sigmoid 0 and 1, and the cell state whose tanh is 1, in float32."""
CONTRIB = "com.microsoft"


def expand(proto: Any, gru: Callable[..., None] = gru_scan) -> None:
    """Rewrite the marked recurrent layers of a fresh ONNX model, in place; `gru` writes an int8 GRU."""
    graph = proto.graph
    nodes = list(graph.node)
    marked = {id(n): p.value for n in nodes for p in n.metadata_props if p.key == RECURRENT}
    if not marked:
        return
    parts = Parts(graph)
    del graph.node[:]
    for node in nodes:
        if id(node) not in marked:
            graph.node.append(node)
            continue
        parts.begin(node, marked[id(node)])
        _layer(parts, node, gru)
        graph.node.extend(parts.nodes)
    drop_unread(graph)
    if not any(entry.domain == CONTRIB for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _layer(parts: Parts, node: Any, gru: Callable[..., None]) -> None:
    w, r = (find_integers(parts, node.input[index]) for index in (1, 2))
    x = parts.makers.get(node.input[0])
    if w is None or r is None:
        _float(parts, node)
    elif parts.label == "float" or x is None:
        parts.label = w.label or "float"
        _weights_only(parts, node, w, r)
    else:
        (lstm if node.op_type == "LSTM" else gru)(parts, node, x, w, r)


def _by_gate(value: Any, op_type: str) -> Any:
    """Reorder the gates along axis 1 of `[D, G * H, ...]`."""
    order = ORDER[op_type]
    gates = value.reshape(value.shape[0], len(order), -1, *value.shape[2:])
    return np.ascontiguousarray(gates[:, order].reshape(value.shape))


def _biases(parts: Parts, node: Any) -> Any:
    """Input and state biases `[D, 2, G * H]` in PyTorch's order, or `None`."""
    b = find_constant(parts, node.input[3]) if node.input[3] else None
    return None if b is None else b.reshape(len(b), 2, -1)


def _set_biases(parts: Parts, node: Any) -> str:
    b = _biases(parts, node)
    if b is None:
        return ""
    halves = [_by_gate(b[:, half], node.op_type) for half in (0, 1)]
    return parts.constant("b", np.concatenate(halves, axis=1))


def _float(parts: Parts, node: Any) -> None:
    w, r = (_by_gate(find_constant(parts, node.input[index]), node.op_type) for index in (1, 2))
    node.input[1], node.input[2] = parts.constant("w", w), parts.constant("r", r)
    node.input[3] = _set_biases(parts, node)
    node.name = ""
    parts.nodes.append(node)


def _weights_only(parts: Parts, node: Any, w: Any, r: Any) -> None:
    for index, name, value in ((1, "w", w), (2, "r", r)):
        q = parts.constant(f"{name}_q", _by_gate(value.q, node.op_type))
        scale = parts.constant(f"{name}_scale", _by_gate(value.scale, node.op_type)[:, :, None])
        wide = parts.add("Cast", [q], to=onnx.TensorProto.FLOAT)
        node.input[index] = parts.add("Mul", [wide, scale])
    node.input[3] = _set_biases(parts, node)
    node.name = parts.mark
    parts.nodes.append(node)


def lstm(parts: Parts, node: Any, x: Any, w: Any, r: Any) -> None:
    """Write one layer as a `DynamicQuantizeLSTM` with pinned ranges."""
    ways, gates, hidden = r.q.shape
    wide = -(-(hidden + 2) // 4) * 4
    zero = int(find_constant(parts, x.input[2]))
    pins = [255] if zero == 0 else [0, 255]
    q = str(x.input[0])
    for pin in pins:
        q = parts.pad(q, 3, np.array(pin, dtype=np.uint8))
    given = parts.add("DequantizeLinear", [q, *x.input[1:3]])
    states = [str(name) for name in node.input[5:7]]
    for index, ends in enumerate(((1.0, -1.0), (HELD, -HELD))):
        for end in ends:
            states[index] = parts.pad(states[index], 3, np.array(end, dtype=np.float32))
        if wide > hidden + 2:
            states[index] = parts.pad(states[index], 3, np.array(0.0, dtype=np.float32), wide - hidden - 2)
    inputs, input_scale = _widened(w.q, w.scale, wide, len(pins))
    recurrent, state_scale = _widened(r.q, r.scale, wide, wide - hidden)
    b = _biases(parts, node)
    b = np.zeros((ways, 2, gates), dtype=np.float32) if b is None else b
    outputs = [f"{parts.prefix}wide_{index}" if name else "" for index, name in enumerate(node.output)]
    zeros = parts.constant("zeros", np.zeros((ways, 4 * wide), dtype=np.int8))
    parts.nodes.append(helper.make_node(
        "DynamicQuantizeLSTM",
        [given, parts.constant("w", inputs), parts.constant("r", recurrent), parts.constant("b", _pinned(b, wide)), "",
         *states, "", parts.constant("w_scale", input_scale), zeros, parts.constant("r_scale", state_scale), zeros],
        outputs, name=parts.mark, domain=CONTRIB, hidden_size=wide,
        direction="bidirectional" if ways == 2 else "forward",
    ))  # fmt: skip
    for made, name in zip(outputs, node.output, strict=True):
        if name:
            axis = 3 if name == node.output[0] else 2
            bounds = [parts.constant(f"{name}_{key}_{axis}", np.array([at])) for key, at in
                    (("from", 0), ("to", hidden), ("axis", axis))]  # fmt: skip
            parts.add("Slice", [made, *bounds], output=name)


def _widened(q: Any, scale: Any, wide: int, rows: int) -> tuple[Any, Any]:
    """Turn `[D, 4H, I]` into `[D, I + rows, 4 * wide]` in ONNX's order; added rows and units have weight 0."""
    ways, channels, width = q.shape
    hidden = channels // 4
    weights = np.zeros((ways, 4, wide, width + rows), dtype=np.int8)
    weights[:, :, :hidden, :width] = _by_gate(q, "LSTM").reshape(ways, 4, hidden, width)
    scales = np.ones((ways, 4, wide), dtype=np.float32)
    scales[:, :, :hidden] = _by_gate(scale, "LSTM").reshape(ways, 4, hidden)
    transposed = weights.reshape(ways, 4 * wide, width + rows).transpose(0, 2, 1)
    return np.ascontiguousarray(transposed), scales.reshape(ways, 4 * wide)


def _pinned(b: Any, wide: int) -> Any:
    """Biases `[D, 8 * wide]`, with which the two added units keep their values, and further ones stay at 0."""
    ways, hidden = len(b), b.shape[2] // 4
    result = np.zeros((ways, 2, 4, wide), dtype=np.float32)
    for half in (0, 1):
        result[:, half, :, :hidden] = _by_gate(b[:, half], "LSTM").reshape(ways, 4, hidden)
    result[:, 0, :3, hidden : hidden + 2] = np.array([SHUT, OPEN, OPEN], dtype=np.float32)[:, None]
    return result.reshape(ways, 8 * wide)
