"""The stages that ship: export the files, then measure those very files in their runtime."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save_file
from torch import nn

from kdq_core.plugins.kinds import Subject
from kdq_core.quantization.capture import capture
from kdq_core.quantization.convert import convert, output_scales
from kdq_core.store.records import Artifact, EvaluationReport, Metric
from kdq_core.teachers.onnx_teacher import OnnxTeacher
from kdq_core.work.context import EVALUATION_BATCH, StageContext
from kdq_core.work.placing import placement
from kdq_core.work.quantizing import quantized_student
from kdq_core.work.teaching import the_teacher

INT8, STUDENT, TEACHER, EXAMPLE = "int8.onnx", "student.onnx", "teacher.onnx", "example.safetensors"


def export(context: StageContext) -> Artifact:
    """Write the int8 file, and the float teacher and student for the same runtime.

    A teacher that is an ONNX file is written as it is. One that has such a file among others, or reads other inputs
    than the student, is left out.
    """
    target, example = context.target, context.example()
    teacher = the_teacher(context)
    student = context.load_into(context.workload.student(), "distill")
    converted = convert(quantized_student(context))
    models: dict[str, nn.Module] = {TEACHER: teacher, STUDENT: student, INT8: converted}
    mixed = not isinstance(teacher, OnnxTeacher) and any(isinstance(m, OnnxTeacher) for m in teacher.modules())
    if mixed or context.recipe.teacher.reads:
        del models[TEACHER]
    baselines: dict[str, str] = {"teacher": TEACHER, "student": STUDENT}
    for done, (name, model) in enumerate(models.items(), start=1):
        if isinstance(model, OnnxTeacher):
            (context.draft / name).write_bytes(model.file())
        else:
            target.export(model, example, context.draft / name)
        context.emit({"event": "progress", "stage": context.stage, "done": done, "total": 4, "note": name})
    graph = capture(student, example)
    inputs, outputs = target.signature(context.draft / INT8)
    save_file({spec.name: x.contiguous() for spec, x in zip(inputs, example)}, context.draft / EXAMPLE)
    return Artifact(
        path=INT8,
        example=EXAMPLE,
        baselines={role: name for role, name in baselines.items() if name in models},
        inputs=inputs,
        outputs=outputs,
        output_scales=output_scales(converted),
        weight_bits_used=weight_bits(target.resolved()),
        operators=target.coverage(context.draft / INT8, graph, keep_float=placement(context, graph).keep_float),
    )


def weight_bits(resolved: dict[str, Any]) -> int:
    """Bits the target's kernels take for weights on this machine."""
    return 7 if resolved.get("reduce_range") else 8


def evaluate(context: StageContext) -> EvaluationReport:
    """Run every evaluator on the three files; nothing here comes from a simulation but what parity compares with."""
    entry = context.parents["export"]
    artifact = entry.record
    assert isinstance(artifact, Artifact)
    target, workload, threads = context.target, context.workload, context.site.threads
    roles: dict[str, str] = {**artifact.baselines, "int8": artifact.path}
    prepared = quantized_student(context)
    subjects = {
        role: Subject(
            role=role,
            path=entry.file(name),
            target=target,
            threads=threads,
            operators=artifact.operators if role == "int8" else (),
            output_scales=artifact.output_scales if role == "int8" else (),
            simulation=convert(prepared) if role == "int8" else None,
            prepared=prepared if role == "int8" else None,
        )
        for role, name in roles.items()
    }
    measured: dict[str, tuple[Metric, ...]] = {}
    work = [(role, evaluator) for role in roles for evaluator in context.evaluators]
    for done, (role, evaluator) in enumerate(work, start=1):
        metrics = evaluator.evaluate(
            subjects[role], subjects["student"], lambda: workload.batches("test", batch_size=EVALUATION_BATCH)
        )
        measured[role] = measured.get(role, ()) + metrics
        note = f"{role} {type(evaluator).__name__.lower()}"
        context.emit({"event": "progress", "stage": context.stage, "done": done, "total": len(work), "note": note})
    return EvaluationReport(models=measured)
