"""What holds tensors inside one process: frozen dataclasses, never sent anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation", "test"]
Batches = Callable[[], "Iterable[Batch]"]


class View(NamedTuple):
    """One augmentation of the whole training split: sample i of a view looks the same whenever it is drawn.

    Attributes:
        seed: of the views.
        number: from 0; each is an augmentation of its own.
    """

    seed: int
    number: int


@dataclass(frozen=True)
class Batch:
    """One batch of samples.

    Attributes:
        inputs: what the student is called with, each of shape `[B, ...]`.
        targets: hard labels of shape `[B, ...]`, or `None` where the data is unlabelled or the models have tasks.
        ids: int64 sample numbers within the split, shape `[B]`.
        extra: named inputs beside those, each of shape `[B, ...]`: what a teacher of another modality reads.
        view: number of the view the inputs are; the stage fills it in, a workload need not.
        tasks: hard labels by task, each `[B, ...]`, for models with several outputs; a task without labels is missing.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor | None
    ids: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    view: int = 0
    tasks: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether there is any hard label."""
        return self.targets is not None or bool(self.tasks)

    def task(self, name: str) -> Batch:
        """The batch as one task sees it: its labels are the `targets`, `None` without, and all there is in `tasks`."""
        labels = self.tasks.get(name)
        return replace(self, targets=labels, tasks={} if labels is None else {name: labels})


@dataclass(frozen=True)
class Outputs:
    """What a model gives for a batch.

    Attributes:
        logits: `[B, C]`; of a model with several tasks, those of the first.
        features: named tensors, where they were asked for.
        tasks: every output by task, in the model's order, where it gives several; empty where it gives one tensor.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    tasks: Mapping[str, Tensor] = field(default_factory=dict)

    def task(self, name: str) -> Outputs:
        """The outputs of one task: its logits, the same features.

        Raises:
            KeyError: there is no such task.
        """
        return Outputs(self.tasks[name], self.features)


@dataclass(frozen=True)
class LossTerms:
    """The distillation loss of one batch.

    Attributes:
        terms: scalar tensors by name, already weighted; they are summed and each is logged.
        hard_weight: the weight the workload's own loss on hard labels gets beside them.
    """

    terms: Mapping[str, Tensor]
    hard_weight: float = 0.0
