"""Clip integers instead of floats, so that nothing separates an operator from its quantization.

`Q(clip(x, low, high)) = clip(Q(x), Q(low), Q(high))`, because Q never decreases. If a scale differs in its last bit,
ONNX Runtime cannot merge a float Clip or Relu, and would leave the conv before it in float. Jacob et al. 2018, section
2.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from kdq_targets.onnx_shrink import LABEL, mark

INTEGERS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


def fuse(proto: Any) -> None:
    """Rewrite Relu and Clip before each QuantizeLinear of a fresh ONNX model, in place."""
    _Fuser(proto.graph).run()
    _mark_tables(proto.graph)


def _mark_tables(graph: Any) -> None:
    """Name the look-up of each embedding after its label, which is on a node after it, or before a table of floats."""
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        table = makers.get(node.input[0]) if node.op_type == "Gather" else None
        if table is not None and table.op_type == "Transpose":
            table = makers.get(table.input[0])
        labels = [] if table is None else [p.value for p in table.metadata_props if p.key == LABEL]
        if labels:
            node.name = mark(labels[0])
    for node in graph.node:
        gather = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        labels = [p.value for p in node.metadata_props if p.key == LABEL]
        if gather is not None and gather.op_type == "Gather" and labels:
            gather.name = mark(labels[0])


class _Fuser:
    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.values = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[Any]] = {value.name: [None] for value in graph.output}
        for node in graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)

    def run(self) -> None:
        nodes = []
        for node in self.graph.node:
            nodes.append(node)
            if node.op_type == "QuantizeLinear":
                nodes += self._quantize(node)
        used = {value for node in nodes for value in node.input} | {value.name for value in self.graph.output}
        kept = [n for n in nodes if n.op_type not in ("Relu", "Clip") or used & set(n.output)]
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def _array(self, name: str) -> np.ndarray | None:
        tensor = self.values.get(name)
        maker = self.makers.get(name)
        if tensor is None and maker is not None and maker.op_type == "Constant":
            tensor = next((item.t for item in maker.attribute if item.name == "value"), None)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _bounds(self, node: Any) -> tuple[float, float] | None:
        if node.op_type == "Relu":
            return 0.0, float("inf")
        ends = [self._array(name) if name else None for name in node.input[1:3]]
        if any(name and end is None for name, end in zip(node.input[1:3], ends, strict=True)):
            return None
        low, high = [*ends, None, None][:2]
        return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)

    def _quantize(self, node: Any) -> list[Any]:
        """Remove the clipping before `node` and return the nodes to put after it."""
        scale, zero = self._array(node.input[1]), self._array(node.input[2]) if len(node.input) > 2 else None
        if scale is None or zero is None or scale.ndim:
            return []
        low, high = float("-inf"), float("inf")
        while True:
            value = str(node.input[0])
            maker = self.makers.get(value)
            if maker is None or maker.op_type not in ("Relu", "Clip") or len(self.readers[value]) > 1:
                break
            before = self.makers.get(maker.input[0])
            if before is None or before.op_type == "DequantizeLinear":
                self._look_up(maker, before)
                break
            bounds = self._bounds(maker)
            if bounds is None:
                break
            low, high = min(max(low, bounds[0]), bounds[1]), max(min(high, bounds[1]), bounds[0])
            node.input[0] = maker.input[0]
        least, greatest = INTEGERS[zero.dtype]
        ends = [_rounded(end, scale, zero, least, greatest) for end in (low, high)]
        return self._clip(node, ends, (least, greatest), zero.dtype)

    def _look_up(self, node: Any, before: Any) -> None:
        """Write a relu between quantized tensors as LeakyRelu: the runtime has an int8 table for it, none for Relu."""
        if node.op_type == "Relu" and before is not None:
            node.op_type = "LeakyRelu"
            node.attribute.append(onnx.helper.make_attribute("alpha", 0.0))

    def _clip(self, node: Any, ends: list[int], limits: tuple[int, int], dtype: Any) -> list[Any]:
        if tuple(ends) == limits:
            return []
        readers = self.readers[node.output[0]]
        following = readers[0] if len(readers) == 1 and readers[0] is not None else None
        if following is not None and following.op_type == "Clip":
            given = [self._array(name) if name else None for name in following.input[1:3]]
            given += [None] * (2 - len(given))
            ends = [
                max(ends[0], limits[0] if given[0] is None else int(given[0])),
                min(ends[1], limits[1] if given[1] is None else int(given[1])),
            ]
            del following.input[1:]
            following.input.extend(self._limits(ends, limits, dtype))
            return []
        value = f"{node.output[0]}_wide"
        clip = onnx.helper.make_node("Clip", [value, *self._limits(ends, limits, dtype)], [node.output[0]])
        node.output[0] = value
        return [clip]

    def _limits(self, ends: list[int], limits: tuple[int, int], dtype: Any) -> list[str]:
        names = []
        for end, limit in zip(ends, limits, strict=True):
            name = "" if end == limit else f"kdq_limit_{dtype}_{end}"
            if name and name not in self.values:
                self.values[name] = numpy_helper.from_array(np.array(end, dtype=dtype), name)
                self.graph.initializer.append(self.values[name])
            names.append(name)
        return names if names[1] else names[:1]


def _rounded(value: float, scale: Any, zero: Any, least: int, greatest: int) -> int:
    if np.isinf(value):
        return least if value < 0 else greatest
    return int(np.clip(np.rint(np.float32(value) / scale) + np.float32(zero), least, greatest))
