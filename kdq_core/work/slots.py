"""The slots of KDQ's own chain, and what a stage that is taught reads of its teacher. Importable without torch."""

from __future__ import annotations

from kdq_core.plugins.contract import Port, Section
from kdq_core.store.records import Artifact, Checkpoint, EvaluationReport, TeacherOutputs

TEACHER = Port(slot="teacher", record=Checkpoint)
OUTPUTS = Port(slot="outputs", record=TeacherOutputs, optional=True)
STUDENT = Port(slot="student", record=Checkpoint)
QUANTIZED = Port(slot="quantized", record=Checkpoint)
ARTIFACT = Port(slot="artifact", record=Artifact)
REPORT = Port(slot="report", record=EvaluationReport)

MEMBERS = Section(name="teacher", only=("members", "inputs", "combine"), held={})
"""How the teachers are built; the key need not hold it, since it stands in the record of the teachers' checkpoint."""
BESIDE = Section(name="teacher", only=("cache.seed", "precision"))
"""What the answers of a teacher depend on that runs beside a student."""
PLACED = ("use", "options", "weights", "activations", "edges", "rules", "round_bias")
"""The fields of `quantize` that say where quantizers stand and on which grids."""


def optional(port: Port) -> Port:
    """The same port of a stage that runs without it, too."""
    return port.model_copy(update={"optional": True})


def teaching_sections(wired: frozenset[str], *, own: bool = False) -> tuple[Section, ...]:
    """What a stage reads of the section `teacher` that is taught by it.

    Args:
        wired: names of its ports that have an input.
        own: the student teaches itself.
    """
    beside = own or ("teacher" in wired and "outputs" not in wired)
    return (*((MEMBERS,) if "teacher" in wired else ()), *((BESIDE,) if beside else ()))
