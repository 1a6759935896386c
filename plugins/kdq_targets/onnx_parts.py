"""Helpers to rewrite an ONNX graph: constants, the integers of a dequantized weight, new nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from kdq_targets.onnx_shrink import LABEL, mark


@dataclass(frozen=True)
class Integers:
    """Dequantized weights: `q` int8 `[D, C, I]`, `scale` `[D, C]`, and the label of their operator."""

    q: Any
    scale: Any
    label: str


class Parts:
    """The graph to rewrite, and the nodes that replace one of its nodes.

    Args:
        graph: ONNX graph; `constant` adds to it.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.makers = {output: node for node in graph.node for output in node.output}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[Any] = []
        self.prefix, self.label, self._count = "", "", 0

    def begin(self, node: Any, label: str) -> None:
        """Begin to replace `node`."""
        self.nodes, self.label, self._count = [], label, 0
        self.prefix = f"{node.output[0] or node.output[1]}_kdq_"

    @property
    def mark(self) -> str:
        """Return the name of the node that coverage looks for."""
        return mark(self.label)

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer and return its name."""
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), f"{self.prefix}{name}"))
        return f"{self.prefix}{name}"

    def add(self, op_type: str, inputs: list[str], *, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        self._count += 1
        name = output or f"{self.prefix}{self._count}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], domain=domain, **attributes))
        return name

    def pad(self, value: str, rank: int, end: Any, columns: int = 1) -> str:
        """Append columns of `end` along the last axis."""
        self._count += 1
        pads = self.constant(f"pads_{self._count}", np.array([0] * (2 * rank - 1) + [columns], dtype=np.int64))
        return self.add("Pad", [value, pads, self.constant(f"pin_{self._count}", end)])


def find_constant(parts: Parts, name: str) -> Any:
    """Return the array of a value that constants alone determine, or `None`."""
    if name in parts.tensors:
        return numpy_helper.to_array(parts.tensors[name])
    node = parts.makers.get(name)
    if node is None:
        return None
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Constant":
        value = next(iter(attributes.values()))
        return numpy_helper.to_array(value) if hasattr(value, "dims") else np.array(value)
    given = [find_constant(parts, value) for value in node.input]
    if any(value is None for value in given):
        return None
    if node.op_type == "Reshape":
        return given[0].reshape(given[1])
    if node.op_type == "Unsqueeze":
        return np.expand_dims(given[0], tuple(int(axis) for axis in given[1]))
    if node.op_type == "MatMul":
        return np.matmul(*given)
    if node.op_type == "Concat":
        return np.concatenate(given, axis=attributes["axis"])
    return given[0] if node.op_type == "Identity" else None


def find_integers(parts: Parts, name: str) -> Integers | None:
    """Return the integers of a dequantized value `[D, C, I]`, or `None`."""
    node = parts.makers.get(name)
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        q, scale = (find_constant(parts, value) for value in node.input[:2])
        label = next((p.value for p in node.metadata_props if p.key == LABEL), "")
        return None if q is None or scale is None else Integers(q, scale, label)
    if node.op_type == "Concat":
        found = [find_integers(parts, value) for value in node.input]
        whole = [value for value in found if value is not None]
        if len(whole) < len(found):
            return None
        q, scale = (np.concatenate([getattr(value, key) for value in whole]) for key in ("q", "scale"))
        return Integers(q, scale, whole[0].label)
    if node.op_type not in ("Reshape", "Unsqueeze"):
        return None
    inner = find_integers(parts, node.input[0])
    if inner is None:
        return None
    shape = (1, *inner.q.shape) if node.op_type == "Unsqueeze" else tuple(find_constant(parts, node.input[1]))
    return Integers(inner.q.reshape(shape), inner.scale.reshape(shape[:2]), inner.label)


def drop_unread(graph: Any, kind: str | None = None) -> None:
    """Drop nodes that nothing reads, of one operator only if `kind` names it, and then constants that nothing reads."""
    ends = {value.name for value in graph.output}
    while True:
        bodies = [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
        used = ends | {name for part in (graph, *bodies) for node in part.node for name in node.input}
        kept = [n for n in graph.node if kind not in (None, n.op_type) or any(name in used for name in n.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
