"""Measure the exported files in their runtime.

What: runs every evaluator of the recipe on every model's file. Only `parity` also runs models in PyTorch, to compare
    the files with them: the int8 file with its simulation, the float files with the models they were written from.
    An evaluator that raises is named; the others go on, a gate on one of its metrics is not met, and the next run
    measures again. If test samples are in the training split, or teacher or float student are far worse than at the end
    of their training, the models cannot be compared: no gate relative to them is met, and nothing is registered.
Formula: in the module `kdq_core.work.anomalies`, with the sources of both tolerances.
Defaults: the evaluators quality, size, latency, coverage and parity; tolerances of 1 point of shared samples and 15
    points of top-1.
Costs: beside the evaluators, one pass over the inputs of the training split, to compare samples.
Limits: it measures time, so no other computation of KDQ may run beside it. In a training split that is augmented at
    random, no sample of the test split is found. A model without a training curve is not compared with one.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import (
    Artifact,
    Asked,
    Batch,
    Checkpoint,
    EvaluationReport,
    Field,
    Metric,
    Needs,
    Port,
    Reads,
    Record,
    Section,
    Stage,
    Subject,
    TransientError,
)
from kdq_core.errors import KdqError
from kdq_core.failures import failure_of
from kdq_core.store.records import Failure
from kdq_core.work.slots import ARTIFACT, MEMBERS, PLACED, PLACEMENT, QUANTIZED, STUDENT, TEACHER, optional

if TYPE_CHECKING:
    from kdq_core.api import Batches
    from kdq_core.recipe.site import Site
    from kdq_core.work.work import StageWork

GAINED = {"student": "student", "quantized": "int8"}
"""Inputs whose records hold gains from the teacher, each with the model whose report tells them."""
LIBRARIES = ("onnx", "onnxruntime", "torchmetrics", "scikit-learn", "scipy")


class Evaluate(Stage):
    """The metrics of the exported files."""

    gives: ClassVar[str] = "report"
    record: ClassVar[type[Record]] = EvaluationReport
    needs: ClassVar[Needs] = Needs(device="cpu", alone=True)

    shared: float | None = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of test samples that may be in the training split, beyond the twins that the training split "
        "has by itself; null: do not look",
    )
    lost: float | None = Field(
        default=0.15, ge=0, le=1,
        description="how much lower than at the end of its training the top-1 of teacher or student may be, beyond "
        "chance; null: do not look",
    )  # fmt: skip

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """The exported files, and the models that they were made of, which `parity` needs."""
        models = {"teacher": optional(TEACHER), "student": STUDENT, "quantized": QUANTIZED}
        return {**models, "artifact": ARTIFACT, "placement": PLACEMENT}

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
        """Run every evaluator on every file. Each file runs over the test split once; evaluators share its outputs.

        An evaluator that raises is named in the report, and the others go on.

        Raises:
            TransientError: an evaluator raised it; another try may succeed.
            StageError: every evaluator raised.
        """
        from kdq_core.work.anomalies import lost, shared
        from kdq_core.work.data import EVALUATION_BATCH, checked
        from kdq_core.work.predictions import KeptPredictions
        from kdq_core.work.samples import labels_of, shown_of

        workload = work.workload

        def batches() -> Iterable[Batch]:
            return (checked(batch, "test") for batch in workload.batches("test", batch_size=EVALUATION_BATCH))

        subjects = subjects_of(work)
        kept = {slot: KeptPredictions(subject, batches, work.draft) for slot, subject in subjects.items()}
        subjects = {slot: replace(subject, kept=kept[slot]) for slot, subject in subjects.items()}
        report = measured(work, subjects, batches)
        curves = {slot: work.record(slot, Checkpoint) for slot in ("teacher", "student") if work.has(slot)}
        found = [] if self.shared is None else [*shared(workload, self.shared)]
        if self.lost is not None:
            found += lost(report, curves, subjects, batches, workload, self.lost)
        stored = tuple(one for predictions in kept.values() for one in predictions.stored)
        artifact = work.record("artifact", Artifact)
        names = [[one.name for one in specs] for specs in (artifact.inputs, artifact.outputs)]
        labels = labels_of(batches, names[1], work.draft) if stored else ()
        kept_beside = {
            "predictions": stored,
            "labels": labels,
            "shown": shown_of(batches, names[0], stored, labels, work.draft, workload.text_of) if stored else None,
        }
        return report.model_copy(update={**kept_beside, "models": with_gains(work, report), "anomalies": tuple(found)})

    def still_there(self, record: Record, site: Site) -> bool:  # noqa: ARG002
        """Whether every evaluator succeeded; else the next run measures again: what was missing may be there."""
        return not (isinstance(record, EvaluationReport) and record.failures)


def measured(work: StageWork, subjects: Mapping[str, Subject], batches: Batches) -> EvaluationReport:
    """The metrics of all files, and the evaluators that raised.

    Raises:
        TransientError: an evaluator raised it, or another passing failure.
        KdqError: the first error, if nothing at all was measured.
    """
    named = {use.use: evaluator for use, evaluator in zip(work.section("evaluate"), work.evaluators, strict=True)}
    models: dict[str, tuple[Metric, ...]] = {}
    failures: list[Failure] = []
    first: Exception | None = None
    todo = [(slot, name) for slot in subjects for name in named]
    for done, (slot, name) in enumerate(todo, start=1):
        evaluator = named[name]
        candidate = replace(subjects[slot], folder=work.draft / "files" / name / slot, beside=subjects)
        try:
            models[slot] = models.get(slot, ()) + evaluator.evaluate(candidate, subjects["student"], batches)
        except Exception as error:
            if isinstance(error, TransientError) or failure_of(error):
                raise
            first = first or error
            if not isinstance(error, KdqError):
                traceback.print_exc()
            text = str(error) if isinstance(error, KdqError) else f"{type(error).__name__}: {error}"
            failures.append(Failure(evaluator=name, model=slot, error=text, metrics=type(evaluator).metrics))
        work.progress(done, len(todo), f"{slot} {type(evaluator).__name__.lower()}")
    if first is not None and len(failures) == len(todo):
        raise first
    return EvaluationReport(models=models, failures=tuple(failures))


def with_gains(work: StageWork, report: EvaluationReport) -> dict[str, tuple[Metric, ...]]:
    """The metrics of each model, with what the teacher brought it."""
    models = dict(report.models)
    for port, slot in GAINED.items():
        if work.has(port) and slot in models:
            models[slot] += gained(work.record(port, Checkpoint))
    return models


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
