"""The stage that quantizes: calibration alone, or training with the teacher still teaching."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.fx import GraphModule

from kdq_core.distillation.combining import DistillationLoss
from kdq_core.errors import StageError
from kdq_core.quantization.capture import BatchNorm, capture
from kdq_core.quantization.equalize import equalize
from kdq_core.quantization.prepare import prepare, set_phase, weights_of
from kdq_core.quantization.refine import correct_biases, reestimate_batch_norm
from kdq_core.recipe.spec import QuantizeSpec
from kdq_core.store.records import Checkpoint, EpochRecord
from kdq_core.tensors import Batch
from kdq_core.training.control import check_labels, gains, remembered
from kdq_core.training.fit import Loss, to_device
from kdq_core.training.losses import hard_loss, validation
from kdq_core.work.context import EVALUATION_BATCH, StageContext
from kdq_core.work.learning import taught
from kdq_core.work.placing import placement
from kdq_core.work.teaching import float_student


def quantize(context: StageContext) -> Checkpoint:
    """Quantize the distilled student.

    Equalize where the recipe asks for it; let the ranges see calibration batches; correct biases. A quantizer that
    trains goes on with the teacher still teaching: first while ranges follow, then with ranges still, then with
    batch-norm statistics still and biases rounded as the integers will be. Where the recipe asks for a control, all of
    it is done once more without the teacher.
    """
    accelerator, spec, trains = context.accelerator(), context.recipe.quantize, context.quantizer.trains
    device = accelerator.device
    if trains and spec.control:
        test = context.workload.batches("test", batch_size=EVALUATION_BATCH)
        check_labels(context.batches(0, spec.fit.batch_size), test)
    student, model = _started(context, device)
    told: dict[str, Any] = {}
    if trains:
        own = float_student(context, device) if spec.taught_by == "student" else None
        module, soft = taught(context, model, device, plain=student, teacher=own)
        context.seeded("quantize/fit")  # building a teacher beside it drew numbers, reading a kept one did not
        rewind = remembered(device)
        history = _trained(context, module, soft, model, accelerator)
        told["compared"] = soft.compared
    _finished(context, model, device)
    if not trains:
        score = validation(context.workload, device, EVALUATION_BATCH)
        history = (EpochRecord(epoch=1, values=dict(score(model.eval()))),)
    if not (trains and spec.control):
        return context.checkpoint("quantized", model, history, **told)
    _, control = _started(context, device)
    rewind()
    history += _trained(replace(context, number=1), control, hard_loss(context.workload), control, accelerator)
    _finished(context, control, device)
    seen = partial(context.batches, 0, spec.fit.batch_size)
    gained = gains(model, control, context.workload, device, EVALUATION_BATCH, train=seen)
    return context.checkpoint("quantized", model, history, gains=gained, **told)


def _started(context: StageContext, device: torch.device) -> tuple[nn.Module, GraphModule]:
    """The distilled student, and its prepared graph with calibrated ranges on `device`; the same at each call."""
    spec = context.recipe.quantize
    student = context.load_into(context.workload.student(), "distill")
    context.seeded("quantize")
    graph = capture(student, context.example())
    if spec.reestimate_batch_norm and all(m.fixed for m in graph.modules() if isinstance(m, BatchNorm)):
        raise StageError(_nothing("reestimate_batch_norm", "a batch norm that trains"))
    if spec.equalize and not equalize(graph):
        raise StageError(_nothing("equalize", "two layers in a row with nothing between them but relu"))
    model = _prepared(context, graph).to(device)
    _calibrate(context, model, device)
    if spec.bias_correction:
        set_phase(model, observe=False, quantize=False, freeze_batch_norm=True)
        if not correct_biases(model, _calibration(context, device)):
            raise StageError(_nothing("bias_correction", "a quantized layer with a bias, or a batch norm behind it"))
    return student, model


def _nothing(option: str, wanted: str) -> str:
    return f"'quantize.{option}' finds nothing to do: the student does not have {wanted}; leave it out"


def _trained(
    context: StageContext, module: nn.Module, loss: Loss, model: GraphModule, accelerator: Accelerator
) -> tuple[EpochRecord, ...]:
    """Fit `module`, which is `model` or a module around it, through the phases of the recipe.

    The phase, too, follows from the step alone, so that a fit that goes on does so with the same bits.
    """
    spec = context.recipe.quantize
    whole, enter = with_weight_loss(loss, model, spec.weight_loss), phases(spec, model)
    soft = loss if isinstance(loss, DistillationLoss) else None

    def before_step(done: int, total: int) -> None:
        enter(done, total)
        if soft is not None:
            soft.before_step(done, total)

    scheduled = None if soft is None else soft.scheduled
    return context.trained(module, whole, spec.fit, accelerator, scheduled, before_step=before_step)


def _finished(context: StageContext, model: GraphModule, device: torch.device) -> None:
    """Measure batch-norm statistics anew where the recipe asks for it; `model` then rounds, and observes nothing."""
    if context.recipe.quantize.reestimate_batch_norm:
        set_phase(model, observe=False, quantize=True, freeze_batch_norm=False)
        reestimate_batch_norm(model, _calibration(context, device))
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    model.eval()


def quantized_student(context: StageContext) -> GraphModule:
    """The prepared student with the weights and ranges of the `quantize` stage; eval mode, observers off."""
    student = context.load_into(context.workload.student(), "distill")
    model = _prepared(context, capture(student, context.example()))
    context.load_into(model, "quantize")
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    return model


def with_weight_loss(loss: Loss, model: GraphModule, weight: float) -> Loss:
    """`loss` with the quantization loss beside it: `weight` * mean (W - W_q)^2 over all quantized weights.

    W_q is taken as a constant, so that the gradient pulls each weight to its level.
    """
    if not weight:
        return loss
    pairs = tuple(weights_of(model))
    count = sum(parameter.numel() for parameter, _ in pairs)

    def both(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        terms = loss(module, batch)
        errors = [(parameter - fake(parameter).detach()).square().sum() for parameter, fake in pairs]
        return {**terms, "quantization": weight / count * torch.stack(errors).sum()}

    return both


def _prepared(context: StageContext, graph: GraphModule) -> GraphModule:
    spec, places = context.recipe.quantize, placement(context, graph).places
    low = any(place.bits < 8 for place in places) if spec.round_bias == "auto" else spec.round_bias == "on"
    return prepare(graph, places, context.quantizer, round_bias=low)


def phases(spec: QuantizeSpec, model: GraphModule) -> Callable[[int, int], None]:
    """Gives what switches `model` before each step: called with the steps done and the steps in all."""
    now: list[bool] = []

    def enter(done: int, total: int) -> None:
        shares = (spec.freeze_observers, spec.freeze_batch_norm)
        still = [done >= _begin(share, spec.fit.epochs, total) for share in shares]
        if still != now:
            now[:] = still
            set_phase(model, observe=not still[0], quantize=True, freeze_batch_norm=still[1])

    return enter


def _begin(share: float, epochs: int, total: int) -> float:
    """The step (of `total`) that a phase begins with: after `share` of them, but with the last epoch at the latest.

    A single epoch keeps its last step for it. A share of 1 means never.
    """
    least = total // epochs if epochs > 1 else 1
    return min(share * total, total - least) if share < 1 else math.inf


def _calibrate(context: StageContext, model: GraphModule, device: torch.device) -> None:
    """Let the observers see some training batches in float, so that the first step has ranges."""
    set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
    model.eval()
    with torch.no_grad():
        for inputs in _calibration(context, device):
            model(*inputs)


def _calibration(context: StageContext, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Inputs of the first training batches."""
    spec, seed = context.recipe.quantize, context.seed_of("calibration")
    batches = context.workload.batches("train", batch_size=spec.calibration_batch_size, seed=seed)
    number = 0
    for number, batch in enumerate(itertools.islice(batches, spec.calibration_batches), start=1):
        check_finite(batch, number)
        yield to_device(batch, device).inputs
    if not number:
        raise StageError("the workload gave no training batch to calibrate with; check its split 'train'")


def check_finite(batch: Batch, number: int) -> None:
    """Refuse calibration data that holds NaN or infinity: ranges would follow it.

    Raises:
        StageError: with the batch `number`, the input, and the first such sample.
    """
    for index, x in enumerate(batch.inputs):
        wrong = ~x.isfinite() if x.is_floating_point() else None
        if wrong is None or not bool(wrong.any()):
            continue
        rows = wrong.reshape(len(x), -1).any(1)
        first = int(rows.int().argmax())
        which = "its input" if len(batch.inputs) == 1 else f"its input {index}"
        raise StageError(
            f"training batch {number} of the calibration is not finite: {which} holds {float(x[wrong][0])} in "
            f"{int(rows.sum())} of {len(x)} samples, first in sample {int(batch.ids[first])}; mend or drop these "
            "samples in the workload"
        )
