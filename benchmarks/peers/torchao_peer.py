"""torchao: PT2E with the quantizer for x86, post-training and QAT, exported to ONNX by PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.peers.workbench import Job, Made, lines

if TYPE_CHECKING:
    from torch import nn


def ptq(job: Job, model: nn.Module, config: Any = None) -> Any:
    """Calibrate and convert."""
    from torch.export import export
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph = export(model, job.sample, dynamic_shapes=free_batch(job.sample)).module()
    calibrated = prepare_pt2e(graph, quantizer(config, job.net.ends, qat=False))
    for batch in job.calibration:
        calibrated(*batch)
    converted = convert_pt2e(calibrated)
    move_exported_model_to_eval(converted)
    return converted


def quantizer(config: Any, ends: tuple[str, ...], *, qat: bool) -> Any:
    """Return the quantizer for x86; with a config of few bits the first and the last layer keep 8."""
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    whole = get_default_x86_inductor_quantization_config(is_qat=qat)
    made = X86InductorQuantizer().set_global(config or whole)
    for name in ends if config else ():
        made.set_module_name_qconfig(name, whole)
    return made


def prepared(job: Job, model: nn.Module, config: Any = None) -> Any:
    """Return the model with fake quantization, in train mode."""
    from torch.export import export
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    graph = export(model.train(), job.sample, dynamic_shapes=free_batch(job.sample)).module()
    made = prepare_qat_pt2e(graph, quantizer(config, job.net.ends, qat=True))
    move_exported_model_to_train(made)
    return made


def qat(job: Job, model: nn.Module, config: Any = None) -> Any:
    """Train with fake quantization and convert; the observers are off in the last epoch, as the tutorial has it."""
    from torchao.quantization.pt2e import disable_observer, move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    made = prepared(job, model, config)
    last = job.epochs - 1

    def before(epoch: int) -> None:
        if epoch == last > 0:
            made.apply(disable_observer)

    job.fit(made, job.epochs, before=before)
    converted = convert_pt2e(made)
    move_exported_model_to_eval(converted)
    return converted


def few_bits(weights: int, activations: int, *, qat: bool) -> Any:
    """Return the quantizer's own config with narrower ranges of integers."""
    import dataclasses

    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        QuantizationConfig,
        get_default_x86_inductor_quantization_config,
    )

    whole = get_default_x86_inductor_quantization_config(is_qat=qat)
    half = 2 ** (weights - 1)
    values = dataclasses.replace(whole.input_activation, quant_max=2**activations - 1)
    rows = dataclasses.replace(whole.weight, quant_min=-half, quant_max=half - 1)
    return QuantizationConfig(values, values, rows, None, qat)


def free_batch(sample: tuple[Any, ...]) -> tuple[dict[int, Any], ...]:
    """Return the free first axis of each input."""
    from torch.export import Dim

    batch = Dim("batch", min=1, max=4096)
    return tuple({0: batch} for _ in sample)


def make(job: Job) -> Made:
    """Quantize the float student and export it."""
    trains = job.case.method == "qat"
    narrow = job.case.bits != "W8A8"
    config = few_bits(*job.case.widths, qat=trains) if narrow else None
    model = (qat if trains else ptq)(job, job.student(), config)
    functions: list[Callable[..., Any]] = [
        quantizer,
        *([prepared, qat] if trains else [ptq]),
        *([few_bits] if narrow else []),
    ]
    return Made(job.export(model), lines(*functions), model)


def step(job: Job) -> dict[str, Any]:
    """Measure a training step."""
    from benchmarks.peers.steps import beside_float

    return beside_float(job, lambda model: prepared(job, model))
