"""The stages that train: teacher, student, quantized student."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.fx import GraphModule

from kdq_core.quantization.capture import capture
from kdq_core.quantization.prepare import prepare, set_phase
from kdq_core.records import Checkpoint
from kdq_core.stages.context import StageContext
from kdq_core.teachers.source import OnlineTeacher, TeacherSource
from kdq_core.training.fit import to_device
from kdq_core.training.losses import distillation_loss, hard_loss

CALIBRATION_BATCHES = 8


def train_teacher(context: StageContext) -> Checkpoint:
    """Train the workload's teacher on hard labels."""
    accelerator = context.accelerator()
    context.seeded("teacher")
    teacher = context.workload.teacher()
    history = context.trained(teacher, hard_loss(context.workload), context.recipe.teacher.fit, accelerator)
    return context.checkpoint("teacher", teacher, history)


def distill(context: StageContext) -> Checkpoint:
    """Train the workload's student with the teacher's outputs."""
    accelerator = context.accelerator()
    context.seeded("student")
    student = context.workload.student()
    loss = distillation_loss(context.workload, context.distiller, _teacher(context, accelerator.device))
    history = context.trained(student, loss, context.recipe.distill.fit, accelerator)
    return context.checkpoint("student", student, history)


def quantize(context: StageContext) -> Checkpoint:
    """Quantization-aware training of the distilled student, the teacher still teaching.

    Phases: observe some training batches; then train while ranges follow; then with ranges still; then with
    batch-norm statistics still.
    """
    accelerator, spec = context.accelerator(), context.recipe.quantize
    student = context.load_into(context.workload.student(), "distill")
    context.seeded("quantize")
    model = prepared_student(context, student).to(accelerator.device)
    _calibrate(context, model, accelerator.device)

    def before_epoch(epoch: int) -> None:
        share = epoch / spec.fit.epochs
        set_phase(
            model,
            observe=share < spec.freeze_observers,
            quantize=True,
            freeze_batch_norm=share >= spec.freeze_batch_norm,
        )

    loss = distillation_loss(context.workload, context.distiller, _teacher(context, accelerator.device))
    history = context.trained(model, loss, spec.fit, accelerator, before_epoch=before_epoch)
    return context.checkpoint("quantized", model, history)


def prepared_student(context: StageContext, student: nn.Module) -> GraphModule:
    """The student's graph with fake-quantizers where the target wants them."""
    graph = capture(student, context.example())
    return prepare(graph, context.target.places(graph), context.quantizer)


def quantized_student(context: StageContext) -> GraphModule:
    """The prepared student with the weights and ranges of the `quantize` stage; eval mode, observers off."""
    student = context.load_into(context.workload.student(), "distill")
    model = prepared_student(context, student)
    context.load_into(model, "quantize")
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    return model


def _teacher(context: StageContext, device: torch.device) -> TeacherSource:
    return OnlineTeacher(context.load_into(context.workload.teacher(), "train_teacher").to(device))


def _calibrate(context: StageContext, model: GraphModule, device: torch.device) -> None:
    """Let the observers see some training batches in float, so that the first step has ranges."""
    set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
    batches = context.workload.batches(
        "train", batch_size=context.recipe.quantize.fit.batch_size, seed=context.seed_of("calibration")
    )
    model.eval()
    with torch.no_grad():
        for batch in itertools.islice(batches, CALIBRATION_BATCHES):
            model(*to_device(batch, device).inputs)
