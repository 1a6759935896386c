"""One distiller of a recipe in a fit: its weight, its schedules, and the layers it compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdq_core.distillation.pairs import Pair, Taps, resolved
from kdq_core.errors import StageError
from kdq_core.plugins.kinds import Distiller
from kdq_core.recipe.schedule import Schedule
from kdq_core.tensors import Batch

if TYPE_CHECKING:
    from kdq_core.teachers.source import TeacherSource

CONSTANT = Schedule(schedule="constant", start=1.0)


@dataclass(frozen=True)
class Part:
    """One distiller in a fit.

    Attributes:
        name: name of the distiller, which its curves carry.
        distiller: the plug-in with its options at the start of the fit.
        weight: schedule of the weight of all its soft terms.
        options: schedules of its options, by name.
        pairs: the layers it compares.
        task: the one task it is for. `None` is every task; a distiller of features is then called once.
    """

    name: str
    distiller: Distiller
    weight: Schedule = CONSTANT
    options: Mapping[str, Schedule] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    task: str | None = None

    @property
    def follows_distance(self) -> bool:
        """Whether a schedule follows the distance between student and teacher."""
        return any(schedule.schedule == "gap" for schedule in (self.weight, *self.options.values()))

    def at(self, share: float, distance: float) -> tuple[float, Distiller]:
        """Give weight and distiller at one step. KDQ validated both ends of every schedule with the recipe."""
        changed = {name: schedule.at(share, distance) for name, schedule in self.options.items()}
        return self.weight.at(share, distance), self.distiller.model_copy(update=changed)

    def curves(self, weight: float, distiller: Distiller) -> dict[str, float]:
        """Give the current values of weight and options that change over the fit, by name."""
        changing = [name for name, schedule in self.options.items() if schedule.schedule != "constant"]
        values = {} if self.weight.schedule == "constant" else {"weight": weight}
        return values | {name: float(getattr(distiller, name)) for name in changing}


def teacher_paths(parts: Iterable[Part]) -> tuple[str, ...]:
    """List the teacher's modules whose features are compared, each once."""
    return tuple(dict.fromkeys(pair.teacher for part in parts for pair in part.pairs))


def teacher_model(teacher: TeacherSource, parts: Iterable[Part]) -> nn.Module:
    """Give the module behind a teacher, to tap its features.

    Raises:
        StageError: the teacher has no module: it reads kept outputs, or is no PyTorch module.
    """
    model = getattr(teacher, "model", None)
    if not isinstance(model, nn.Module):
        names = ", ".join(repr(part.name) for part in parts if part.distiller.features != "none")
        raise StageError(
            f"distiller {names} compares features, but the teacher ({type(teacher).__name__}) gives outputs alone; use "
            "one PyTorch teacher that runs beside the student, or a distiller of outputs, such as 'logit-kd'"
        )
    return model


def with_pairs(
    parts: Sequence[tuple[Part, Taps]], student: nn.Module, teacher: TeacherSource, batch: Batch
) -> tuple[Part, ...]:
    """Give the parts with the pairs of modules that they compare.

    Pairs depend on the paths in both models and the shapes of outputs, not on weights: an untrained student has the
    same pairs as a trained one.

    Args:
        parts: the distillers, each with its taps.
        student: a plain module, on any device.
        teacher: a teacher with a module behind it.
        batch: some samples, on the teacher's device.

    Raises:
        RecipeError: a tap matches nothing.
        StageError: a distiller compares features that the teacher cannot give.
    """
    if all(part.distiller.features == "none" for part, _ in parts):
        return tuple(part for part, _ in parts)
    source = teacher_model(teacher, (part for part, _ in parts))
    inputs = tuple(x.to(_device(student, batch)) for x in batch.inputs)
    run = (lambda: student(*inputs)), (lambda: teacher(batch))
    return tuple(
        part if part.distiller.features == "none"
        else replace(part, pairs=resolved(taps, student, source, run, part.name))
        for part, taps in parts
    )  # fmt: skip


def _device(model: nn.Module, batch: Batch) -> torch.device:
    return next((p.device for p in model.parameters()), batch.inputs[0].device)
