"""What the workloads for the user's own models share: the models and the hard loss, by name."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from kdq_core.api import USER_CODE, Batch, Field, Outputs, RecipeError, StageError, Workload, user_object
from kdq_workloads.losses import LOSSES

if TYPE_CHECKING:
    from torch import Tensor, nn

LOSS = rf"^({'|'.join(LOSSES)})$|{USER_CODE}"


class OwnModels(Workload):
    """A workload whose models and loss are the user's own functions."""

    student_options: ClassVar[frozenset[str]] = frozenset({"model"})

    model: str = Field(
        pattern=USER_CODE, description="`file.py:function` or `module:function` that makes the model; or a model there"
    )
    teacher_model: str | None = Field(
        default=None, alias="teacher", pattern=USER_CODE, description="the same for the teacher; null: there is none"
    )
    loss_name: str = Field(
        default="auto",
        alias="loss",
        pattern=LOSS,
        description="cross-entropy, bce, mse, ctc or `file.py:function` of (outputs, targets); auto: mse for labels "
        "that are floating-point numbers, else cross-entropy",
    )

    def runs(self) -> tuple[str, ...]:
        """The files with the models and the loss."""
        return tuple(one for one in (self.model, self.teacher_model, self.loss_name) if one and ":" in one)

    def student(self) -> nn.Module:
        """Make the model."""
        return made(self.model, "model", self.data_names())

    def teacher(self) -> nn.Module:
        """Make the teacher.

        Raises:
            RecipeError: the recipe names none.
        """
        if self.teacher_model is None:
            raise RecipeError(
                "the recipe asks for a teacher, and its workload names none; add teacher: 'file.py:function' to the "
                "options of the workload, or list only stages without a teacher, such as [quantize, export, evaluate]"
            )
        return made(self.teacher_model, "teacher", self.data_names())

    dynamic: dict[str, tuple[int, ...]] = Field(
        default={}, description="axes whose size may change from batch to batch, by input, such as {tokens: [1]}"
    )

    def __hash__(self) -> int:
        """A hash of all options."""
        return hash(self.model_dump_json())

    def data_names(self) -> tuple[str, ...]:
        """Names of the inputs in the data, in order; empty if they have none."""
        return ()

    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs in the data, or else those of the parameters of the model's `forward`."""
        return self.data_names() or _parameters(self)

    def free_axes(self) -> Mapping[str, tuple[int, ...]]:
        """The option `dynamic`."""
        return self.dynamic

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The mean loss; with several tasks, the sum over those with labels.

        Raises:
            StageError: the batch has no labels.
        """
        import torch

        loss = LOSSES.get(self.loss_name) or user_object(self.loss_name)
        if batch.targets is not None:
            given: Tensor = loss(outputs.logits, batch.targets)
            return given
        parts = [loss(outputs.tasks[name], labels) for name, labels in batch.tasks.items()]
        if not parts:
            raise StageError("the loss needs labels, and this batch has none; give the data labels")
        return torch.stack(parts).sum()


@functools.lru_cache(maxsize=4)
def _parameters(workload: OwnModels) -> tuple[str, ...]:
    import torch

    with torch.random.fork_rng(devices=[]):
        model = workload.student()
    found: tuple[str, ...] = getattr(model, "forward_parameters", ())
    return found


def made(target: str, option: str, names: tuple[str, ...] = ()) -> nn.Module:
    """Make the model that a target names, and let it give plain logits.

    Args:
        target: a function without arguments, a class, or a model.
        option: the option that names it, for messages.
        names: names of the inputs, to pass them by name where `forward` has them.

    Raises:
        StageError: it is or gives no `nn.Module`.
    """
    import torch
    from torch import nn

    from kdq_workloads.plain import plain

    with torch.random.fork_rng(devices=[]):  # importing the file must not change the weights of what it makes
        found = user_object(target)
    given: Any = copy.deepcopy(found) if isinstance(found, nn.Module) else _called(found, target, option)
    if not isinstance(given, nn.Module):
        raise StageError(
            f"{option} {target!r} gives a {type(given).__name__!r}; it must be a torch.nn.Module, or a function "
            "without arguments that returns one"
        )
    return plain(given, names)


def _called(found: Any, target: str, option: str) -> Any:
    if not callable(found):
        raise StageError(
            f"{option} {target!r} is a {type(found).__name__!r}; it must be a torch.nn.Module, or a function without "
            "arguments that returns one"
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise StageError(
            f"{option} {target!r} cannot be called without arguments: {error}; write a function that makes the model"
        ) from error
    except ValueError:  # some functions in C have no signature
        pass
    return found()
