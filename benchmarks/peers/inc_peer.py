"""Intel Neural Compressor, its PyTorch part: static quantization over PT2E, exported to ONNX by PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.workbench import Job, Made, lines

if TYPE_CHECKING:
    from torch import nn


def ptq(job: Job, model: nn.Module, types: tuple[str, str]) -> Any:
    """Calibrate and convert."""
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare
    from torch.export import Dim

    batch = Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in job.sample)
    graph = export(model, example_inputs=job.sample, dynamic_shapes=shapes)
    prepared = prepare(graph, StaticQuantConfig(w_dtype=types[0], act_dtype=types[1]))
    for inputs in job.calibration:
        prepared(*inputs)
    return convert(prepared)


def qat(model: nn.Module) -> Any:
    """Prepare for QAT.

    Raises:
        RuntimeError: nothing was prepared.
    """
    from neural_compressor.torch.quantization.quantize import prepare_qat

    before = [type(module) for module in model.modules()]
    prepare_qat(model)  # in place; it gives nothing back
    if [type(module) for module in model.modules()] == before:
        raise RuntimeError("prepare_qat ran without an error and inserted no quantizer")
    return model


def make(job: Job) -> Made:
    """Quantize the float student and export it."""
    weights, activations = job.case.widths
    if job.case.method == "qat":
        model = qat(job.student().train())
        job.fit(model, job.epochs)
        return Made(job.export(model.eval()), lines(qat), model)
    model = ptq(job, job.student(), (f"int{weights}", f"uint{activations}"))
    return Made(job.export(model), lines(ptq), model)
