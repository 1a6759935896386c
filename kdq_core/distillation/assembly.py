"""Assembles the module to fit and its loss from a student, a teacher and distillers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from kdq_core.distillation.combining import DistillationLoss
from kdq_core.distillation.pairs import Taps
from kdq_core.distillation.parts import Part, teacher_paths, with_pairs
from kdq_core.distillation.student import TappedStudent
from kdq_core.errors import StageError
from kdq_core.tensors import Batch

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Workload
    from kdq_core.teachers.source import TeacherSource


def student_and_loss(
    workload: Workload,
    parts: Sequence[tuple[Part, Taps]],
    teacher: TeacherSource,
    student: nn.Module,
    batch: Batch,
    *,
    plain: nn.Module | None = None,
    pairing: TeacherSource | None = None,
) -> tuple[nn.Module, DistillationLoss]:
    """Make the module to fit, and its loss.

    Args:
        workload: gives the hard loss.
        parts: the distillers, each with its taps; this function finds their pairs.
        teacher: gives the teacher's outputs, on the device of `batch`.
        student: a module or its captured graph, on the device of `batch`; the fit trains it.
        batch: some samples, to find shapes with.
        plain: the module that `student` was captured from, on any device.
        pairing: a teacher with a module, to find pairs and shapes with; needed if `teacher` gives kept outputs.

    Returns:
        `student` itself if no distiller compares features, otherwise a `TappedStudent`; and the loss.

    Raises:
        RecipeError: a tap matches nothing, or gives no tensor.
        StageError: a distiller compares features that the teacher cannot give.
    """
    if all(part.distiller.features == "none" for part, _ in parts):
        return student, DistillationLoss(workload, (part for part, _ in parts), teacher)
    asked = teacher if pairing is None else pairing
    found = with_pairs(parts, student if plain is None else plain, asked, batch)
    module = TappedStudent(student, found, plain)
    loss = DistillationLoss(workload, found, teacher, module)
    theirs = {path: tuple(value.shape[1:]) for path, value in asked(batch, teacher_paths(found)).features.items()}
    _project(module, found, module.shapes(*batch.inputs), theirs)
    return module.to(batch.inputs[0].device), loss


def _project(
    module: TappedStudent,
    parts: Sequence[Part],
    ours: Mapping[str, tuple[int, ...]],
    theirs: Mapping[str, tuple[int, ...]],
) -> None:
    for index, part in enumerate(parts):
        mine = {pair.name: ours[pair.student] for pair in part.pairs}
        made = part.distiller.projectors(mine, {pair.name: theirs[pair.teacher] for pair in part.pairs})
        strange = sorted(set(made) - set(mine))
        if strange:
            raise StageError(
                f"distiller {part.name!r} gives a projector for {strange[0]!r}, which is no pair of its taps; "
                f"it has {', '.join(mine)}"
            )
        module.add_projectors(index, made)
