"""Find which kernel a runtime really runs for each operator, by comparing the file with the runtime's own graph."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Protocol

import onnx
from torch.fx import Node

from kdq_core.api import OperatorCoverage, StageError, module_path
from kdq_targets.onnx_operators import weight_of
from kdq_targets.onnx_places import Finder
from kdq_targets.onnx_products import activation_macs, float_bytes
from kdq_targets.onnx_shrink import CARRIERS, WEIGHTED, mark, mark_behind, mark_weight
from kdq_targets.onnx_unpack import shipped

COMPUTING = ("conv", "linear")
LAYERS = (*COMPUTING, "embedding", "conv_transpose")


class Kernels(Protocol):
    """The kernels that a runtime chose for a file."""

    def of(self, node: Any, file: File) -> str:
        """Return the type of the kernel that runs for a node of the shipped graph, or `none`."""

    def like(self, kind: str) -> str:
        """Return the type of an unmarked float operator of this kind in the runtime's graph, or `none`."""

    def int8(self, kernel: str, node: Any) -> bool:
        """Say whether a kernel computes in int8; `node` is the shipped node, or `None` if it is meant to be float."""


def cover(path: Path, finder: Finder, kernels: Kernels) -> tuple[OperatorCoverage, ...]:
    """Return one row for each operator of the captured graph that computes something.

    A layer may be missing in the file: the exporter merges layers of equal weights that read the same tensor.

    Args:
        path: the shipped file.
        finder: the finder of the captured graph.
        kernels: the kernels that the runtime chose for the file.

    Raises:
        StageError: this target did not write the file from this graph.
    """
    file = File(onnx.load(str(path)).graph)
    rows = tuple(_row(node, kind, reason, finder, file, kernels) for node, kind, reason in finder.operators())
    layers = [row for row in rows if row.operator in COMPUTING]
    if file.quantized - file.found or (layers and all(row.kernel == "none" for row in layers)):
        raise StageError(f"ONNX file {str(path)!r} was not written from this model; export it again")
    return rows


class File:
    """The shipped graph."""

    def __init__(self, graph: Any) -> None:
        self.nodes = {part: node for node in graph.node for part in marks_in(node.name)}
        marks = [node.name for node in graph.node if node.op_type in WEIGHTED and node.name.startswith("<")]
        layers = {name for name in marks if not name.startswith(("<@", "<%")) and not name.endswith(".input>")}
        self.quantized = {name.rstrip("'") for name in layers}  # a layer may be written as several products
        self.found: set[str] = set()
        self.dynamic = any(node.op_type == "DynamicQuantizeLinear" for node in graph.node)
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        packed = shipped(graph)
        self.bytes = {tensor.name: _bytes(tensor) for tensor in graph.initializer} | packed
        self.ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer} | dict.fromkeys(packed, 2)

    def weight_bytes(self, node: Any) -> int:
        """Return the bytes of the weight of a conv, linear or embedding, as shipped: its share of a joined table."""
        if len(node.input) < 2:
            return 0
        stored = self._stored(node.input[0 if node.op_type == "Gather" else 1])
        return stored // max(1, len(marks_in(node.name)))

    def is_widened(self, node: Any) -> bool:
        """Say whether the weight of a float layer is stored as integers."""
        maker = self.makers.get(node.input[1])
        while maker is not None and maker.op_type in CARRIERS:
            maker = self.makers.get(maker.input[0])
        return maker is not None and maker.op_type == "Mul"

    def recurrent_bytes(self, name: str) -> int:
        """Return the bytes of all matrices of a recurrent layer."""
        total = 0
        for node in self.nodes.values():
            if node.name.startswith((f"<{name}>", f"<{name}.")):
                bodies = [item.g for item in node.attribute if item.HasField("g")]
                inside = [value for body in bodies for inner in body.node for value in inner.input]
                total += sum(_bytes(tensor) for body in bodies for tensor in body.initializer if len(tensor.dims) > 1)
                total += sum(self._stored(value) for value in inside)
                total += sum(self._stored(value) for value in node.input[1:3] if value and not bodies)
        return total

    def _stored(self, value: str) -> int:
        """Bytes of the integers or floats of a weight, without its scales."""
        if value in self.bytes:
            return self.bytes[value] if self.ranks[value] > 1 else 0
        maker = self.makers.get(value)
        if maker is None:
            return 0
        if maker.op_type in CARRIERS | {"Mul", "Split"}:  # a part of a weight stands for the whole of it
            return self._stored(maker.input[0])
        return sum(self._stored(part) for part in maker.input) if maker.op_type == "Gather" else 0


def marks_in(name: str) -> list[str]:
    """The marks in the name of a node; one that stands for several operators has theirs one behind the other."""
    return re.findall(r"<[^<>]*>'*", name)


def _bytes(tensor: Any) -> int:
    return int(math.prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _row(node: Node, kind: str, reason: str, finder: Finder, file: File, kernels: Kernels) -> OperatorCoverage:
    written = next((file.nodes[name] for name in _marks(node, kind, finder) if name in file.nodes), None)
    file.found |= set() if written is None else {written.name}
    kernel = "none" if written is None else kernels.of(written, file)
    if kernel == "none" and (reason or kind not in COMPUTING):
        kernel = kernels.like(kind)
    weight_bytes = 0
    if kind in ("lstm", "gru"):
        weight_bytes = file.recurrent_bytes(node.name)
    elif kind in LAYERS and written is not None:
        weight_bytes = file.weight_bytes(written)
    elif kind in ("matmul", "rnn", "bilinear"):
        weight_bytes = float_bytes(node, kind)
    int8 = kernels.int8(kernel, None if reason else written)
    return OperatorCoverage(
        path=module_path(node) or node.name,
        operator=kind,
        kernel=kernel,
        int8=int8,
        reason="" if int8 else reason or _why_of_file(kind, kernel, written, file) or _why(kernel),
        macs=finder.macs(node, kind),
        activation_macs=activation_macs(node, kind),
        weight_bytes=weight_bytes,
    )


def _marks(node: Node, kind: str, finder: Finder) -> list[str]:
    """Names that the operator may have in the file."""
    behind = [mark_behind(finder.tail(node).name)]
    if kind in ("lstm", "gru"):
        return [mark(node.name)]
    weight = weight_of(node) if kind in LAYERS else None
    if weight is None:
        return behind
    same = list(weight.users).index(node)
    shared = [mark_weight(str(weight.target)) + "'" * count for count in range(same, -1, -1)]
    return [mark(node.name), *shared, *behind]


def _why_of_file(kind: str, kernel: str, written: Any, file: File) -> str:
    """Why the quantizer keeps a conv or linear in float that could run in int8; else empty."""
    if kind not in COMPUTING or written is None:
        return ""
    if file.is_widened(written):
        return f"weight-only: stored as integers, computed by the runtime's float {kernel}"
    if kind == "conv" and file.dynamic:
        return f"dynamic: measuring ranges at each call would make it slower than the runtime's float {kernel}"
    return ""


def _why(kernel: str) -> str:
    if kernel == "none":
        return "it has no counterpart in the runtime's graph"
    if kernel in ("LSTM", "GRU"):
        return f"its input is float: int8 weights, and the runtime's float {kernel}"
    return f"the runtime made no int8 kernel of it and runs {kernel}"
