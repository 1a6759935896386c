"""The teacher's outputs: kept once by a stage of its own, and asked for by the stages that are taught."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from kdq_core.distillation.combining import teacher_paths
from kdq_core.distillation.numbers import check_numbers
from kdq_core.distillation.taught import taught
from kdq_core.distillation.transfer import transfer
from kdq_core.errors import StageError
from kdq_core.store.records import TeacherOutputs
from kdq_core.teachers.build import build_outputs
from kdq_core.teachers.encoding import layout
from kdq_core.teachers.members import empty_member, whole
from kdq_core.teachers.source import CachedTeacher, OnlineTeacher, TeacherSource, half_precision
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.control import check_labels
from kdq_core.training.fit import to_device
from kdq_core.training.losses import labelled_tasks, outputs_of
from kdq_core.training.taps import graph_forward
from kdq_core.work.context import EVALUATION_BATCH, StageContext
from kdq_core.work.placing import check_student


def cache_teacher(context: StageContext) -> TeacherOutputs:
    """Keep what the teacher says of every training sample in each view; a build that was killed goes on."""
    spec, workload, device = context.recipe.teacher.cache, context.workload, context.accelerator().device
    teacher = online_teacher(context, device, exact=spec.form == "fp32")
    samples, folder = workload.samples("train"), context.scratch.parent / "outputs"
    read = rehearse(context, teacher, device)
    paths = read if spec.features else ()

    def batches(number: int) -> Iterable[Batch]:
        for batch in workload.batches("train", batch_size=EVALUATION_BATCH, view=context.view(number)):
            yield replace(batch, view=number)

    def ask(batch: Batch) -> Outputs:
        return teacher(to_device(batch, device), paths)

    def tell(done: int, total: int) -> None:
        context.emit({"event": "progress", "stage": context.stage, "done": done, "total": total, "note": "samples"})

    build = build_outputs(ask, batches, spec, samples=samples, folder=folder, on_batch=tell)
    for tensor in build.tensors:
        shutil.move(folder / tensor.path, context.draft / tensor.path)
    return TeacherOutputs(
        teacher=context.parents["train_teacher"].digest,
        data=workload.fingerprint(),
        seed=spec.seed,
        views=spec.views,
        samples=samples,
        classes=build.classes,
        tasks=build.tasks,
        tensors=build.tensors,
    )


def rehearse(context: StageContext, teacher: OnlineTeacher, device: torch.device) -> tuple[str, ...]:
    """Teach two samples to an untrained student, so that what does not fit is told before hours are spent.

    Returns:
        The teacher's modules that the recipe's distillers compare with modules of the student.

    Raises:
        RecipeError: a tap or a transferred layer fits nothing.
        StageError: what the two models give does not fit the distillers, or lacks the labels that they or a control
            need; it cannot be kept as the recipe asks; the loss is not finite.
    """
    recipe, student = context.recipe, context.workload.student().to(device)
    if recipe.distill.control or (recipe.quantize.control and context.quantizer.trains):
        test = context.workload.batches("test", batch_size=EVALUATION_BATCH)
        check_labels(context.batches(0, recipe.distill.fit.batch_size), test)
    if recipe.distill.transfer is not None:
        transfer(recipe.distill.transfer, student, teacher.model)
    batch = to_device(next(iter(context.workload.batches("train", batch_size=2))), device)
    if recipe.quantize.taught_by == "student":
        own = OnlineTeacher(context.workload.student().to(device))
        taught(context.workload, context.distillers, own, student, batch)  # its taps fit its own layers too
    model, loss = taught(context.workload, context.distillers, teacher, student, batch)
    if context.quantizer.trains and (read := [pair.student for part in loss.parts for pair in part.pairs]):
        graph_forward(check_student(context), read, student)  # in QAT the taps are read in the graph
    with torch.no_grad():
        answers = teacher(batch)
    if recipe.teacher.cache.enabled:
        layout(answers, recipe.teacher.cache)
    terms = loss(model.train(), batch)  # with gradients: a tap that carries none is refused
    check_numbers(loss.parts, outputs_of(student, batch), batch)
    odd = {name: float(term.detach()) for name, term in terms.items() if not term.isfinite().all()}
    if odd:
        raise StageError(
            f"the loss of a student that is not trained yet is not finite on the first two training samples "
            f"({', '.join(f'{name} {value!r}' for name, value in odd.items())}); look for NaN in the data, and for a "
            "division by zero in the workload's loss or the distiller"
        )
    if any(member.trained for member in recipe.teacher.members):
        _check_task_labels(context, answers)
    return teacher_paths(loss.parts)


def _check_task_labels(context: StageContext, answers: Outputs) -> None:
    """Refuse to let a teacher that is trained here teach a task that it has no labels for."""
    uses = [use.task for use in context.recipe.distill.distillers]
    asked = set(answers.tasks) if None in uses else set(answers.tasks).intersection(filter(None, uses))
    batches = context.batches(0, context.recipe.teacher.fit.batch_size)
    missing = sorted(asked - labelled_tasks(batches, asked)) if asked else []
    if missing:
        raise StageError(
            f"the teacher is trained on labels, but no batch of the workload's split 'train' has any of the task "
            f"{missing[0]!r}, so what it says of that task would mean nothing; label some, name the other tasks as "
            "'task' of the distillers, or a teacher that is trained already in 'teacher.members'"
        )


def teacher_source(context: StageContext, device: torch.device) -> TeacherSource:
    """What answers for the teacher: its kept outputs where the plan has them, or the model itself."""
    kept = context.parents.get("cache_teacher")
    if kept is None:
        return online_teacher(context, device)
    teacher = context.parents["train_teacher"].digest
    data, fuse = context.workload.fingerprint(), context.recipe.distill.fuse_views
    return CachedTeacher(kept, teacher=teacher, data=data, fuse=fuse)


def online_teacher(context: StageContext, device: torch.device, *, exact: bool = False) -> OnlineTeacher:
    """The teacher itself, in the precision the recipe asks for; by default, and unless `exact`, in the device's."""
    half = _half(context, device, exact=exact)
    return OnlineTeacher(the_teacher(context).to(device), inputs=context.recipe.teacher.reads, half=half)


def float_student(context: StageContext, device: torch.device) -> OnlineTeacher:
    """The distilled student in float, as the teacher of its quantized self."""
    student = context.load_into(context.workload.student(), "distill")
    return OnlineTeacher(student.to(device), half=_half(context, device, exact=False))


def _half(context: StageContext, device: torch.device, *, exact: bool) -> bool:
    asked = context.recipe.teacher.precision
    return asked == "bf16" or (asked == "auto" and not exact and half_precision(device))


def the_teacher(context: StageContext) -> nn.Module:
    """The recipe's teachers as one module, with the weights of `train_teacher`; eval mode."""
    spec, workload = context.recipe.teacher, context.workload
    return context.load_into(whole(spec, [empty_member(member, workload) for member in spec.members]), "train_teacher")
