"""ModelOpt: `mtq.quantize` of the PyTorch model, post-training and QAT, and its quantizer of ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.workbench import Job, Made, lines, message

if TYPE_CHECKING:
    from torch import nn


def ptq(job: Job, model: nn.Module, config: Any = None) -> nn.Module:
    """Calibrate."""
    import modelopt.torch.quantization as mtq

    def calibrate(given: nn.Module) -> None:
        for batch in job.calibration:
            given(*batch)

    quantized: nn.Module = mtq.quantize(model, config or mtq.INT8_DEFAULT_CFG, calibrate)
    return quantized


def qat(job: Job, model: nn.Module, config: Any = None) -> nn.Module:
    """Calibrate, and train on."""
    quantized = ptq(job, model, config)
    job.fit(quantized.train(), job.epochs)
    return quantized.eval()


def few_bits(weights: int, activations: int, ends: tuple[str, ...]) -> Any:
    """Return the int8 config with other bits; the first and the last layer keep 8."""
    import copy

    import modelopt.torch.quantization as mtq

    config: Any = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    config["quant_cfg"][1]["cfg"]["num_bits"] = weights
    config["quant_cfg"][2]["cfg"]["num_bits"] = activations
    for end in ends:
        config["quant_cfg"] += [
            {"quantizer_name": f"{end}.weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
            {"quantizer_name": f"{end}.input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        ]
    return config


def ptq_onnx(source: Path, path: Path, calibration: dict[str, Any]) -> None:
    """Quantize the float student's ONNX file."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source), quantize_mode="int8", calibration_data=calibration, calibration_method="max",
        calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=str(path),
    )  # fmt: skip


def ship(job: Job, model: nn.Module) -> tuple[Path, dict[str, Any]]:
    """Export with the newer exporter of PyTorch, or with the older one where it refuses."""
    from benchmarks.peers.training import to_onnx_by_script

    path = job.folder / "model.onnx"
    try:
        return job.export(model), {}
    except Exception as error:
        to_onnx_by_script(model, job.sample, path, job.data.names)
        return path, {"newer_exporter": message(error)}


def make(job: Job) -> Made:
    """Quantize the float student and export it."""
    case, path = job.case, job.folder / "model.onnx"
    if case.recipe == "ptq-onnx":
        given = {name: part[:512].numpy() for name, part in zip(job.data.names, job.inputs, strict=True)}
        ptq_onnx(job.below / "model.onnx", path, given)
        return Made(path, lines(ptq_onnx))
    narrow, trains = case.bits != "W8A8", case.method == "qat"
    config = few_bits(*case.widths, job.net.ends) if narrow else None
    model = (qat if trains else ptq)(job, job.student(), config)
    path, more = ship(job, model)
    functions: list[Callable[..., Any]] = [ptq, *([qat] if trains else []), *([few_bits] if narrow else []), ship]
    return Made(path, lines(*functions), model, more)


def step(job: Job) -> dict[str, Any]:
    """Measure a training step."""
    from benchmarks.peers.steps import beside_float

    return beside_float(job, lambda model: ptq(job, model).train())
