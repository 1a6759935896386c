"""A view of an ONNX graph for rewrites: what makes and reads each value, its shape, and nodes in place of others."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import numpy_helper

from kdq_targets.onnx_parts import drop_unread

WIDENING = ("DequantizeLinear", "Cast", "Mul")


class View:
    """Makers, readers and shapes as they are when the view is made; new nodes stand in it until `finish`.

    Args:
        graph: the ONNX graph, with the shapes that the exporter recorded.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.makers = {output: node for node in graph.node for output in node.output}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[Any]] = {value.name: [None] for value in graph.output}
        for node in graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.order = {id(node): index for index, node in enumerate(graph.node)}
        self.before: dict[int, list[Any]] = {}
        self.instead: dict[int, list[Any]] = {}
        values = (*graph.value_info, *graph.input, *graph.output)
        self._dims = {
            v.name: [d.dim_param or d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in values
        }

    def finish(self) -> None:
        """Put the new nodes in their places, and drop what nothing reads any longer."""
        if not self.before and not self.instead:
            return
        nodes = [
            new
            for node in self.graph.node
            for new in (*self.before.get(id(node), ()), *self.instead.get(id(node), (node,)))
        ]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        drop_unread(self.graph)

    def dims(self, name: str) -> list[Any]:
        """The shape of a value; a free size is its symbol, an unknown one `None`, an unknown shape empty."""
        if name in self.tensors:
            return list(self.tensors[name].dims)
        maker = self.makers.get(name)
        if name not in self._dims and maker is not None and maker.op_type in WIDENING:
            return self.dims(maker.input[0])
        return self._dims.get(name, [])

    def maker(self, value: str, kind: str, perm: tuple[int, ...] | None = None) -> Any:
        """The node that makes `value`, if it is of this kind and permutes axes in this way; else `None`."""
        node = self.makers.get(value)
        return node if node is not None and node.op_type == kind and (perm is None or perm_of(node) == perm) else None

    def alone(self, value: str) -> bool:
        """Whether one node reads `value`, once, and the model does not give it."""
        return len(self.readers.get(value, [])) == 1 and self.readers[value][0] is not None

    def next(self, value: str, kind: str, perm: tuple[int, ...] | None = None) -> Any:
        """The only reader of `value`, as its first input, if it is of this kind; else `None`."""
        node = self.readers[value][0] if self.alone(value) else None
        fits = node is not None and node.op_type == kind and node.input[0] == value
        return node if fits and (perm is None or perm_of(node) == perm) else None

    def next_rounded(self, value: str, kind: str, perm: tuple[int, ...] | None = None) -> Any:
        """As `next`, behind any roundings of `value`."""
        while self.alone(value) and self.readers[value][0].input[0] == value and self.rounds(self.readers[value][0]):
            value = str(self.readers[value][0].output[0])
        return self.next(value, kind, perm)

    def rounds(self, node: Any) -> bool:
        """Whether a node only rounds or clips, on one grid for all values."""
        grid = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        return node.op_type == "Clip" or (
            grid and self.tensors.get(node.input[1]) is not None and self.size(node.input[1]) == 1
        )

    def size(self, name: str) -> int:
        """How many values a constant has; 0 if it is none."""
        return int(np.prod(self.tensors[name].dims)) if name in self.tensors else 0

    def constant(self, name: str) -> Any:
        """The array of an initializer, or `None`."""
        return numpy_helper.to_array(self.tensors[name]) if name in self.tensors else None

    def shape(self, reshape: Any) -> list[int]:
        """The constant shape that a Reshape, Squeeze or Unsqueeze is given; empty if it is computed."""
        found = self.constant(reshape.input[1]) if len(reshape.input) > 1 else None
        return [] if found is None else [int(size) for size in found.reshape(-1)]

    def add(self, name: str, value: Any) -> str:
        """Add an initializer; give its name."""
        self.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        return name

    def bypass(self, node: Any) -> None:
        """Let the readers of a node read its input."""
        self.reread(node.output[0], node.input[0])
        self.instead[id(node)] = []

    def reread(self, value: str, other: str) -> None:
        """Let all that read `value` read `other`."""
        for reader in self.readers[value]:
            reader.input[:] = [other if name == value else name for name in reader.input]


def attribute(node: Any, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def perm_of(node: Any) -> tuple[int, ...]:
    """The permutation of a Transpose."""
    return next((tuple(item.ints) for item in node.attribute if item.name == "perm"), ())
