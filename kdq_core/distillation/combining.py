"""Several distillers make one loss.

The loss of a step is `sum_i w_i * soft_i + H * hard` with `H = prod_i (1 - min(w_i, 1) * (1 - h_i))`, where `h_i` is
the weight that distiller i gives the hard loss. One distiller of weight 1 keeps its own loss. A distiller of weight 0
has no effect. H is continuous in every weight. The product is our own convention: the papers use one distiller each.
With several tasks, each task has its own hard loss and its own H, over the distillers of that task.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdq_core.distillation.parts import Part, teacher_paths
from kdq_core.distillation.tasks import distance_between, of_task, tasks_of
from kdq_core.errors import KdqError, StageError
from kdq_core.plugins.kinds import Distiller, TakenFor, Workload
from kdq_core.tensors import Batch, LossTerms, Outputs
from kdq_core.training.losses import check_names, loss_of, outputs_of

if TYPE_CHECKING:
    from kdq_core.distillation.student import TappedStudent
    from kdq_core.teachers.source import TeacherSource


TAKEN = ("hard", "loss", "quantization")
"""Names of curves that no term of a distiller may have."""


class DistillationLoss:
    """The loss that `fit()` minimises.

    With one distiller, its terms are named `<term>`; with several distillers, `<name>/<term>`. If the models have
    several tasks, the names are `<task>/<term>` or `<name>/<task>/<term>`, and the hard losses are `hard/<task>`.

    Attributes:
        tapped: the student being fitted, if a distiller compares features; otherwise `None`.
        scheduled: the values of schedules in the last step, by name of the curve, such as `schedule/weight`.
    """

    def __init__(
        self, workload: Workload, parts: Iterable[Part], teacher: TeacherSource, tapped: TappedStudent | None = None
    ) -> None:
        self.workload = workload
        self.parts = tuple(parts)
        self.teacher = teacher
        self.tapped = tapped
        self.scheduled: dict[str, float] = {}
        self._share = 0.0

    @property
    def compared(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Pairs of modules (student's, teacher's) whose features are compared, by name of the distiller."""
        return {part.name: tuple((p.student, p.teacher) for p in part.pairs) for part in self.parts if part.pairs}

    def before_step(self, done: int, total: int) -> None:
        """Set the progress of the fit, which the schedules follow.

        Args:
            done: steps done before this one.
            total: steps of the whole fit.
        """
        self._share = min(1.0, done / max(1, total - 1))

    def __call__(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Compute the weighted terms of one batch. Unlabelled batches, and tasks without labels, have no hard term.

        Raises:
            StageError: a distiller needs labels that are missing, features that the teacher does not give, or a task
                that one of the models does not have.
        """
        student, paths = outputs_of(model, batch), teacher_paths(self.parts)
        check_names(student, batch)
        teacher = self.teacher(batch, paths) if paths else self.teacher(batch)
        terms: dict[str, Tensor] = {}
        hard = dict.fromkeys(student.tasks or [""], 1.0)
        for index, part in enumerate(self.parts):
            compares = part.distiller.features != "none"
            tasks = tasks_of(student, teacher, part.task, part.name, features=compares)
            ours = self.tapped.features(index) if self.tapped is not None else {}
            theirs = {pair.name: teacher.features[pair.teacher] for pair in part.pairs}
            for task in tasks:
                distance = distance_between(student, teacher, task, self._reads(part)) if part.follows_distance else 0.0
                weight, distiller = part.at(self._share, distance)
                mine, told = of_task(student, task).logits, of_task(teacher, task).logits
                seen = batch.task(task) if task and student.tasks else batch
                with _naming(task):
                    _check_labels(distiller, part, seen)
                    given = _asked(part.name, distiller, Outputs(mine, ours), Outputs(told, theirs), seen)
                prefix = (f"{part.name}/" if len(self.parts) > 1 else "") + (f"{task}/" if task else "")
                terms |= {f"{prefix}{name}": _weighted(weight, term) for name, term in given.terms.items()}
                self.scheduled |= {f"schedule/{prefix}{n}": v for n, v in part.curves(weight, distiller).items()}
                for name in [task] if task in hard else hard:
                    hard[name] *= 1 - min(weight, 1.0) * (1 - given.hard_weight)
        others = self._hard(student, batch, hard)
        _check_apart(terms, others)
        return terms | others

    def _reads(self, part: Part) -> TakenFor:
        """Tell what the outputs are. A distiller of features asks the first distiller that compares outputs."""
        of_outputs = (other for other in (part, *self.parts) if other.distiller.features == "none")
        return next(of_outputs, part).distiller.reads

    def _hard(self, student: Outputs, batch: Batch, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Compute the hard loss, or the hard loss of each task, by name of the term."""
        if not student.tasks:
            labelled = batch.targets is not None and weights[""]
            return {"hard": weights[""] * loss_of(self.workload, student, batch)} if labelled else {}
        asked = [name for name, weight in weights.items() if weight and name in batch.tasks]
        return {f"hard/{name}": weights[name] * loss_of(self.workload, student, batch.task(name)) for name in asked}


@contextlib.contextmanager
def _naming(task: str) -> Iterator[None]:
    """Put the task in front of an error about its logits or labels."""
    try:
        yield
    except StageError as error:
        if not task:
            raise
        raise StageError(f"task {task!r}: {error}") from error


def _asked(name: str, distiller: Distiller, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
    """Call the distiller's `loss()`. An exception from its own code gets a note that names the distiller."""
    try:
        with torch.autocast(student.logits.device.type, enabled=False):  # sums of squares are mostly rounding in bf16
            given = distiller.loss(_full(student), _full(teacher), batch)
    except KdqError:
        raise
    except Exception as error:
        without = ", given a batch without labels: one that needs labels says needs_labels = True"
        error.add_note(f"the distiller {name!r} raised it{without if batch.targets is None else ''}")
        raise
    wrong = _wrong(given)
    if wrong:
        raise StageError(
            f"distiller {name!r} gave {wrong}; its loss() must give LossTerms(terms={{'name': scalar}}, "
            "hard_weight=...) of kdq_core.api"
        )
    return given


def _wrong(given: object) -> str:
    """Name the first fault in what a distiller gave as `LossTerms`; empty if it has none."""
    if not isinstance(given, LossTerms):
        return f"a {type(given).__name__!r}"
    for name, term in given.terms.items():
        if not isinstance(term, Tensor):
            return f"the term {name!r} as a {type(term).__name__!r}"
        if term.ndim:
            return f"the term {name!r} of shape {tuple(term.shape)}"
    weight = given.hard_weight
    if not isinstance(weight, Tensor) and not 0 <= weight < math.inf:
        return f"the hard weight {weight!r}"
    return "" if given.terms else "no term"


def _full(outputs: Outputs) -> Outputs:
    """Convert shorter floats to float32."""

    def long(x: Tensor) -> Tensor:
        return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

    features = {name: long(value) for name, value in outputs.features.items()}
    return replace(outputs, logits=long(outputs.logits), features=features)


def _weighted(weight: float, term: Tensor) -> Tensor:
    """Compute `weight * term`; a term of weight 0 that is not finite gives 0."""
    return weight * term if weight or bool(term.isfinite().all()) else term.new_zeros(())


def _check_apart(terms: Iterable[str], others: Iterable[str]) -> None:
    """Refuse a distiller's term with a name that is taken: one of the two curves would be lost."""
    taken = sorted({*TAKEN, *others}.intersection(terms))
    if taken:
        raise StageError(
            f"a distiller gave a term called {taken[0]!r}, and that is the name of a curve of the training itself; "
            "call it something else in `terms`"
        )


def _check_labels(distiller: Distiller, part: Part, batch: Batch) -> None:
    if distiller.needs_labels and batch.targets is None:
        raise StageError(
            f"distiller {part.name!r} needs a label for each sample, but the workload gave a batch of {len(batch.ids)} "
            "samples without labels; label the data, or use a distiller that needs none, such as 'logit-kd'"
        )
