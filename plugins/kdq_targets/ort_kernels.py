"""ONNX Runtime's own optimised graph of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from kdq_targets.onnx_coverage import File
from kdq_targets.ort_session import OrtSession

INT8_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention")
LAYOUT = {"ReorderOutput", "ReorderInput", "Transpose", "Reshape", "Flatten", "Squeeze"}
FUSABLE = {"Relu", "Clip", "LeakyRelu", "Add"}
FLOAT_TYPES = {
    "add": ("Add", "Sum", "SkipLayerNormalization", "BiasGelu"),
    "attention": ("MultiHeadAttention", "Attention", "FusedMatMul", "MatMul"),
    "batch_norm": ("BatchNormalization",),
    "concat": ("Concat",),
    "conv": ("Conv", "FusedConv"),
    "embedding": ("Gather",),
    "gelu": ("Gelu", "BiasGelu", "FastGelu", "Erf"),
    "hardswish": ("HardSwish", "HardSigmoid"),
    "layer_norm": ("LayerNormalization", "SkipLayerNormalization"),
    "linear": ("Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
    "matmul": ("FusedMatMul", "MatMul"),
    "mul": ("Mul", "FusedMatMul"),
    "mean": ("ReduceMean",),
    "pool": ("AveragePool", "GlobalAveragePool", "ReduceMean"),
    "silu": ("QuickGelu", "Sigmoid"),
}
"""Types of the runtime's float operators that carry no mark, because no quantized tensor follows them."""


def optimized_graph(path: Path) -> Any:
    """Return the graph that the runtime makes of the file, at the level it runs with."""
    with tempfile.TemporaryDirectory(prefix="kdq-coverage-") as folder:
        written = Path(folder) / "optimized.onnx"
        OrtSession(path, optimized=written)
        return onnx.load(str(written)).graph


class OrtKernels:
    """The kernels of a file, found by marks and value names.

    Args:
        path: the file.

    Raises:
        StageError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        ran = optimized_graph(path)
        self.names = {node.name: str(node.op_type) for node in ran.node}
        makers = {output: node for node in ran.node for output in node.output}
        self.outputs = {output: _behind_layout(node, makers) for output, node in makers.items()}

    def of(self, node: Any, file: File) -> str:
        """Find a kernel by the node's mark, or else by the output of the chain that the runtime fused."""
        found = next((kind for name, kind in self.names.items() if node.name in name), None)
        value = str(node.output[0])
        while found is None:
            found = self.outputs.get(value) or self.names.get(f"{value}_nchwc")
            (reader, *others) = file.readers.get(value) or [None]
            if reader is None or others or reader.op_type not in FUSABLE:
                break
            value = str(reader.output[0])
        return found or "none"

    def like(self, kind: str) -> str:
        """Find a kernel by its type."""
        types = set(self.names.values()) | set(self.outputs.values())
        known = FLOAT_TYPES.get(kind, ())
        plain = kind.replace("_", "")
        return next((t for t in known if t in types), None) or next((t for t in types if t.lower() == plain), "none")

    def int8(self, kernel: str, node: Any) -> bool:
        """Decide by the kernel's name. A look-up of integers is int8, and so is a Scan with int8 products."""
        if kernel.startswith(INT8_KERNELS):
            return True
        if node is None:
            return False
        bodies = [item.g.node for item in node.attribute if item.HasField("g")]
        scanned = any(part.op_type.startswith(INT8_KERNELS) for body in bodies for part in body)
        return scanned or (node.op_type == "Gather" and not node.name.startswith("<%"))


def _behind_layout(node: Any, makers: dict[str, Any]) -> str:
    """Type of the operator that made a value, looking through changes of memory layout."""
    while node.op_type in LAYOUT and node.input[0] in makers:
        node = makers[node.input[0]]
    return str(node.op_type)
