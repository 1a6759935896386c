"""Measure the exported files in their runtime.

What: runs every evaluator of the recipe on every model's file. Only `parity` also runs models in PyTorch, to compare
    the files with them: the int8 file with its simulation, the float files with the models they were written from.
Defaults: the evaluators quality, size, latency, coverage and parity.
Limits: it measures time, so no other computation of KDQ may run beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import (
    Artifact,
    Asked,
    Batch,
    Checkpoint,
    EvaluationReport,
    Metric,
    Needs,
    Port,
    Reads,
    Record,
    Section,
    Stage,
    Subject,
)
from kdq_core.work.slots import ARTIFACT, MEMBERS, PLACED, QUANTIZED, STUDENT, TEACHER, optional

if TYPE_CHECKING:
    from kdq_core.work.work import StageWork

GAINED = {"student": "student", "quantized": "int8"}
"""Inputs whose records hold gains from the teacher, each with the model whose report tells them."""
LIBRARIES = ("onnx", "onnxruntime", "torchmetrics", "scikit-learn")


class Evaluate(Stage):
    """The metrics of the exported files."""

    gives: ClassVar[str] = "report"
    record: ClassVar[type[Record]] = EvaluationReport
    needs: ClassVar[Needs] = Needs(device="cpu", alone=True)

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """The exported files, and the models that they were made of, which `parity` needs."""
        return {"teacher": optional(TEACHER), "student": STUDENT, "quantized": QUANTIZED, "artifact": ARTIFACT}

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The evaluators and the target, and the fields that rebuild the models."""
        sections = (
            Section(name="workload"),
            Section(name="student", only=("factory",)),
            Section(name="quantize", only=PLACED),
            Section(name="target"),
            Section(name="evaluate"),
            *((MEMBERS,) if "teacher" in wired else ()),
        )
        libraries = (*Reads().libraries, *LIBRARIES)
        plugins = ("workload", "quantizer", "target", "evaluator")
        return Reads(sections=sections, plugins=plugins, libraries=libraries)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Run every evaluator on every file. Each file runs over the test split once; evaluators share its outputs."""
        from kdq_core.work.data import EVALUATION_BATCH, checked
        from kdq_core.work.predictions import KeptPredictions
        from kdq_core.work.samples import labels_of, shown_of

        workload = work.workload

        def batches() -> Iterable[Batch]:
            return (checked(batch, "test") for batch in workload.batches("test", batch_size=EVALUATION_BATCH))

        subjects = subjects_of(work)
        kept = {slot: KeptPredictions(subject, batches, work.draft) for slot, subject in subjects.items()}
        subjects = {slot: replace(subject, kept=kept[slot]) for slot, subject in subjects.items()}
        named = {use.use: evaluator for use, evaluator in zip(work.section("evaluate"), work.evaluators, strict=True)}
        measured: dict[str, tuple[Metric, ...]] = {}
        todo = [(slot, name) for slot in subjects for name in named]
        for done, (slot, name) in enumerate(todo, start=1):
            candidate = replace(subjects[slot], folder=work.draft / "files" / name / slot)
            metrics = named[name].evaluate(candidate, subjects["student"], batches)
            measured[slot] = measured.get(slot, ()) + metrics
            work.progress(done, len(todo), f"{slot} {type(named[name]).__name__.lower()}")
        for port, slot in GAINED.items():
            if work.has(port) and slot in measured:
                measured[slot] += gained(work.record(port, Checkpoint))
        stored = tuple(one for predictions in kept.values() for one in predictions.stored)
        artifact = work.record("artifact", Artifact)
        names = [[one.name for one in specs] for specs in (artifact.inputs, artifact.outputs)]
        labels = labels_of(batches, names[1], work.draft) if stored else ()
        shown = shown_of(batches, names[0], stored, labels, work.draft) if stored else None
        return EvaluationReport(models=measured, predictions=stored, labels=labels, shown=shown)


def gained(student: Checkpoint) -> tuple[Metric, ...]:
    """What the teacher brought a student, as metrics of its file, so that gates may ask for it."""
    return tuple(
        Metric(
            name=gain.metric_name,
            value=gain.difference,
            unit="fraction" if gain.higher_is_better else "loss",
            direction="higher" if gain.higher_is_better else "lower",
            low=gain.low,
            high=gain.high,
            samples=gain.samples,
        )
        for gain in student.gains
    )


def subjects_of(work: StageWork) -> dict[str, Subject]:
    """The files to measure, by slot; each comes with what it must agree with in PyTorch.

    A teacher that is an ONNX file itself has nothing to agree with: KDQ copies that file.
    """
    from kdq_core.quantization.convert import convert
    from kdq_core.teachers.onnx_teacher import OnnxTeacher

    entry, artifact = work.input("artifact"), work.record("artifact", Artifact)
    prepared = work.quantized()
    target, threads = work.target, work.site.threads
    models = {slot: work.model(slot) for slot in artifact.baselines if work.has(slot)}
    own = {slot: model for slot, model in models.items() if not isinstance(model, OnnxTeacher)}
    subjects = {
        slot: Subject(role=slot, path=entry.file(name), target=target, threads=threads, simulation=own.get(slot))
        for slot, name in artifact.baselines.items()
    }
    subjects["int8"] = Subject(
        role="int8",
        path=entry.file(artifact.path),
        operators=artifact.operators,
        output_scales=artifact.output_scales,
        simulation=convert(prepared),
        prepared=prepared,
        target=target,
        threads=threads,
    )
    return subjects
