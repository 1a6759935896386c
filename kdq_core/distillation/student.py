"""The student in a fit, with the taps that read its features and the projectors that train with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from kdq_core.distillation.parts import Part
from kdq_core.errors import StageError
from kdq_core.training.losses import observers_off
from kdq_core.training.taps import graph_forward, tapping


class TappedStudent(nn.Module):
    """Student and projectors as one module, so that one optimizer trains both and one file resumes both.

    In training mode, `forward` keeps the projected features of the call. In eval mode, it only calls the student. KDQ
    saves only `student` as the checkpoint.
    """

    def __init__(self, student: nn.Module, parts: Sequence[Part], plain: nn.Module | None = None) -> None:
        """Tap `student` at the student's paths of all `parts`; `add_projectors` adds the projectors later.

        Args:
            student: a module, or its captured graph.
            parts: the distillers with their pairs.
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
        """Give the student's outputs."""
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
        """Give the projected features of part `index` from the last call in training mode, by name of the pair."""
        return self._features.get(index, {})

    def shapes(self, *inputs: Tensor) -> dict[str, tuple[int, ...]]:
        """Find each tapped tensor's shape without the batch axis, by path. No weight, statistic or range changes."""
        training = self.training
        self.eval()
        with torch.no_grad(), observers_off(self):
            _, seen = self._read(inputs)
        self.train(training)
        return {path: tuple(value.shape[1:]) for path, value in seen.items()}

    def add_projectors(self, index: int, made: Mapping[str, nn.Module]) -> None:
        """Add the projectors `made`, by name of the pair, to the features of part `index`."""
        self.projectors[str(index)] = nn.ModuleDict(dict(made))

    def _read(self, inputs: tuple[Tensor, ...]) -> tuple[Any, Mapping[str, Tensor]]:
        if self._graph is not None:
            given, values = self._graph(self.student, *inputs)
            return given, dict(zip(self._paths, values, strict=True))
        with tapping(self.student, self._paths, "student") as seen:
            given = self.student(*inputs)
        return given, seen

    def _check_gradient(self, given: Any, seen: Mapping[str, Tensor]) -> None:
        """Refuse a tap without a gradient in a student that trains: comparing it would teach nothing."""
        outputs = given.values() if isinstance(given, Mapping) else [given]
        if not any(isinstance(x, Tensor) and x.requires_grad for x in outputs):
            return
        still = next((path for path, value in seen.items() if not value.requires_grad), None)
        if still is not None:
            raise StageError(
                f"tap {still!r} of the student carries no gradient, so comparing it would teach nothing: the layers up "
                "to it are frozen, or run in torch.utils.checkpoint with use_reentrant=True; tap a layer that trains, "
                "or use use_reentrant=False"
            )

    def _projected(self, index: int, name: str, value: Tensor) -> Tensor:
        made = cast("Mapping[str, nn.Module]", self.projectors[str(index)])
        return cast("Tensor", made[name](value)) if name in made else value
