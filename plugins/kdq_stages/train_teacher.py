"""Train or read the recipe's teachers, and combine them into one.

What: trains teachers on the hard labels, by default the workload's teacher. Reads teachers that are already trained
    from their files. Several teachers become one, as `teacher.combine` says.
Defaults: one teacher, the workload's, with the `fit` of the section `teacher`.
Limits: KDQ needs labels to train a teacher.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Asked, Checkpoint, Needs, Reads, Record, Section, Stage, StageError

if TYPE_CHECKING:
    from torch import nn

    from kdq_core.store.records import EpochRecord
    from kdq_core.work.checking import CheckWork
    from kdq_core.work.work import StageWork


def workload_of_teachers(asked: Asked) -> Section:
    """The workload; without the options that only its student reads, unless a teacher is built like the student."""
    own = any(member.source == "student" for member in asked.recipe.teacher.members)
    unread = () if own else tuple(f"options.{name}" for name in sorted(asked.workload.student_options))
    return Section(name="workload", without=unread)


class TrainTeacher(Stage):
    """The recipe's teachers."""

    gives: ClassVar[str] = "teacher"
    record: ClassVar[type[Record]] = Checkpoint
    needs: ClassVar[Needs] = Needs(precision="site")

    def devices(self, asked: Asked) -> int:
        """The `devices` of `teacher.fit`, if it trains a teacher."""
        spec = asked.recipe.teacher
        return spec.fit.devices if any(member.trained for member in spec.members) else 1

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The section `teacher`, without the fields that do not influence the teachers' weights."""
        members = asked.recipe.teacher.members
        unread = ["cache", "precision"]
        if not any(member.trained for member in members):
            unread.append("fit")
        if len(members) == 1:
            unread.append("combine")
        teacher = Section(name="teacher", without=tuple(unread))
        libraries = Reads().libraries
        if any(member.source == "onnx" for member in members):
            libraries += ("onnx", "onnxruntime")
        return Reads(sections=(workload_of_teachers(asked), teacher), plugins=("workload",), libraries=libraries)

    def untrained(self, work: StageWork) -> nn.Module:  # type: ignore[override]
        """The combined teacher; members that are read from files already have their weights."""
        from kdq_core.teachers.members import empty_member, read_member, whole

        spec = work.section("teacher")
        given = [(empty_member if m.trained else read_member)(m, work.workload) for m in spec.members]
        return whole(spec, given)

    def check(self, work: CheckWork) -> None:  # type: ignore[override]
        """Refuse to train a teacher without labels, on inputs that it does not take, or on a batch too small for it."""
        from kdq_core.teachers.members import empty_member
        from kdq_core.teachers.source import reading
        from kdq_core.training.losses import labelled
        from kdq_core.work.answering import answer
        from kdq_core.work.data import two_samples
        from kdq_core.work.rehearsal import check_last_batch

        spec = work.section("teacher")
        if any(member.trained for member in spec.members) and not labelled(work.batches(0, spec.fit.batch_size)):
            raise StageError(
                "the teacher is trained on labels, but no batch of the workload's split 'train' has any; label some, "
                "or name a teacher that is trained already in 'teacher.members', from a checkpoint or an ONNX file"
            )
        for member in spec.members:
            if member.trained:
                read = partial(reading, names=spec.read_by(member))
                model = empty_member(member, work.workload)
                answer("teacher", model, read(two_samples(work.workload)))
                check_last_batch(work, model, spec.fit, read)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Train or read each teacher, in the order of the recipe."""
        from kdq_core.plan.members import answering
        from kdq_core.teachers.members import empty_member, read_member, whole
        from kdq_core.teachers.source import reading
        from kdq_core.training.losses import hard_loss

        accelerator, spec, workload = work.accelerator(), work.section("teacher"), work.workload
        members: list[nn.Module] = []
        history: list[EpochRecord] = []
        for number, member in enumerate(spec.members):
            if not member.trained:
                members.append(read_member(member, workload))
                continue
            work.seeded(f"teacher {number + 1}" if number else "teacher")
            model = empty_member(member, workload)
            one = whole(spec.model_copy(update={"members": (member,)}), [model])
            read = partial(reading, names=spec.read_by(member))
            at = replace(work, number=number)
            history += at.fit(one, hard_loss(workload), spec.fit, accelerator=accelerator, read=read)
            members.append(model)
        return work.checkpoint(whole(spec, members).cpu(), tuple(history), answers=answering(spec))
