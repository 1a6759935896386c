"""Evaluator `size`: how large the shipped file is, and what it consists of.

What: bytes of the file (with external data files, if it has any), bytes of its weights by type, number of stored
    parameters, and how many times smaller it is than the float student's file.
Formula: compression = bytes of the baseline / bytes of the candidate, graph and metadata included on both sides.
    A weight is a constant tensor of two or more dimensions. A parameter is an element of any floating-point, int8,
    uint8 or int32 constant that is not a scale or zero point. Constants are initialisers and Constant nodes, in
    subgraphs too, because exporters hide weights in both. If weights are packed, several to a byte, their bytes are
    those in the file, tables included, and their parameters are the decoded ones.
Source: ONNX IR specification (TensorProto, external data). KDQ reads the file, not the model in PyTorch, because
    exporters have left float weights in the file beside the int8 ones.
Defaults and where they come from: no options.
Costs: one read of the file.
Limits: ONNX files only. Weights count as packed if constant bytes look them up in a table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdq_core.api import Batches, Column, Evaluator, Metric, StageError, Subject

if TYPE_CHECKING:
    from pathlib import Path

SCALES = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}
"""Inputs that are scale and zero point, by operator."""


class Size(Evaluator):
    """Bytes of the file, of its weights by type, and compression against the float student."""

    metrics: ClassVar[tuple[str, ...]] = (
        "bytes",
        "weight_bytes_int8",
        "weight_bytes_float",
        "parameters",
        "compression",
    )
    columns: ClassVar[tuple[Column, ...]] = (Column(heading="bytes", metric="bytes", form="{:,.0f}"),)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return metrics in bytes and counts, without running the file.

        Raises:
            StageError: the file is not an ONNX file.
        """
        ours = read(candidate.path)
        ratio = read(baseline.path).bytes / ours.bytes
        return (
            metric("bytes", ours.bytes, "bytes", "lower"),
            metric("weight_bytes_int8", ours.int8, "bytes", "neither"),
            metric("weight_bytes_float", ours.floating, "bytes", "lower"),
            metric("parameters", ours.parameters, "count", "neither"),
            metric("compression", ratio, "ratio", "higher"),
        )


@dataclass(frozen=True)
class Contents:
    """Counts of a file: its bytes with external data, bytes of int8 and of float weights, stored parameters by bits."""

    bytes: int
    int8: int
    floating: int
    by_bits: dict[float, int]

    @property
    def parameters(self) -> int:
        """The number of all stored parameters."""
        return sum(self.by_bits.values())


def metric(name: str, value: float, unit: str, direction: Literal["higher", "lower", "neither"]) -> Metric:
    """Make a metric of an exact figure, without an interval."""
    return Metric(name=name, value=value, unit=unit, direction=direction)


def read(path: Path) -> Contents:
    """Count the constants of an ONNX file.

    Raises:
        StageError: the file is not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise StageError(f"evaluator 'size' reads ONNX files, but {path.name!r} is none; leave it out") from error
    int8 = floating = packed_bytes = 0
    by_bits: Counter[float] = Counter()
    external: set[str] = set()
    skipped = set(scales(model.graph))
    packing, packed_parameters = packed(model.graph)
    for name, tensor in constants(model.graph):
        external |= {entry.value for entry in tensor.external_data if entry.key == "location"}
        kind, elements = tensor_dtype_to_np_dtype(tensor.data_type), math.prod(tensor.dims)
        number, is_int8 = kind.name.startswith(("float", "bfloat")), kind.name in ("int8", "uint8")
        if name in packing:
            int8 += elements * is_int8
            packed_bytes += elements * kind.itemsize
        elif name not in skipped and (number or is_int8 or kind.name == "int32"):
            by_bits[8.0 * kind.itemsize] += elements
            int8 += elements * is_int8 * (len(tensor.dims) > 1)
            floating += elements * kind.itemsize * number * (len(tensor.dims) > 1)
    total = path.stat().st_size + sum((path.parent / name).stat().st_size for name in external)
    if packed_parameters:
        by_bits[8 * packed_bytes / packed_parameters] += packed_parameters
    return Contents(bytes=total, int8=int8, floating=floating, by_bits=dict(by_bits))


def graphs(graph: Any) -> Iterator[Any]:
    """Yield `graph` and every graph inside its nodes (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def constants(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and TensorProto of every initialiser and Constant node."""
    for part in graphs(graph):
        yield from ((tensor.name, tensor) for tensor in part.initializer)
        for node in part.node:
            if node.op_type == "Constant":
                yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def scales(graph: Any) -> Iterator[str]:
    """Yield the names of the tensors that are a scale or a zero point."""
    for part in graphs(graph):
        for node in part.node:
            yield from (node.input[i] for i in SCALES.get(node.op_type, ()) if i < len(node.input))


def packed(graph: Any) -> tuple[set[str], int]:
    """Return the names of the constants that packed weights are decoded from, and the number of decoded weights."""
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    octets = {name for name, tensor in tensors.items() if tensor.data_type == TensorProto.UINT8 and tensor.dims}
    made_of = {name: {name} for name in tensors}
    ends: dict[str, int] = {}
    looked_up: set[str] = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or not set(node.input) <= made_of.keys():
            continue
        value = node.output[0]
        made_of[value] = {name for part in node.input for name in made_of[part]}
        if node.op_type == "Gather" or looked_up & set(node.input):
            looked_up.add(value)
        for part in node.input:
            ends.pop(part, None)
        if node.op_type == "Reshape" and value in looked_up and made_of[value] & octets and node.input[1] in tensors:
            ends[value] = math.prod(numpy_helper.to_array(tensors[node.input[1]]).tolist())
    return {name for value in ends for name in made_of[value]}, sum(ends.values())
