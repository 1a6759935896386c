"""Export the quantized student for the target, and the float models for the same runtime.

What: converts the quantized student to integers and exports it. Also exports the float student, and the teacher if
    there is one, so that KDQ measures all of them in the same way.
Defaults: the target `onnxruntime-cpu`. If the teacher is an ONNX file, KDQ copies that file unchanged. The option
    `beside` says which float models get files; nothing is measured or judged against a model without one.
Limits: KDQ does not export a teacher that reads other inputs than the student. Nor does it export a teacher that
    combines an ONNX file with other members or with a normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdq_core.api import (
    Artifact,
    Asked,
    ChosenForm,
    Field,
    Model,
    Needs,
    OperatorCoverage,
    Place,
    Port,
    Reads,
    Record,
    Section,
    Stage,
)
from kdq_core.work.shown import request_of
from kdq_core.work.slots import MEMBERS, PLACED, PLACEMENT, QUANTIZED, STUDENT, TARGET, TEACHER, optional

if TYPE_CHECKING:
    from torch import nn

    from kdq_core.work.checking import CheckWork
    from kdq_core.work.work import StageWork

ROLES = ("weight", "activation")
INT8, EXAMPLE = "int8.onnx", "example.safetensors"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Export(Stage):
    """The int8 file to ship, and the float files to compare it with."""

    gives: ClassVar[str] = "artifact"
    record: ClassVar[type[Record]] = Artifact
    needs: ClassVar[Needs] = Needs(device="cpu")

    beside: tuple[Literal["teacher", "student"], ...] = Field(
        default=("teacher", "student"), description="float models that get files too; the teacher only if there is one"
    )

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """The quantized student, the float student, the form of the file, and the teacher if it gets a file."""
        own = {"student": STUDENT, "quantized": QUANTIZED, "placement": PLACEMENT}
        return {"teacher": optional(TEACHER), **own} if "teacher" in self.beside else own

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The target, and the fields that rebuild the quantized student."""
        sections = (
            Section(name="workload"),
            Section(name="student", only=("factory",)),
            Section(name="quantize", only=PLACED),
            TARGET,
            *((MEMBERS,) if "teacher" in wired else ()),
        )
        libraries = (*Reads().libraries, *LIBRARIES)
        return Reads(sections=sections, plugins=("workload", "quantizer", "target"), libraries=libraries)

    def models(self, asked: Asked, wired: frozenset[str]) -> tuple[Model, ...]:
        """The int8 file, and the float files beside it."""
        spec = asked.recipe.quantize
        bits = "int8" if (spec.weights, spec.activations) == (8, 8) else f"W{spec.weights}A{spec.activations}"
        teacher = Model(slot="teacher", form="file", title="teacher")
        return (
            *((teacher,) if "teacher" in wired and teacher_fits(asked) else ()),
            *((Model(slot="student", form="file", title="float student"),) if "student" in self.beside else ()),
            Model(slot="int8", form="file", title=f"{bits} student"),
        )

    def check(self, work: CheckWork) -> None:  # type: ignore[override]
        """Quantize and export the untrained student, and export the untrained teacher; run each file once."""
        from kdq_core.work.trial import try_export

        if not work.has("student"):
            return
        exported = any(model.slot == "teacher" for model in self.models(request_of(work), work.wired.ports))
        files = {member.source for member in work.section("teacher").members} & {"onnx", "registered"}
        others = {"teacher": work.model("teacher")} if exported and not files and work.has("teacher") else {}
        try_export(work, others)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Export each model, then read from the runtime which operators of the int8 file run in int8."""
        from safetensors.torch import save_file

        from kdq_core.quantization.capture import capture
        from kdq_core.quantization.convert import convert, output_scales
        from kdq_core.teachers.onnx_teacher import OnnxTeacher
        from kdq_core.work.quantized import placement

        target, example = work.target, work.example()
        student = work.model("student")
        converted = convert(work.quantized())
        slots = [model.slot for model in self.models(request_of(work), work.wired.ports)]
        models: dict[str, nn.Module] = {"student": student, "int8": converted}
        if "teacher" in slots:
            models["teacher"] = work.model("teacher")
        for done, slot in enumerate(slots, start=1):
            model, file = models[slot], work.draft / file_of(slot)
            if isinstance(model, OnnxTeacher):
                file.write_bytes(model.file())
            else:
                target.export(model, example, file)
            work.progress(done, len(slots) + 1, file.name)
        graph = capture(student, example)
        placed = placement(work, graph)
        operators = target.coverage(work.draft / INT8, graph, keep_float=placed.keep_float)
        operators = tuple(by_choice(operator, work.placement) for operator in operators)
        inputs, outputs = target.signature(work.draft / INT8)
        save_file({spec.name: x.contiguous() for spec, x in zip(inputs, example)}, work.draft / EXAMPLE)
        return Artifact(
            path=INT8,
            example=EXAMPLE,
            baselines={slot: file_of(slot) for slot in slots if slot != "int8"},
            inputs=inputs,
            outputs=outputs,
            output_scales=output_scales(converted),
            weight_bits_used=weight_bits(target.resolved()),
            operators=tuple(with_bits(operator, placed.places) for operator in operators),
            quantizer=work.chosen or "",
        )


def by_choice(operator: OperatorCoverage, chosen: ChosenForm | None) -> OperatorCoverage:
    """The operator, marked if it is float because the stage `place` measured its int8 form to be slower."""
    if operator.int8 or chosen is None or f"{operator.path}:{operator.operator}" not in chosen.floats:
        return operator
    why = f"float by choice: int8 measured slower at batch {chosen.batch_size}"
    return operator.model_copy(update={"by_choice": True, "reason": why})


def with_bits(operator: OperatorCoverage, places: Sequence[Place]) -> OperatorCoverage:
    """The operator with the bits of its weights and of its result, where the recipe quantizes them."""
    own = [place for place in places if (place.path, place.operator) == (operator.path, operator.operator)]
    bits = {f"{role}_bits": max((p.bits for p in own if p.role == role), default=None) for role in ROLES}
    return operator.model_copy(update=bits)


def file_of(slot: str) -> str:
    """Name of a model's file in the store entry."""
    return f"{slot}.onnx"


def teacher_fits(asked: Asked) -> bool:
    """Whether KDQ can export the teacher, so that it measures teacher and student in the same way.

    It cannot if the teacher reads other inputs than the student, or if an ONNX model is combined with other members or
    with a normalisation.
    """
    teacher = asked.recipe.teacher
    foreign = any(member.source in ("onnx", "registered") for member in teacher.members)
    around = len(teacher.members) > 1 or any(member.normalize for member in teacher.members)
    return not teacher.reads and not (foreign and around)


def weight_bits(resolved: Mapping[str, Any]) -> int:
    """How many bits of a weight the target's kernels use on this machine."""
    return 7 if resolved.get("reduce_range") else 8
