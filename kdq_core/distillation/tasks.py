"""Several tasks: which outputs of student and teacher a distiller compares."""

from __future__ import annotations

from kdq_core.distillation.distance import distance
from kdq_core.errors import StageError, did_you_mean, listing
from kdq_core.plugins.kinds import TakenFor
from kdq_core.tensors import Outputs


def tasks_of(student: Outputs, teacher: Outputs, asked: str | None, name: str, *, features: bool) -> tuple[str, ...]:
    """List the tasks that KDQ calls a distiller for, one after the other; `("",)` for a single call on the outputs.

    Args:
        student: the student's outputs.
        teacher: the teacher's outputs.
        asked: the one task the distiller is for, or `None` for all tasks of the student.
        name: name of the distiller.
        features: whether the distiller compares features, which are the same for all tasks.

    Raises:
        StageError: a model lacks the task, or only one model has tasks and `asked` is `None`.
    """
    if asked is None and features:
        return ("",)
    if asked is None and bool(student.tasks) != bool(teacher.tasks):
        who, other, names = ("student", "teacher", student) if student.tasks else ("teacher", "student", teacher)
        raise StageError(
            f"the {who} gives the tasks {listing(names.tasks)}, the {other} one output without a name; say with 'task' "
            f"of distiller {name!r} which of them it is for, or name the outputs of an ONNX teacher in its 'tasks'"
        )
    for task in (asked,) if asked is not None else student.tasks:
        _check(task, student, teacher, name, asked=asked is not None)
    return (asked,) if asked is not None else tuple(student.tasks) or ("",)


def of_task(outputs: Outputs, task: str) -> Outputs:
    """Give the outputs of one of `tasks_of`; a model with one output gives it for any task."""
    return outputs.task(task) if task and outputs.tasks else outputs


def distance_between(student: Outputs, teacher: Outputs, task: str, reads: TakenFor) -> float:
    """Measure the distance between student and teacher in a task; without a task, the mean over their shared tasks."""
    shared = [name for name in student.tasks if name in teacher.tasks] if not task else []
    if shared:
        return sum(distance(student.tasks[name], teacher.tasks[name], reads) for name in shared) / len(shared)
    return distance(of_task(student, task).logits, of_task(teacher, task).logits, reads)


def _check(task: str, student: Outputs, teacher: Outputs, name: str, *, asked: bool) -> None:
    if not student.tasks and not teacher.tasks:
        raise StageError(
            f"distiller {name!r} is for the task {task!r}, but both models give one output without a name; leave "
            "'task' out"
        )
    for who, given in (("student", student), ("teacher", teacher)):
        if given.tasks and task not in given.tasks:
            remedy = "correct the distiller's 'task'" if asked else "name one they share in the distiller's 'task'"
            raise StageError(
                f"distiller {name!r} compares the task {task!r}, but the {who} gives the tasks {listing(given.tasks)}"
                f"{did_you_mean(task, given.tasks) or '.'} Let both models give a dict with that name, or {remedy}"
            )
