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
from kdq_targets.ort_shrink import CARRIERS, WEIGHTED, mark, mark_behind, mark_weight

INT8_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention")
LAYOUT = {"ReorderOutput", "ReorderInput", "Transpose", "Reshape", "Flatten", "Squeeze"}
FUSABLE = {"Relu", "Clip", "LeakyRelu", "Add"}


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
    file = _File(onnx.load(str(path)).graph, optimized_graph(path))
    rows = tuple(_row(node, kind, reason, finder, file) for node, kind, reason in finder.operators())
    weighted = [row for row in rows if row.operator in ("conv", "linear")]
    if len(weighted) != file.weighted or any(row.kernel == "none" for row in weighted):
        raise StageError(f"ONNX file {str(path)!r} was not written from this model; export it again")
    return rows


class _File:
    """The shipped graph beside the one that runs."""

    def __init__(self, graph: Any, ran: Any) -> None:
        self.nodes = {node.name: node for node in graph.node if node.name}
        self.weighted = sum(node.name.startswith("<") and node.op_type in WEIGHTED for node in graph.node)
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.bytes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
        self.ran_names = {node.name: str(node.op_type) for node in ran.node}
        makers = {output: node for node in ran.node for output in node.output}
        self.ran_outputs = {output: _behind_layout(node, makers) for output, node in makers.items()}

    def weight_bytes(self, node: Any) -> int:
        """Bytes of the weight of a conv or linear, as shipped."""
        value = node.input[1] if len(node.input) > 1 else ""
        while value not in self.bytes:
            maker = self.makers.get(value)
            if maker is None or maker.op_type not in CARRIERS:
                return 0
            value = maker.input[0]
        return self.bytes[value]

    def kernel(self, node: Any) -> str:
        """Type of the operator that runs for `node`: found by its mark, else by the last value it was fused up to."""
        found = next((kind for name, kind in self.ran_names.items() if node.name in name), None)
        value = str(node.output[0])
        while found is None:
            found = self.ran_outputs.get(value) or self.ran_names.get(f"{value}_nchwc")
            (reader, *others) = self.readers.get(value) or [None]
            if reader is None or others or reader.op_type not in FUSABLE:
                break
            value = str(reader.output[0])
        return found or "none"


def _behind_layout(node: Any, makers: dict[str, Any]) -> str:
    """Type of the operator that made a value, looking through changes of memory layout."""
    while node.op_type in LAYOUT and node.input[0] in makers:
        node = makers[node.input[0]]
    return str(node.op_type)


def _bytes(tensor: Any) -> int:
    return int(math.prod(tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _row(node: Node, kind: str, reason: str, finder: Finder, file: _File) -> OperatorCoverage:
    weight = weight_of(node) if kind in ("conv", "linear") else None
    marks = [mark_behind(finder.tail(node).name)]
    if weight is not None:
        marks = [mark(node.name), mark_weight(str(weight.target)), *marks]
    written = next((file.nodes[name] for name in marks if name in file.nodes), None)
    kernel = "none" if written is None else file.kernel(written)
    int8 = kernel.startswith(INT8_KERNELS)
    return OperatorCoverage(
        path=module_path(node) or node.name,
        operator=kind,
        kernel=kernel,
        int8=int8,
        reason="" if int8 else reason or _why(kernel),
        macs=_macs(node, kind),
        weight_bytes=0 if weight is None or written is None else file.weight_bytes(written),
    )


def _why(kernel: str) -> str:
    if kernel == "none":
        return "it has no counterpart in the runtime's graph"
    return f"the runtime made no int8 kernel of it and runs {kernel}"


def _macs(node: Node, kind: str) -> int:
    """Multiply-accumulates for one sample."""
    if kind not in ("conv", "linear"):
        return 0
    weight: Any = node.args[1]
    per_output = math.prod(int(size) for size in weight.meta["val"].shape[1:])
    return per_output * math.prod(int(size) for size in node.meta["val"].shape[1:])
