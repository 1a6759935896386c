"""Load and run an ONNX file in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from kdq_core.api import StageError, TensorSpec

DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(bool)": "bool",
}  # fmt: skip


class OrtSession:
    """A loaded file.

    Args:
        path: the ONNX file.
        threads: threads within one operator; operators run one after another.
        optimized: where to write the runtime's own graph, or `None`.

    Raises:
        StageError: the file is missing or is not an ONNX model.
    """

    def __init__(self, path: Path, threads: int = 1, optimized: Path | None = None) -> None:
        if not path.is_file():
            raise StageError(f"ONNX file {str(path)!r} does not exist; export it again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            self.runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise StageError(
                f"ONNX Runtime cannot load {str(path)!r}: {_first_line(error)}; the file is damaged: export it again"
            ) from error
        self.names = [value.name for value in self.runtime.get_inputs()]

    def run(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Return the outputs for one batch, each of shape `[B, ...]`.

        Raises:
            StageError: the file takes inputs of another number, type or shape.
        """
        if len(inputs) != len(self.names):
            raise StageError(f"the file takes {len(self.names)} inputs and was given {len(inputs)}")
        try:
            return tuple(self.runtime.run(None, dict(zip(self.names, inputs, strict=True))))
        except Exception as error:
            raise StageError(f"ONNX Runtime cannot run the file on this input: {_first_line(error)}") from error

    def signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs."""
        return _specs(self.runtime.get_inputs()), _specs(self.runtime.get_outputs())


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=value.name,
            dtype=DTYPES.get(value.type, value.type),
            shape=tuple(size if isinstance(size, int) else -1 for size in value.shape),
        )
        for value in values
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
