"""NNCF: `nncf.quantize` of the PyTorch model and of the ONNX file, and QAT; shipped for OpenVINO or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.workbench import Job, Made, lines

if TYPE_CHECKING:
    from torch import nn


def ptq(job: Job, model: nn.Module, device: str = "ANY", **advanced: Any) -> Any:
    """Quantize with NNCF's defaults: 300 single samples."""
    import nncf

    samples = [tuple(part[i : i + 1] for part in job.inputs) for i in range(512)]
    data = nncf.Dataset([sample[0] if len(sample) == 1 else sample for sample in samples])
    return nncf.quantize(
        model, data, target_device=nncf.TargetDevice(device),
        advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
    )  # fmt: skip


def few_bits(weights: int, activations: int) -> dict[str, Any]:
    """Return what asks for fewer bits, which NNCF takes for an NPU alone, and for all layers."""
    from nncf.quantization.advanced_parameters import QuantizationParameters

    return {
        "device": "NPU",
        "weights_quantization_params": QuantizationParameters(num_bits=weights),
        "activations_quantization_params": QuantizationParameters(num_bits=activations),
    }


def qat(job: Job, model: nn.Module, **advanced: Any) -> Any:
    """Quantize, and train on."""
    made = ptq(job, model, **advanced)
    job.fit(made.train(), job.epochs)
    return made.eval()


def to_openvino(job: Job, model: nn.Module) -> Path:
    """Write OpenVINO's own file."""
    import openvino

    path = job.folder / "model.xml"
    shapes = [[-1, *part.shape[1:]] for part in job.sample]
    converted = openvino.convert_model(model, example_input=job.sample, input=shapes)
    name_tensors(converted, job.data.names)
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    return path


def name_tensors(converted: Any, names: tuple[str, ...]) -> None:
    """Name inputs and output, which OpenVINO's converter leaves without names; `kdq bench` asks for them."""
    for port, name in zip((*converted.inputs, *converted.outputs), (*names, "logits"), strict=True):
        port.tensor.set_names({name})


def to_onnx(job: Job, model: nn.Module) -> Path:
    """Write an ONNX file of the stripped model; the newer exporter of PyTorch refuses it."""
    import nncf

    from benchmarks.peers.training import to_onnx_by_script

    path = job.folder / "model.onnx"
    to_onnx_by_script(nncf.strip(model, example_input=job.sample), job.sample, path, job.data.names)
    return path


def ptq_onnx(job: Job, path: Path) -> None:
    """Quantize the float student's ONNX file."""
    import nncf
    import onnx

    names = job.data.names
    samples = [
        {name: part[i : i + 1].numpy() for name, part in zip(names, job.inputs, strict=True)} for i in range(512)
    ]
    onnx.save(nncf.quantize(onnx.load(job.below / "model.onnx"), nncf.Dataset(samples)), path)


def make(job: Job) -> Made:
    """Quantize the float student and ship it."""
    case = job.case
    if case.recipe == "ptq-onnx":
        ptq_onnx(job, job.folder / "model.onnx")
        return Made(job.folder / "model.onnx", lines(ptq_onnx))
    narrow = case.bits != "W8A8"
    asked = few_bits(*case.widths) if narrow else {}
    if case.recipe == "ptq-uncorrected":
        asked["disable_bias_correction"] = True
    trains = case.method == "qat"
    model = (qat if trains else ptq)(job, job.student(), **asked)
    ship = to_openvino if case.openvino else to_onnx
    functions: list[Callable[..., Any]] = [ptq, *([qat] if trains else []), *([few_bits] if narrow else []), ship]
    return Made(ship(job, model), lines(*functions), model)


def step(job: Job) -> dict[str, Any]:
    """Measure a training step."""
    from benchmarks.peers.steps import beside_float

    return beside_float(job, lambda model: ptq(job, model).train())
