"""The teacher of a stage, and the module and loss that KDQ fits a student with."""

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
from kdq_core.training.rows import to_device
from kdq_core.work.models import new_student
from kdq_core.work.shown import request_of

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Distiller
    from kdq_core.recipe.spec import DistillerUse
    from kdq_core.work.work import StageWork


def parts_of(distillers: Iterable[tuple[DistillerUse, Distiller]]) -> tuple[tuple[Part, Taps], ...]:
    """Give each distiller of a recipe with its weight and schedules, and the taps it asks for."""
    return tuple(
        (
            Part(name=use.title, distiller=distiller, weight=use.weight, options=use.schedules, task=use.task),
            use.taps,
        )
        for use, distiller in distillers
    )


def teacher_source(work: StageWork, device: torch.device) -> TeacherSource:
    """Choose the source of the teacher's outputs: those that the plan keeps, or else the model itself."""
    if not work.has("outputs"):
        return online_teacher(work, device)
    data, fuse = work.workload.fingerprint(), work.section("distill").fuse_views
    return CachedTeacher(work.input("outputs"), teacher=work.input("teacher").digest, data=data, fuse=fuse)


def online_teacher(work: StageWork, device: torch.device, *, half: bool | None = None) -> OnlineTeacher:
    """Load the teacher, to run beside the student; `half`: in bf16 or float32, by default as the recipe asks."""
    half = answers_in_half(work, device) if half is None else half
    return OnlineTeacher(work.model("teacher").to(device), inputs=work.section("teacher").reads, half=half)


def float_student(work: StageWork, device: torch.device) -> OnlineTeacher:
    """Load the float student of the input `student`, as the teacher of the quantized student."""
    return OnlineTeacher(work.model("student").to(device), half=answers_in_half(work, device))


def answers_in_half(work: StageWork, device: torch.device, *, exact: bool = False) -> bool:
    """Whether a teacher on `device` answers in bf16; under `auto`, if bf16 suits the device, unless `exact`."""
    asked = work.section("teacher").precision
    return bool(asked == "bf16" or (asked == "auto" and not exact and half_precision(device)))


def student_and_loss_of(
    work: StageWork,
    student: nn.Module,
    device: torch.device,
    plain: nn.Module | None = None,
    teacher: TeacherSource | None = None,
) -> tuple[nn.Module, DistillationLoss]:
    """Give the module to fit and its distillation loss.

    Args:
        work: of the stage.
        student: on `device`; a module, or its captured graph.
        device: of the fit.
        plain: for a graph, the module that it was captured from.
        teacher: the source of soft targets; by default the recipe's teachers.

    Returns:
        The student, or a module around it if a distiller compares features; and the loss: the distillers' terms, and
        the hard loss on labelled samples. The fit must call the loss's `before_step`.
    """
    parts = parts_of(work.distillers)
    teacher = teacher or teacher_source(work, device)
    pairing = None
    if isinstance(teacher, CachedTeacher) and any(part.distiller.features != "none" for part, _ in parts):
        pairing = online_teacher(work, device, half=False)  # only for the shapes of its features
    batch = to_device(work.two_samples(), device)
    return student_and_loss(work.workload, parts, teacher, student, batch, plain=plain, pairing=pairing)


def tapped_paths(work: StageWork, teacher: OnlineTeacher, device: torch.device) -> tuple[str, ...]:
    """Paths of the teacher's modules that the recipe's distillers compare with modules of the student.

    They follow from the taps; with `auto`, from the shapes of both models' features. The key holds these.
    """
    parts = parts_of(request_of(work).distillers)  # past the guards: only their taps matter
    student = new_student(work).to(device)
    return teacher_paths(with_pairs(parts, student, teacher, to_device(work.two_samples(), device)))
