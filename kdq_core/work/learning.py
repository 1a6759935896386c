"""The stages that train in float: teacher and student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdq_core.distillation.combining import DistillationLoss
from kdq_core.distillation.taught import taught as prepared
from kdq_core.distillation.transfer import holding, transfer
from kdq_core.errors import StageError
from kdq_core.plan.keys import answering
from kdq_core.store.hashing import sha256_file
from kdq_core.store.records import Checkpoint, EpochRecord
from kdq_core.teachers.members import empty_member, read_member, whole
from kdq_core.teachers.source import CachedTeacher, OnlineTeacher, TeacherSource
from kdq_core.training.control import check_labels, gains, remembered
from kdq_core.training.fit import to_device
from kdq_core.training.losses import hard_loss, labelled
from kdq_core.work.context import EVALUATION_BATCH, StageContext
from kdq_core.work.placing import check_student
from kdq_core.work.teaching import online_teacher, rehearse, teacher_source, the_teacher


def train_teacher(context: StageContext) -> Checkpoint:
    """Bring the recipe's teachers together: train on hard labels those that are trained here, read the others.

    Raises:
        StageError: one is trained here, and there are no labels.
    """
    accelerator, spec = context.accelerator(), context.recipe.teacher
    members: list[nn.Module] = []
    history: tuple[EpochRecord, ...] = ()
    if any(member.trained for member in spec.members) and not labelled(context.batches(0, spec.fit.batch_size)):
        raise StageError(
            "the teacher is trained on labels, but no batch of the workload's split 'train' has any; label some, or "
            "name a teacher that is trained already in 'teacher.members', from a checkpoint or an ONNX file"
        )
    check_student(context)
    given = [(empty_member if m.trained else read_member)(m, context.workload) for m in spec.members]
    _check_unchanged(context)
    device = accelerator.device
    rehearse(context, OnlineTeacher(whole(spec, given).to(device), inputs=spec.reads), device)
    for number, member in enumerate(spec.members):
        if not member.trained:
            members.append(given[number])
            continue
        context.seeded(f"teacher {number + 1}" if number else "teacher")
        model = empty_member(member, context.workload)
        one = whole(spec.model_copy(update={"members": (member,)}), [model])
        at = replace(context, number=number)
        history += at.trained(one, hard_loss(context.workload), spec.fit, accelerator)
        members.append(model)
    made = context.checkpoint("teacher", whole(spec, members).cpu(), history)
    return made.model_copy(update={"answers": answering(spec)})


def _check_unchanged(context: StageContext) -> None:
    """Refuse teachers' files that are not those of the key: another run would take what they give for theirs."""
    planned = context.parts["recipe"]["teacher"]["members"]
    for member, then in zip(context.recipe.teacher.members, planned, strict=True):
        if member.file is not None and sha256_file(Path(member.file)) != then["sha256"]:
            raise StageError(
                f"the teacher's file {member.file!r} was changed after this run was planned; run again: it is planned "
                "with what is there now"
            )


def distill(context: StageContext) -> Checkpoint:
    """Train the workload's student with the teacher's outputs; then its control, where the recipe asks for one.

    A control starts from random parameters also where the student starts from the teacher's: they are the teacher's
    doing.
    """
    accelerator, spec, workload = context.accelerator(), context.recipe.distill, context.workload
    device = accelerator.device
    if spec.control:
        check_labels(context.batches(0, spec.fit.batch_size), workload.batches("test", batch_size=EVALUATION_BATCH))
    check_student(context)
    context.seeded("student")
    student = workload.student().to(device)
    written, hooks = _transferred(context, student)
    model, loss = taught(context, student, device)
    context.seeded("distill/fit")  # building a teacher beside it drew numbers, reading a kept one did not
    rewind = remembered(device)
    history = context.trained(model, loss, spec.fit, accelerator, loss.scheduled, before_step=loss.before_step, **hooks)
    told: dict[str, Any] = {"compared": loss.compared, "transferred": written}
    if not spec.control:
        return context.checkpoint("student", student, history, **told)
    context.seeded("student")
    control = workload.student().to(device)
    rewind()
    history += replace(context, number=1).trained(control, hard_loss(workload), spec.fit, accelerator)
    seen = partial(context.batches, 0, spec.fit.batch_size)
    gained = gains(student, control, workload, device, EVALUATION_BATCH, train=seen)
    return context.checkpoint("student", student, history, gains=gained, **told)


def _transferred(context: StageContext, student: nn.Module) -> tuple[tuple[str, ...], dict[str, Callable[..., None]]]:
    """Start the student from the teacher's parameters where the recipe asks for it: which, and the hooks of `fit`."""
    spec, epochs = context.recipe.distill.transfer, context.recipe.distill.fit.epochs
    if spec is None:
        return (), {}
    written = transfer(spec, student, the_teacher(context))
    return written, holding(spec, student, written, epochs=epochs, seed=context.seed_of("transfer"))


def taught(
    context: StageContext,
    student: nn.Module,
    device: torch.device,
    plain: nn.Module | None = None,
    teacher: TeacherSource | None = None,
) -> tuple[nn.Module, DistillationLoss]:
    """What is fitted when a student is taught, and its loss.

    Args:
        context: of the stage.
        student: on `device`; a module, or its captured graph.
        device: of the fit.
        plain: the module that a graph was captured from.
        teacher: who teaches; by default the recipe's teachers.

    Returns:
        The student, or a module around it where a distiller compares features; the distillers' terms, and the hard
        loss where there are labels. The loss wants `before_step` called.
    """
    parts = context.distillers
    teacher = teacher or teacher_source(context, device)
    pairing = None
    if isinstance(teacher, CachedTeacher) and any(part.distiller.features != "none" for part, _ in parts):
        pairing = online_teacher(context, device)
    batch = to_device(context.two_samples(), device)
    return prepared(context.workload, parts, teacher, student, batch, plain=plain, pairing=pairing)
