"""Frozen dataclasses that hold tensors inside one process; KDQ never sends them to another."""

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
        seed: the random seed that all views share.
        number: number of the view, from 0; each number is another augmentation.
    """

    seed: int
    number: int


class Example(tuple):  # type: ignore[type-arg]
    """Inputs to trace a model with, each of shape `[B, ...]`; a tuple that knows more of them.

    Attributes:
        names: names of the inputs in the file; empty for the usual ones.
        free: axes of each input, beside the batch, whose size may change; empty for none.
    """

    names: tuple[str, ...] = ()
    free: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Batch:
    """One batch of samples.

    Attributes:
        inputs: the student's inputs, each of shape `[B, ...]`.
        targets: hard labels of shape `[B, ...]`; `None` if the batch is unlabelled or the models have several tasks.
        ids: int64 sample numbers within the split, shape `[B]`.
        extra: further inputs by name, each of shape `[B, ...]`, for a teacher of another modality.
        view: number of the view that the inputs show; the stage sets it, a workload need not.
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
        """Whether the batch has hard labels."""
        return self.targets is not None or bool(self.tasks)

    def task(self, name: str) -> Batch:
        """Give the batch of one task: `targets` and `tasks` hold only its labels. Without labels, both are empty."""
        labels = self.tasks.get(name)
        return replace(self, targets=labels, tasks={} if labels is None else {name: labels})


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for a batch.

    Attributes:
        logits: `[B, C]`; if the model has several tasks, the logits of the first.
        features: outputs of tapped modules by path; empty if none were asked for.
        tasks: every output by task, in the model's order; empty if the model gives one tensor.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    tasks: Mapping[str, Tensor] = field(default_factory=dict)

    def task(self, name: str) -> Outputs:
        """Give the outputs of one task: its logits and the same features.

        Raises:
            KeyError: the outputs have no such task.
        """
        return Outputs(self.tasks[name], self.features)


@dataclass(frozen=True)
class LossTerms:
    """The distillation loss of one batch.

    Attributes:
        terms: scalar tensors by name, already weighted; KDQ sums them and logs each.
        hard_weight: weight of the workload's own loss on hard labels, which KDQ adds.
    """

    terms: Mapping[str, Tensor]
    hard_weight: float = 0.0
