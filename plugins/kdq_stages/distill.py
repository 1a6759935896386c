"""Train the student with the teacher's outputs.

What: fits the student to the loss terms of the recipe's distillers and to the hard labels. With `distill.control`, it
    fits a second student without the teacher, and reports what the first one gained from the teacher.
Defaults: the distiller `logit-kd`, a new student of the workload. If an earlier stage gives a student, such as one
    from a checkpoint or a pruned one, this stage trains it further.
    If the recipe has a budget or leaves the quantizer to KDQ, the learning-rate schedule is as long as `distill` and
    `quantize` together, and KDQ keeps the weights where the part of `quantize` would begin.
Limits: the outputs and features that the distillers compare must fit teacher and student. KDQ checks this with two
    samples before it trains anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from kdq_core.api import Asked, Checkpoint, Needs, Port, Reads, RecipeError, Record, Section, Stage
from kdq_core.work.slots import OUTPUTS, STUDENT, TEACHER, optional, schedule_part, teaching_sections

if TYPE_CHECKING:
    from torch import nn

    from kdq_core.store.records import EpochRecord
    from kdq_core.work.checking import CheckWork
    from kdq_core.work.work import StageWork


class Distill(Stage):
    """The float student."""

    gives: ClassVar[str] = "student"
    record: ClassVar[type[Record]] = Checkpoint
    needs: ClassVar[Needs] = Needs(precision="site")

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """The teacher, its cached outputs, and a student to train further if an earlier stage gives one."""
        return {"teacher": TEACHER, "outputs": OUTPUTS, "student": optional(STUDENT)}

    def devices(self, asked: Asked) -> int:
        """The `devices` of `distill.fit`."""
        return asked.recipe.distill.fit.devices

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:
        """The section `distill`, and those fields of workload, teacher and student that decide the training."""
        student = Section(name="student", only=("factory",))
        sections = (Section(name="workload"), student, Section(name="distill"), *teaching_sections(wired))
        return Reads(sections=sections, plugins=("workload", "distiller"), others=schedule_part(asked))

    def untrained(self, work: StageWork) -> nn.Module:  # type: ignore[override]
        """The student as it is before the training."""
        from kdq_core.work.models import new_student

        return work.model("student") if work.has("student") else new_student(work)

    def check(self, work: CheckWork) -> None:  # type: ignore[override]
        """Rehearse the training: teach two samples to the untrained student."""
        from kdq_core.distillation.transfer import transfer
        from kdq_core.training.gains import check_labels
        from kdq_core.work.data import EVALUATION_BATCH
        from kdq_core.work.rehearsal import check_last_batch, rehearse, teacher_of

        spec = work.section("distill")
        check_last_batch(work, self.untrained(work), spec.fit, lambda batch: batch)
        if spec.control:
            test = work.workload.batches("test", batch_size=EVALUATION_BATCH)
            check_labels(work.batches(0, spec.fit.batch_size), test)
        if spec.transfer is not None and "student" in work.givers:
            raise RecipeError(
                "'distill.transfer' starts the student from the teacher's parameters, but it starts from the student "
                f"that stage {work.givers['student'].title!r} gives; leave one of the two out"
            )
        if not work.has("teacher"):
            return
        student = self.untrained(work)
        if spec.transfer is not None:
            teacher = teacher_of(work).model
            transfer(spec.transfer, student.to(work.accelerator().device), teacher)
        rehearse(work, student)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Train the student; then its control, if the recipe asks for one.

        The control never starts from the teacher's parameters, because they are part of what the teacher contributes.
        """
        from kdq_core.work.budget import keeping, kept, shared, whole_fit
        from kdq_core.work.teaching import student_and_loss_of
        from kdq_core.work.twin import with_gains

        accelerator, spec = work.accelerator(), work.section("distill")
        device, schedule, whole = accelerator.device, shared(work), whole_fit(work, spec.fit)
        last = None if schedule is None else schedule.in_float
        student = self._started(work).to(device)
        written, hooks = _transferred(work, student, last or whole.epochs)
        model, loss = student_and_loss_of(work, student, device)
        work.seeded("distill/fit")  # building a teacher beside it drew numbers, reading a kept one did not
        keep = keeping(work, student, main=accelerator.is_main_process)

        def before_step(done: int, total: int) -> None:
            loss.before_step(done, total)
            keep(done, total)

        hooks |= {"before_step": before_step}

        def fit() -> tuple[EpochRecord, ...]:
            return work.fit(
                model, loss, whole, accelerator=accelerator, scheduled=loss.scheduled, hooks=hooks, last=last
            )

        told: dict[str, Any] = {"compared": loss.compared, "transferred": written}
        if not spec.control:
            history = fit()
            return work.checkpoint(student, history, before_tail=kept(work), **told)
        history, gained = with_gains(
            work,
            student,
            fit,
            lambda: self._started(work).to(device),
            lambda at, twin, hard: at.fit(twin, hard, whole, accelerator=accelerator, last=last),
            batch_size=whole.batch_size,
            device=device,
        )
        return work.checkpoint(student, history, gains=gained, before_tail=kept(work), **told)

    def _started(self, work: StageWork) -> nn.Module:
        """The student before its fit; each call gives the same parameters."""
        from kdq_core.work.models import new_student

        work.seeded("student")
        return work.model("student") if work.has("student") else new_student(work)


def _transferred(
    work: StageWork, student: nn.Module, epochs: int
) -> tuple[tuple[str, ...], dict[str, Callable[..., None]]]:
    """Copy parameters from teacher to student if the recipe asks for it; gives their names, and hooks for the fit."""
    from kdq_core.distillation.transfer import holding, transfer

    spec = work.section("distill").transfer
    if spec is None:
        return (), {}
    written = transfer(spec, student, work.model("teacher"))
    return written, holding(spec, student, written, epochs=epochs, seed=work.seed_of("transfer"))
