"""Read a student that is already trained.

What: loads the safetensors file that the recipe's section `student` names. The weights go into the workload's student,
    or into the module that `student.factory` makes. Later stages get them bit for bit.
Defaults: a recipe with `student: {source: checkpoint}` starts with this stage and need not list it.
Limits: the file must have the keys and shapes of the module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Asked, Checkpoint, Reads, RecipeError, Record, Section, Stage

if TYPE_CHECKING:
    from torch import nn

    from kdq_core.work.work import StageWork


class ReadStudent(Stage):
    """A student from a checkpoint."""

    gives: ClassVar[str] = "student"
    record: ClassVar[type[Record]] = Checkpoint

    def wanted(self, asked: Asked) -> bool:
        """True: a recipe that lists this stage wants it.

        Raises:
            RecipeError: the recipe names no file.
        """
        if asked.recipe.student.file is None:
            raise RecipeError(
                "stage 'read_student' reads the file of a trained student, but the recipe names none; write student: "
                "{source: checkpoint, file: ...}"
            )
        return True

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The section `student`, with its file and its factory hashed by content."""
        student = Section(name="student")
        return Reads(
            sections=(Section(name="workload"), student), plugins=("workload",), seeded=False, data=False, device=False
        )

    def untrained(self, work: StageWork) -> nn.Module:  # type: ignore[override]
        """The trained student, as the file has it."""
        from kdq_core.work.models import read_student

        return read_student(work)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Read the file into the student."""
        from kdq_core.work.models import read_student

        return work.checkpoint(read_student(work))
