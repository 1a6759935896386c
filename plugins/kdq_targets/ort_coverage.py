"""What ONNX Runtime really runs: its own optimised graph, read operator by operator."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import onnx
from torch.fx import Node

from kdq_core.api import OperatorCoverage, StageError
from kdq_targets.ort_places import Finder, module_path, weight_of
from kdq_targets.ort_session import OrtSession
from kdq_targets.ort_shrink import CARRIERS, mark, mark_behind, mark_weight

INT8_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention")


def optimized_graph(path: Path) -> Any:
    """The graph the runtime makes of the file, at the level it runs with."""
    with tempfile.TemporaryDirectory(prefix="kdq-coverage-") as folder:
        written = Path(folder) / "optimized.onnx"
        OrtSession(path, optimized=written)
        return onnx.load(str(written)).graph


def cover(path: Path, finder: Finder) -> tuple[OperatorCoverage, ...]:
    """One row for each conv, linear, add, mul, pool and concat of the captured graph.

    Raises:
        StageError: the file is not one that this target wrote from this graph.
    """
    ran = {node.name: node for node in optimized_graph(path).node}
    file = _File(onnx.load(str(path)).graph)
    rows = tuple(_row(node, kind, reason, finder, file, ran) for node, kind, reason in finder.operators())
    if rows and all(row.kernel == "none" for row in rows):
        raise StageError(f"ONNX file {str(path)!r} was not written from this model; export it again")
    return rows


class _File:
    def __init__(self, graph: Any) -> None:
        self.nodes = {node.name: node for node in graph.node if node.name}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.bytes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}

    def weight_bytes(self, name: str) -> int:
        node = self.nodes.get(name)
        value = node.input[1] if node is not None and len(node.input) > 1 else ""
        while value not in self.bytes:
            maker = self.makers.get(value)
            if maker is None or maker.op_type not in CARRIERS:
                return 0
            value = maker.input[0]
        return self.bytes[value]


def _bytes(tensor: Any) -> int:
    return math.prod(tensor.dims) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _row(
    node: Node, kind: str, reason: str, finder: Finder, file: _File, ran: dict[str, Any]
) -> OperatorCoverage:
    weight = weight_of(node) if kind in ("conv", "linear") else None
    marks = [mark(node.name)] if weight is not None else []
    marks += [mark_weight(str(weight.target))] if weight is not None else []
    marks += [mark_behind(finder.tail(node).name)]
    name, kernel = _kernel(marks, ran)
    int8 = kernel.startswith(INT8_KERNELS)
    return OperatorCoverage(
        path=module_path(node) or node.name,
        operator=kind,
        kernel=kernel,
        int8=int8,
        reason="" if int8 else reason or _why(kernel),
        macs=_macs(node, kind),
        weight_bytes=file.weight_bytes(name) if weight is not None else 0,
    )


def _kernel(marks: list[str], ran: dict[str, Any]) -> tuple[str, str]:
    """The mark that was found, and the operator type that carries it."""
    for name in marks:
        for given, node in ran.items():
            if name in given:
                return name, str(node.op_type)
    return "", "none"


def _why(kernel: str) -> str:
    if kernel == "none":
        return "the runtime's graph shows no such operator: it is written as others"
    return f"the runtime made no int8 kernel of it and runs {kernel}"


def _macs(node: Node, kind: str) -> int:
    """Multiply-accumulates for one sample."""
    if kind not in ("conv", "linear"):
        return 0
    weight: Any = node.args[1]
    per_output = math.prod(int(size) for size in weight.meta["val"].shape[1:])
    return per_output * math.prod(int(size) for size in node.meta["val"].shape[1:])
