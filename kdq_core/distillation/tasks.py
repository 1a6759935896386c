"""Several tasks: which outputs of student and teacher a distiller compares."""

from __future__ import annotations

from collections.abc import Iterable

from kdq_core.errors import StageError, did_you_mean, listing
from kdq_core.tensors import Outputs


def tasks_of(student: Outputs, asked: str | None, *, features: bool) -> tuple[str, ...]:
    """The tasks a distiller is called for, one after the other; `("",)` for a single call on what the models give.

    Args:
        student: what it gives.
        asked: the one task the distiller is for, or `None`.
        features: whether it compares features, which are the same for all tasks.
    """
    if asked is not None:
        return (asked,)
    return ("",) if features or not student.tasks else tuple(student.tasks)


def check_tasks(tasks: Iterable[str], student: Outputs, teacher: Outputs, name: str) -> None:
    """Refuse a distiller for a task that one of the models does not have.

    Args:
        tasks: as of `tasks_of`.
        student: what it gives.
        teacher: what it gives.
        name: of the distiller.

    Raises:
        StageError: one has no such task.
    """
    for who, given in (("student", student), ("teacher", teacher)):
        missing = next((task for task in tasks if task and task not in given.tasks), None)
        if missing is not None:
            raise StageError(
                f"distiller {name!r} compares the task {missing!r}, but the {who} gives {_said(given.tasks)}"
                f"{did_you_mean(missing, given.tasks) or '.'} Let both models give a dict with that name, name the "
                "outputs of an ONNX teacher in its 'tasks', or correct the distiller's 'task'"
            )


def _said(tasks: Iterable[str]) -> str:
    names = list(tasks)
    return f"the tasks {listing(names)}" if names else "one output without a name"
