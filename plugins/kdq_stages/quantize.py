"""Quantize the student.

What: equalizes the weights if the recipe asks for it, finds the ranges from calibration batches, and corrects biases.
    If the quantizer trains, KDQ then fits the quantized student with the distillation loss. The ranges first follow
    the data and are then frozen. At last KDQ freezes the batch-norm statistics too, and rounds biases as the integer
    model will.
Defaults: the quantizer `auto`, three epochs if it trains. If no stage gives a teacher, KDQ fits to the hard labels
    alone.
Limits: a quantizer that does not train uses neither the teacher nor the distillers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Asked, Checkpoint, Port, Reads, RecipeError, Record, Section, Stage
from kdq_core.work.slots import (
    OUTPUTS,
    PLACEMENT,
    STUDENT,
    TARGET,
    TEACHER,
    optional,
    schedule_part,
    teaching_sections,
)  # fmt: skip

if TYPE_CHECKING:
    from kdq_core.work.checking import CheckWork
    from kdq_core.work.work import StageWork

UNTRAINED = ("fit", "taught_by", "freeze_observers", "freeze_batch_norm", "weight_loss", "control")
"""Fields of `quantize` that have no effect with a quantizer that does not train."""


class Quantize(Stage):
    """The student with its quantizers, trained or calibrated."""

    gives: ClassVar[str] = "quantized"
    record: ClassVar[type[Record]] = Checkpoint

    def inputs(self, asked: Asked) -> Mapping[str, Port]:
        """The student and the form of its file; for a quantizer that trains, also the teacher and its outputs."""
        student = {"student": STUDENT, "placement": PLACEMENT}
        return {"teacher": optional(TEACHER), "outputs": OUTPUTS, **student} if asked.quantizer.trains else student

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:
        """The sections `quantize` and `target`; also `distill` if the quantizer trains with a teacher."""
        student = Section(name="student", only=("factory",))
        if not asked.quantizer.trains:
            sections = (
                Section(name="workload"),
                student,
                Section(name="quantize", without=UNTRAINED),
                TARGET,
            )
            return Reads(sections=sections, plugins=("workload", "quantizer", "target"))
        own = asked.recipe.quantize.taught_by == "student"
        schedule = schedule_part(asked)
        taught = own or "teacher" in wired
        soft = Section(name="distill", without=("transfer", "control") if schedule else ("fit", "transfer", "control"))
        alone = Section(name="distill", only=("fit",))
        return Reads(
            sections=(
                Section(name="workload"),
                student,
                Section(name="quantize"),
                TARGET,
                *((soft,) if taught else (alone,) if schedule else ()),
                *teaching_sections(wired, own=own),
            ),
            others=schedule,
            plugins=("workload", *(("distiller",) if taught else ()), "quantizer", "target"),
        )

    def check(self, work: CheckWork) -> None:  # type: ignore[override]
        """Capture the untrained student, place its quantizers, and rehearse the training with two samples."""
        from kdq_core.teachers.source import OnlineTeacher
        from kdq_core.training.gains import check_labels
        from kdq_core.work.budget import whole_fit
        from kdq_core.work.data import EVALUATION_BATCH
        from kdq_core.work.rehearsal import check_last_batch, rehearse, rehearse_in_graph, teacher_of
        from kdq_core.work.trial import untrained_student

        spec, trains = work.section("quantize"), work.quantizer.trains
        if not work.has("student"):
            return
        student, _ = untrained_student(work)
        if not trains:
            return
        fit = whole_fit(work, spec.fit)
        check_last_batch(work, student, fit, lambda batch: batch)
        if spec.control and "teacher" not in work.givers and spec.taught_by != "student":
            raise RecipeError(
                "'quantize.control' asks what the teacher brings, but no stage gives a teacher; leave it out, or list "
                "'train_teacher' before 'quantize'"
            )
        if spec.control:
            test = work.workload.batches("test", batch_size=EVALUATION_BATCH)
            check_labels(work.batches(0, fit.batch_size), test)
        if spec.taught_by == "student":
            rehearse_in_graph(work, work.model("student"), OnlineTeacher(work.model("student")))  # its own layers
        elif work.has("teacher"):
            if not work.rehearsed:
                rehearse(work, work.model("student"))
            rehearse_in_graph(work, work.model("student"), teacher_of(work))

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Quantize the student, with or without training."""
        from kdq_core.work.choosing import quantized

        return quantized(work)
