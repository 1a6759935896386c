"""The slots of KDQ's own chain, and the fields of `teacher` that a distilling stage reads. Importable without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import JsonValue

from kdq_core.plugins.budget import shared_schedule
from kdq_core.plugins.contract import Port, Section
from kdq_core.store.records import Artifact, Checkpoint, ChosenForm, EvaluationReport, TeacherOutputs

if TYPE_CHECKING:
    from kdq_core.plugins.asked import Asked

TEACHER = Port(slot="teacher", record=Checkpoint)
OUTPUTS = Port(slot="outputs", record=TeacherOutputs, optional=True)
STUDENT = Port(slot="student", record=Checkpoint)
QUANTIZED = Port(slot="quantized", record=Checkpoint, made_of="student")
PLACEMENT = Port(slot="placement", record=ChosenForm, optional=True)
"""A stage with this input under the name `placement` sees the target with the options of the chosen form."""
ARTIFACT = Port(slot="artifact", record=Artifact)
REPORT = Port(slot="report", record=EvaluationReport)

MEMBERS = Section(name="teacher", only=("members", "inputs", "combine"), held={})
"""How KDQ builds the teachers; the record of their checkpoint holds it, so the key need not."""
BESIDE = Section(name="teacher", only=("cache.seed", "precision"))
"""The fields that a teacher's answers depend on if it runs beside the student."""
PLACED = ("use", "options", "weights", "activations", "edges", "rules", "round_bias")
"""The fields of `quantize` that decide the places and the grids of quantizers."""

TARGET = Section(name="target", without=("options.placement", "options.batch_size"))
"""The target without the fields that decide only how the stage `place` chooses a form."""


def optional(port: Port) -> Port:
    """The same port, but optional."""
    return port.model_copy(update={"optional": True})


def teaching_sections(wired: frozenset[str], *, own: bool = False) -> tuple[Section, ...]:
    """The parts of the section `teacher` that a stage with a distillation loss reads.

    Args:
        wired: names of its ports that have an input.
        own: whether the float student is the teacher.
    """
    beside = own or ("teacher" in wired and "outputs" not in wired)
    return (*((MEMBERS,) if "teacher" in wired else ()), *((BESIDE,) if beside else ()))


def schedule_part(asked: Asked) -> dict[str, JsonValue]:
    """The shared schedule of `distill` and `quantize` as a part of the key; empty if each has its own."""
    schedule = shared_schedule(asked)
    return {} if schedule is None else {"schedule": schedule.model_dump(mode="json")}
