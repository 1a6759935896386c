"""Who teaches in a stage, and what a student that is taught is fitted with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdq_core.distillation.assembly import student_and_loss
from kdq_core.distillation.combining import DistillationLoss
from kdq_core.distillation.pairs import Taps
from kdq_core.distillation.parts import Part, teacher_paths, with_pairs
from kdq_core.teachers.source import CachedTeacher, OnlineTeacher, TeacherSource, half_precision
from kdq_core.training.fit import to_device
from kdq_core.work.models import new_student

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Distiller
    from kdq_core.recipe.spec import DistillerUse
    from kdq_core.work.work import StageWork


def parts_of(distillers: Iterable[tuple[DistillerUse, Distiller]]) -> tuple[tuple[Part, Taps], ...]:
    """Distillers of a recipe with their weights and schedules, each with the taps it asks for."""
    return tuple(
        (
            Part(name=use.title, distiller=distiller, weight=use.weight, options=use.schedules, task=use.task),
            use.taps,
        )
        for use, distiller in distillers
    )


def teacher_source(work: StageWork, device: torch.device) -> TeacherSource:
    """What answers for the teacher: its kept outputs where the plan has them, or the model itself."""
    if not work.has("outputs"):
        return online_teacher(work, device)
    data, fuse = work.workload.fingerprint(), work.section("distill").fuse_views
    return CachedTeacher(work.input("outputs"), teacher=work.input("teacher").digest, data=data, fuse=fuse)


def online_teacher(work: StageWork, device: torch.device, *, half: bool | None = None) -> OnlineTeacher:
    """The teacher itself, in the precision the recipe asks for, or as `half` says: bf16 or float32."""
    half = answers_in_half(work, device) if half is None else half
    return OnlineTeacher(work.model("teacher").to(device), inputs=work.section("teacher").reads, half=half)


def float_student(work: StageWork, device: torch.device) -> OnlineTeacher:
    """The float student at the input `student`, as the teacher of its quantized self."""
    return OnlineTeacher(work.model("student").to(device), half=answers_in_half(work, device))


def answers_in_half(work: StageWork, device: torch.device, *, exact: bool = False) -> bool:
    """Whether a teacher on `device` answers in bf16; by default, and unless `exact`, as suits the device."""
    asked = work.section("teacher").precision
    return bool(asked == "bf16" or (asked == "auto" and not exact and half_precision(device)))


def taught_student(
    work: StageWork,
    student: nn.Module,
    device: torch.device,
    plain: nn.Module | None = None,
    teacher: TeacherSource | None = None,
) -> tuple[nn.Module, DistillationLoss]:
    """What is fitted when a student is taught, and its loss.

    Args:
        work: of the stage.
        student: on `device`; a module, or its captured graph.
        device: of the fit.
        plain: the module that a graph was captured from.
        teacher: who teaches; by default the recipe's teachers.

    Returns:
        The student, or a module around it where a distiller compares features; the distillers' terms, and the hard
        loss where there are labels. The loss wants `before_step` called.
    """
    parts = parts_of(work.distillers)
    teacher = teacher or teacher_source(work, device)
    pairing = None
    if isinstance(teacher, CachedTeacher) and any(part.distiller.features != "none" for part, _ in parts):
        pairing = online_teacher(work, device, half=False)  # only for the shapes of what its modules give
    batch = to_device(work.two_samples(), device)
    return student_and_loss(work.workload, parts, teacher, student, batch, plain=plain, pairing=pairing)


def tapped_paths(work: StageWork, teacher: OnlineTeacher, device: torch.device) -> tuple[str, ...]:
    """The teacher's modules that the recipe's distillers compare with modules of the student.

    They follow from the taps, and with `auto` from the shapes that both models give; the key holds these.
    """
    parts = parts_of(work.asked.distillers)  # for their taps alone
    student = new_student(work).to(device)
    return teacher_paths(with_pairs(parts, student, teacher, to_device(work.two_samples(), device)))
