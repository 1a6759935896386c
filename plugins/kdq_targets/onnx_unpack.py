"""The decoders of packed weights, as ONNX nodes on constants."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from kdq_targets.onnx_packed import IN_A_BYTE, PackedWeight


def digits(base: int) -> np.ndarray:
    """List the digits of each byte, lowest first: uint8, shape `[base ** k, k]`."""
    count = IN_A_BYTE[base]
    return np.stack([np.arange(base**count) // base**place % base for place in range(count)], 1).astype(np.uint8)


def pack_digits(codes: np.ndarray, base: int) -> np.ndarray:
    """Pack digits `[N]` into bytes, lowest first; zeros fill the last. Gives uint8, shape `[ceil(N / k)]`."""
    count = IN_A_BYTE[base]
    rows = np.pad(codes, (0, -len(codes) % count)).reshape(-1, count)
    return (rows.astype(np.int64) @ base ** np.arange(count)).astype(np.uint8)


class Decoders:
    """Constants and nodes of all decoders; weights share what several of them need.

    Attributes:
        constants: TensorProto by name.
        nodes: NodeProto by the name of its output, in the order of computing.
    """

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {}
        self.nodes: dict[str, Any] = {}

    def add(self, weight: PackedWeight) -> None:
        """Add the decoder of `weight`; its last output has the weight's name."""
        rest, step, parts = weight.codes(), 1, list[str]()
        for base in weight.bases:
            table = self._table(weight, base, step)
            parts.append(self._values(weight, pack_digits(rest % base, base), base, table, f"{weight.name}.{step}"))
            rest, step = rest // base, step * base
        value = parts[0]
        for index, part in enumerate(parts[1:]):
            value = self._node("BitwiseOr" if weight.joined else "Add", f"{weight.name}.{index}.or", value, part)
        if len(parts) > 1 and not weight.joined:
            value = self._node("Gather", f"{weight.name}.looked", self._constant(weight.levels), value)
        self._node("Reshape", weight.name, value, self._constant(np.array(weight.values.shape, dtype=np.int64)))

    def _table(self, weight: PackedWeight, base: int, step: int) -> str:
        """The meaning of each byte, `[base ** k, k]`: levels, bits to join, or numbers to add."""
        if weight.joined:
            found = digits(base).astype(np.int16) * step
            end = step * base
            sign = found >= end // 2 if end == math.prod(weight.bases) else np.zeros_like(found, dtype=bool)
            return self._constant((found - end * sign).astype(np.int8))
        stored = self._constant(digits(base) * np.uint8(step))
        wide = self._node("Cast", f"{stored}.wide", stored, to=TensorProto.INT32)
        if len(weight.bases) > 1:
            return wide
        levels = np.pad(weight.levels, (0, base - len(weight.levels)))
        table = self._looked_up(levels, wide)
        if weight.turned is None:
            return table
        return self._node("Concat", f"{table}.both", table, self._looked_up(-levels, wide), axis=0)

    def _looked_up(self, levels: np.ndarray, wide: str) -> str:
        name = self._constant(levels)
        return self._node("Gather", f"{name}.{wide}", name, wide)

    def _values(self, weight: PackedWeight, packed: np.ndarray, base: int, table: str, name: str) -> str:
        """The rows of `table` that `packed` names: `[..., k]` if no further node needs them flat, else `[N]`."""
        whole = weight.values.size % IN_A_BYTE[base] == 0
        if weight.turned is not None:
            packed = packed.reshape(len(weight.turned), -1)
        self.constants[name] = numpy_helper.from_array(packed, name)
        index = self._node("Cast", f"{name}.wide", name, to=TensorProto.INT32)
        if weight.turned is not None:
            index = self._node("Add", f"{name}.index", index, self._second_table(weight.turned, base))
        rows = self._node("Gather", f"{name}.rows", table, index)
        if whole and len(weight.bases) == 1:
            return rows
        flat = self._node("Reshape", f"{name}.flat", rows, self._constant(np.array([-1], dtype=np.int64)))
        if whole:
            return flat
        ends = (self._constant(np.array([end], dtype=np.int64)) for end in (0, weight.values.size))
        return self._node("Slice", f"{name}.values", flat, *ends)

    def _second_table(self, turned: np.ndarray, base: int) -> str:
        """Offset of each channel's rows in the table: int32, `[C, 1]`."""
        stored = self._constant(turned.astype(np.uint8).reshape(-1, 1))
        wide = self._node("Cast", f"{stored}.wide", stored, to=TensorProto.INT32)
        rows = self._constant(np.array(base ** IN_A_BYTE[base], dtype=np.int32))
        return self._node("Mul", f"{wide}.{rows}", wide, rows)

    def _constant(self, values: np.ndarray) -> str:
        content = hashlib.sha256(repr((values.dtype.name, values.shape)).encode() + values.tobytes())
        name = f"packing.{content.hexdigest()}"
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _node(self, kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.setdefault(output, helper.make_node(kind, inputs, [output], **attributes))
        return output


def shipped(graph: Any) -> dict[str, int]:
    """Return the bytes of each packed weight in the file, by the decoded weight's name, without shared tables."""
    sizes = {t.name: math.prod(t.dims) for t in graph.initializer if t.data_type == TensorProto.UINT8}
    parts = {tensor.name: {tensor.name} & sizes.keys() for tensor in graph.initializer}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or not set(node.input) <= parts.keys():
            continue
        read = node.input[1:] if node.op_type == "Gather" else node.input
        parts[node.output[0]] = {name for value in read for name in parts[value]}
        if node.op_type == "Reshape" and parts[node.output[0]]:
            found[node.output[0]] = sum(sizes[name] for name in parts[node.output[0]])
    return found
