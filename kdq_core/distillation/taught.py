"""The student as it is fitted: itself, the taps that read it, and the projectors that are trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.distillation.combining import DistillationLoss, Part, teacher_model, teacher_paths
from kdq_core.distillation.pairs import Taps, resolved
from kdq_core.errors import StageError
from kdq_core.tensors import Batch
from kdq_core.training.losses import observers_off
from kdq_core.training.taps import graph_forward, tapping

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Workload
    from kdq_core.teachers.source import TeacherSource


class Taught(nn.Module):
    """Student and projectors as one module, so that one optimizer trains both and one file resumes both.

    In training mode its forward keeps the projected features of that call; in eval mode it is the student. Only
    `student` is a checkpoint.
    """

    def __init__(self, student: nn.Module, parts: Sequence[Part], plain: nn.Module | None = None) -> None:
        """Read `student` at the student's paths of all `parts`; projectors come by `add_projectors`.

        Args:
            student: a module, or its captured graph.
            parts: with their pairs.
            plain: the module that a graph was captured from.
        """
        super().__init__()
        self.student = student
        self.projectors = nn.ModuleDict({str(index): nn.ModuleDict() for index in range(len(parts))})
        self.parts = tuple(parts)
        self._paths = tuple(dict.fromkeys(pair.student for part in parts for pair in part.pairs))
        self._graph = graph_forward(student, self._paths, plain) if isinstance(student, fx.GraphModule) else None
        self._features: dict[int, dict[str, Tensor]] = {}

    def forward(self, *inputs: Tensor) -> Any:
        """What the student gives."""
        if not self.training:
            return self.student(*inputs)
        given, seen = self._read(inputs)
        self._check_gradient(given, seen)
        self._features = {
            index: {pair.name: self._projected(index, pair.name, seen[pair.student]) for pair in part.pairs}
            for index, part in enumerate(self.parts)
        }
        return given

    def features(self, index: int) -> Mapping[str, Tensor]:
        """The projected features of part `index` from the last call in training mode, by name of the pair."""
        return self._features.get(index, {})

    def shapes(self, *inputs: Tensor) -> dict[str, tuple[int, ...]]:
        """Shape of each tapped tensor without the batch, by path; nothing is trained, no statistic or range moves."""
        training = self.training
        self.eval()
        with torch.no_grad(), observers_off(self):
            _, seen = self._read(inputs)
        self.train(training)
        return {path: tuple(value.shape[1:]) for path, value in seen.items()}

    def add_projectors(self, index: int, made: Mapping[str, nn.Module]) -> None:
        """Let the features of part `index` go through `made`, by name of the pair."""
        self.projectors[str(index)] = nn.ModuleDict(dict(made))

    def _read(self, inputs: tuple[Tensor, ...]) -> tuple[Any, Mapping[str, Tensor]]:
        if self._graph is not None:
            given, values = self._graph(self.student, *inputs)
            return given, dict(zip(self._paths, values, strict=True))
        with tapping(self.student, self._paths, "student") as seen:
            given = self.student(*inputs)
        return given, seen

    def _check_gradient(self, given: Any, seen: Mapping[str, Tensor]) -> None:
        """Refuse a tap through which nothing would be learnt, of a student that does learn."""
        outputs = given.values() if isinstance(given, Mapping) else [given]
        if not any(isinstance(x, Tensor) and x.requires_grad for x in outputs):
            return
        still = next((path for path, value in seen.items() if not value.requires_grad), None)
        if still is not None:
            raise StageError(
                f"tap {still!r} of the student carries no gradient, so that comparing it would teach nothing: what is "
                "up to there is frozen, or runs in torch.utils.checkpoint with use_reentrant=True; tap a layer that "
                "trains, or use use_reentrant=False"
            )

    def _projected(self, index: int, name: str, value: Tensor) -> Tensor:
        made = cast("Mapping[str, nn.Module]", self.projectors[str(index)])
        return cast("Tensor", made[name](value)) if name in made else value


def taught(
    workload: Workload,
    parts: Sequence[tuple[Part, Taps]],
    teacher: TeacherSource,
    student: nn.Module,
    batch: Batch,
    *,
    plain: nn.Module | None = None,
    pairing: TeacherSource | None = None,
) -> tuple[nn.Module, DistillationLoss]:
    """The module to fit, and its loss.

    Args:
        workload: gives the hard loss.
        parts: the distillers, each with its taps; pairs are found here.
        teacher: on the device of `batch`.
        student: what is trained, on the device of `batch`; a module, or its captured graph.
        batch: some samples, to learn shapes from.
        plain: the module that `student` was captured from, on any device.
        pairing: a teacher with a module behind it, to find pairs and shapes with, where `teacher` says what was kept.

    Returns:
        `student` itself where no distiller compares features, else a `Taught`.

    Raises:
        RecipeError: a tap fits nothing.
        StageError: a distiller compares features that the teacher cannot give.
    """
    if all(part.distiller.features == "none" for part, _ in parts):
        return student, DistillationLoss(workload, (part for part, _ in parts), teacher)
    asked = teacher if pairing is None else pairing
    found = paired(parts, student if plain is None else plain, asked, batch)
    module = Taught(student, found, plain)
    loss = DistillationLoss(workload, found, teacher, module)
    theirs = {path: tuple(value.shape[1:]) for path, value in asked(batch, teacher_paths(found)).features.items()}
    _project(module, found, module.shapes(*batch.inputs), theirs)
    return module.to(batch.inputs[0].device), loss


def paired(
    parts: Sequence[tuple[Part, Taps]], student: nn.Module, teacher: TeacherSource, batch: Batch
) -> tuple[Part, ...]:
    """The parts with the pairs of modules they compare.

    Pairs follow from the paths of both models and the shapes of what they give, not from weights: an untrained student
    has the same.

    Args:
        parts: the distillers, each with its taps.
        student: a plain module, on any device.
        teacher: one with a module behind it.
        batch: some samples, on the teacher's device.

    Raises:
        RecipeError: a tap fits nothing.
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


def _project(
    module: Taught, parts: Sequence[Part], ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]
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


def _device(model: nn.Module, batch: Batch) -> torch.device:
    return next((p.device for p in model.parameters()), batch.inputs[0].device)
