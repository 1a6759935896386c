"""Read from OpenVINO's own graph of a file in which precision each layer runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdq_targets.onnx_coverage import File
from kdq_targets.openvino_session import OpenVinoSession

INT8 = ("_u8", "_i8")
COPIES = ("Reorder", "Convert", "Reshape", "Transpose", "FakeQuantize")
FLOAT_TYPES = {
    "layer_norm": ("MVN",),
    "attention": ("ScaledDotProductAttention", "SoftMax"),
    "lstm": ("RNNSeq",),
    "gru": ("RNNSeq",),
}


class OpenVinoKernels:
    """The layers of a file, found by the marks in their original names.

    A kernel's name is the layer's type and its precision, such as `Convolution_u8`.

    Args:
        path: the file.

    Raises:
        StageError: the file is missing or OpenVINO cannot load it.
    """

    def __init__(self, path: Path) -> None:
        self.by_part: dict[str, str] = {}
        self.kernels: list[str] = []
        for layer in OpenVinoSession(path).compiled.get_runtime_model().get_ordered_ops():
            said = layer.get_rt_info()
            kind, precision, parts = (_text(said, n) for n in ("layerType", "runtimePrecision", "originalLayersNames"))
            kernel = f"{kind}_{precision}"
            self.kernels.append(kernel)
            for part in parts.replace("/", ",").split(","):
                if part and (part not in self.by_part or self.by_part[part].startswith(COPIES)):
                    self.by_part[part] = kernel

    def of(self, node: Any, file: File) -> str:
        """Find a kernel by the node's mark, or else by its output or the next value that depends on it alone."""
        if node.name in self.by_part:
            return self.by_part[node.name]
        names = [str(node.output[0])]
        for _ in range(3):
            (reader, *others) = file.readers.get(names[-1]) or [None]
            if reader is None or others:
                break
            names += [str(reader.output[0])]
        found = (self.by_part.get(name, "none") for name in names)
        return next((kernel for kernel in found if kernel != "none" and not kernel.startswith(COPIES)), "none")

    def like(self, kind: str) -> str:
        """Find a kernel by its type."""
        known = (kind.replace("_", ""), *(name.lower() for name in FLOAT_TYPES.get(kind, ())))
        return next((kernel for kernel in self.kernels if kernel.rpartition("_")[0].lower() in known), "none")

    def int8(self, kernel: str, node: Any) -> bool:  # noqa: ARG002
        """Decide by the precision that the layer runs in."""
        return kernel.endswith(INT8)


def _text(said: Any, name: str) -> str:
    return str(said[name].astype(str)) if name in said else ""
