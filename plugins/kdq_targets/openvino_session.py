"""Load and run an ONNX file in OpenVINO on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from kdq_core.api import StageError, TensorSpec

DTYPES = {
    "f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32", "u8": "uint8", "i8": "int8",
    "boolean": "bool",
}  # fmt: skip


def openvino() -> Any:
    """Import the package without its telemetry, which would write to ~/intel and send usage data."""
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    import openvino

    return openvino


class OpenVinoSession:
    """A loaded file.

    Args:
        path: the ONNX file.
        threads: threads within one operator; one call runs at a time.

    Raises:
        StageError: the file is missing or OpenVINO cannot load it.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        if not path.is_file():
            raise StageError(f"ONNX file {str(path)!r} does not exist; export it again")
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else float operators run in bfloat16 where the CPU has it
            "ENABLE_CPU_PINNING": False,  # processes on one machine would all take its first cores
        }
        try:
            core = openvino().Core()
            self.compiled = core.compile_model(core.read_model(path), "CPU", options)
        except Exception as error:
            raise StageError(
                f"OpenVINO cannot load {str(path)!r}: {_last_line(error)}; export the model for this target again"
            ) from error

    def run(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Return the outputs for one batch, each of shape `[B, ...]`.

        Raises:
            StageError: the file takes inputs of another number, type or shape.
        """
        expected, _ = self.signature()
        if len(inputs) != len(expected):
            raise StageError(f"the file takes {len(expected)} inputs and was given {len(inputs)}")
        for spec, given in zip(expected, inputs, strict=True):
            if given.dtype != spec.dtype:  # OpenVINO would convert it silently
                raise StageError(f"input {spec.name!r} of the file is {spec.dtype} and was given as {given.dtype}")
        try:
            answers = self.compiled(list(inputs))
        except Exception as error:
            raise StageError(f"OpenVINO cannot run the file on this input: {_last_line(error)}") from error
        return tuple(answers[port] for port in self.compiled.outputs)

    def signature(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs; -1 is the free batch size."""
        return _specs(self.compiled.inputs), _specs(self.compiled.outputs)


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=port.any_name,
            dtype=DTYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            shape=tuple(size.get_length() if size.is_static else -1 for size in port.partial_shape),
        )
        for port in ports
    )


def _last_line(error: BaseException) -> str:
    """The last line of an error of OpenVINO, which says what is wrong; the lines before name its own source."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
