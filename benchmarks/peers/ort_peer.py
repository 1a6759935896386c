"""ONNX Runtime's quantizer: static, QDQ, per channel, of the float student's ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.workbench import Job, Made, lines

if TYPE_CHECKING:
    import numpy as np

METHODS = {"ptq": "MinMax", "ptq-entropy": "Entropy", "ptq-percentile": "Percentile"}


def ptq(source: Path, path: Path, batches: list[dict[str, np.ndarray]], method: str, types: tuple[str, str]) -> None:
    """Quantize a file."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType[types[1]], weight_type=QuantType[types[0]],
        calibrate_method=CalibrationMethod[method],
    )  # fmt: skip


def make(job: Job) -> Made:
    """Quantize the float student's file; without the runtime's optimisations it computes in float: the simulation."""
    from benchmarks.peers.training import runs

    weights, activations = job.case.widths
    names, path = job.data.names, job.folder / "model.onnx"
    batches = [{name: part.numpy() for name, part in zip(names, batch, strict=True)} for batch in job.calibration]
    types = f"QInt{weights}", f"QUInt{activations}"
    ptq(job.below / "model.onnx", path, batches, METHODS[job.case.recipe], types)
    return Made(path, lines(ptq), runs(path, names, optimized=False))
