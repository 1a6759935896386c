"""A rehearsal: KDQ computes the loss of an untrained student on two samples, and so finds early what does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdq_core.distillation.assembly import student_and_loss
from kdq_core.distillation.combining import DistillationLoss
from kdq_core.distillation.numbers import check_numbers
from kdq_core.errors import RecipeError, StageError
from kdq_core.quantization.untraceable import layer_of
from kdq_core.teachers.source import OnlineTeacher
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.finite import odd_samples, why_odd
from kdq_core.training.half import in_bf16
from kdq_core.training.losses import labelled_tasks, outputs_of
from kdq_core.training.rows import rows_of, to_device
from kdq_core.training.taps import graph_forward
from kdq_core.work.answering import answer
from kdq_core.work.data import checked, two_samples
from kdq_core.work.quantized import check_student
from kdq_core.work.teaching import parts_of

if TYPE_CHECKING:
    from kdq_core.recipe.spec import FitSpec
    from kdq_core.work.checking import CheckWork


def first_samples(work: CheckWork) -> Batch:
    """Read two training samples onto the site's device."""
    batch = next(iter(work.workload.batches("train", batch_size=2)))
    return to_device(checked(batch, "train"), work.accelerator().device)


def teacher_of(work: CheckWork) -> OnlineTeacher:
    """Build the untrained teacher of the input `teacher`, on the site's device, in float32."""
    model = work.model("teacher").to(work.accelerator().device)
    return OnlineTeacher(model, inputs=work.section("teacher").reads)


def rehearse(work: CheckWork, student: nn.Module) -> None:
    """Compute the distillation loss of `student` on two samples, once.

    Raises:
        RecipeError: a tap matches no module.
        StageError: the outputs of the two models do not fit the distillers, the batch lacks labels that they need, or
            the loss is not finite.
    """
    work.memo["rehearsed"] = True
    teacher, batch = teacher_of(work), first_samples(work)
    student = student.to(batch.inputs[0].device)
    answer("student", student, batch)
    model, loss = student_and_loss(work.workload, parts_of(work.distillers), teacher, student, batch)
    with in_bf16(model, batch.inputs[0].device, half=work.site.precision == "bf16"):
        terms = loss(model.train(), batch)  # with gradients, so that a tap without one is refused
    check_numbers(loss.parts, outputs_of(student, batch), batch)
    samples = odd_samples(outputs_of(student, batch), batch)
    if samples:
        raise StageError(why_odd("a student that is not trained yet", samples, "train", len(batch.ids)))
    odd = {name: float(term.detach()) for name, term in terms.items() if not term.isfinite().all()}
    if odd:
        raise StageError(
            f"the loss of a student that is not trained yet is not finite on the first two training samples "
            f"({', '.join(f'{name} {value!r}' for name, value in odd.items())}); look for NaN in the data, and for a "
            "division by zero in the workload's loss or the distiller"
        )
    if any(member.trained for member in work.section("teacher").members):
        with torch.no_grad():
            _check_task_labels(work, teacher(batch))


def check_last_batch(work: CheckWork, model: nn.Module, spec: FitSpec, read: Callable[[Batch], Batch]) -> None:
    """Refuse a batch size that leaves a batch norm with a single value of each channel.

    Args:
        work: the stage, whose fit will have these batches.
        model: an untrained model; it stays as it is.
        spec: its fit.
        read: gives the batch as the model reads it.

    Raises:
        RecipeError: the last training batch has one sample, and the model cannot train on it.
    """
    norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    if not norms or work.workload.samples("train") % spec.batch_size != 1:
        return
    one = read(rows_of(two_samples(work.workload), torch.tensor([0])))
    trained = copy.deepcopy(model).cpu().train()
    try:
        trained(*one.inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error) or all(
            len(batch.ids) > 1 for batch in work.batches(0, spec.batch_size)
        ):
            return
        owner = layer_of(error, trained)
        raise RecipeError(
            f"the 'fit' of stage {work.title!r} asks for batches of {spec.batch_size!r} samples, which leaves 1 of the "
            f"{work.workload.samples('train')} training samples for the last batch; batch norm {owner!r} cannot learn "
            "from one value a channel; choose another 'batch_size', or let the workload drop that batch"
        ) from error


def rehearse_in_graph(work: CheckWork, student: nn.Module, teacher: OnlineTeacher) -> None:
    """Read the taps of `student` in its captured graph, as QAT does.

    Raises:
        RecipeError: a tap matches no module.
        StageError: a tap has no operator in the graph.
    """
    batch = first_samples(work)
    student = student.to(batch.inputs[0].device)
    _, loss = student_and_loss(work.workload, parts_of(work.distillers), teacher, student, batch)
    read = _student_paths(loss)
    if read:
        graph_forward(check_student(work, student.cpu()), read, student)


def _student_paths(loss: DistillationLoss) -> list[str]:
    return [pair.student for part in loss.parts for pair in part.pairs]


def _check_task_labels(work: CheckWork, answers: Outputs) -> None:
    """Refuse a task whose teacher KDQ would have to train without labels."""
    uses = [use.task for use, _ in work.distillers]
    asked = set(answers.tasks) if None in uses else set(answers.tasks).intersection(filter(None, uses))
    batches = work.batches(0, work.section("teacher").fit.batch_size)
    missing = sorted(asked - labelled_tasks(batches, asked)) if asked else []
    if missing:
        raise StageError(
            f"the teacher is trained on labels, but no batch of the workload's split 'train' has any of the task "
            f"{missing[0]!r}, so what it says of that task would mean nothing; label some, name the other tasks as "
            "'task' of the distillers, or a teacher that is trained already in 'teacher.members'"
        )
