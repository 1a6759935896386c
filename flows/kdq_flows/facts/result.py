"""The facts of a run: what `kdq run --json` prints and `kdq_flows.compress` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_core.plan.advice import nothing_to_teach
from kdq_core.plan.gates import GateVerdict, judge
from kdq_core.plan.view import RunView
from kdq_core.plugins.kinds import Column
from kdq_core.recipe.register import CHAMPION
from kdq_core.store.family import Measured
from kdq_core.store.records import (
    Anomaly,
    Artifact,
    Checkpoint,
    Choice,
    ChosenForm,
    EvaluationReport,
    Metric,
    ModelVersion,
    TensorSpec,
)
from kdq_flows.facts.coverage import OperatorFacts
from kdq_flows.facts.parts import ArtifactFacts, GainFacts, StageFacts, VersionFacts
from kdq_flows.facts.study import BranchFacts, SelectedFacts


class RunResult(Frozen):
    """All facts of one run.

    Attributes:
        run: name of the run.
        status: `no-news` if every stage was cached.
        seconds: wall-clock time.
        stages: in the order of the plan; a stage that the run did not reach is missing.
        models: metrics by model and by name; JSON has "NaN", "Infinity" or "-Infinity" for a value that is not finite.
        table: the closing table, one row for each model, cells by heading.
        gains: what the teacher brought, one for each stage that trained a control.
        notes: which layers of student and teacher were compared, which form of the file is the fastest here, remarks of
            the evaluators on the int8 model, such as the layer where file and simulation first differ, evaluators that
            failed, and what forbids a comparison.
        gates: the recipe's gates, and whether the int8 model meets them; empty before the evaluation.
        weights: path of the weights in each slot that has some, such as `student`.
        artifact: the int8 file, if it was exported.
        coverage: how each operator of that file runs.
        version: the model version, if it was registered.
        error: the error of a failed run, or where it was interrupted.
        links: addresses of the web pages that are up.
        verdict: the int8 file against the float student in one line, or why the models cannot be compared; empty if
            they were not measured.
        anomalies: what forbids a comparison of the models; usually nothing.
        choice: the quantizer that the run chose, with figures and reason; `null` if the recipe names one.
        report: path of the run's page.
        branches: those of a study; JSON has this field for a study alone. The other fields are then those of the
            selected branch.
        selected: which branch to ship; JSON has it only if the recipe has `select`.
    """

    run: str
    status: Literal["completed", "no-news", "failed", "interrupted"]
    seconds: float
    stages: tuple[StageFacts, ...]
    models: dict[str, dict[str, Measured]]
    table: tuple[dict[str, str], ...] = ()
    gains: tuple[GainFacts, ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[GateVerdict, ...] = ()
    weights: dict[str, str] = Field(default={})
    artifact: ArtifactFacts | None = None
    coverage: tuple[OperatorFacts, ...] = ()
    version: VersionFacts | None = None
    error: str | None = None
    links: dict[str, str] = Field(default={})
    verdict: str = ""
    anomalies: tuple[Anomaly, ...] = ()
    choice: Choice | None = None
    report: str | None = None
    branches: tuple[BranchFacts, ...] = Field(default=(), exclude_if=lambda branches: not branches)
    selected: SelectedFacts | None = Field(default=None, exclude_if=lambda selected: selected is None)


def models_of(view: RunView) -> dict[str, dict[str, float]]:
    """Metric values by model and by name, from the evaluation report if there is one."""
    return {model: {m.name: m.value for m in metrics} for model, metrics in view.metrics.items()}


def gains_of(view: RunView) -> tuple[GainFacts, ...]:
    """How much the teacher brought, in the order of the stages."""
    return tuple(
        GainFacts(stage=name, verdict=gain.verdict, **gain.model_dump())
        for name, record in view.records(Checkpoint).items()
        for gain in record.gains
    )


def notes_of(view: RunView) -> tuple[str, ...]:
    """Which layers were compared, the form of the file, and each note on a metric of the int8 model once."""
    metrics = view.metrics.get("int8", ())
    first = {metric.note: metric for metric in reversed(metrics) if metric.note}
    said = (f"{m.name} is {m.value:.6g}: {m.note}" for m in metrics if m.note and first[m.note] is m)
    student, report = view.record("student", Checkpoint), view.record("report", EvaluationReport)
    chosen, choice = view.record("placement", ChosenForm), choice_of(view)
    return (
        *(met(student) if student is not None else ()),
        *([] if chosen is None else [f"placement: {chosen.said()}"]),
        *([f"quantizer {choice.why}"] if choice is not None else ()),
        *_taught_nothing(view),
        *said,
        *(troubles(report) if report is not None else ()),
    )


def choice_of(view: RunView) -> Choice | None:
    """The quantizer that the run chose, if the recipe leaves that to KDQ."""
    record = view.record("quantized", Checkpoint)
    return None if record is None else record.choice


def _taught_nothing(view: RunView) -> Iterator[str]:
    teacher, student = view.record("teacher", Checkpoint), view.record("student", Checkpoint)
    if teacher is not None and student is not None and not student.gains:
        yield from nothing_to_teach(teacher, student)


def troubles(report: EvaluationReport) -> Iterator[str]:
    """Lines on evaluators that raised, one for each error, and on what forbids a comparison of the models."""
    for name, error in dict.fromkeys((one.evaluator, one.error) for one in report.failures):
        models = ", ".join(one.model for one in report.failures if (one.evaluator, one.error) == (name, error))
        yield f"evaluator {name!r} failed on {models}: {error}"
    for one in report.anomalies:
        yield f"the models cannot be compared: {one.rule} is {one.value:.4g}, bound {one.bound:.4g}: {one.note}"


def met(student: Checkpoint) -> Iterator[str]:
    """Lines on the layers that distillers compared, and on the layers that the student took from the teacher."""
    for name, pairs in student.compared.items():
        yield f"{name} compares {', '.join(' ~ '.join(pair) for pair in pairs)} (student ~ teacher)"
    if student.transferred:
        layers = dict.fromkeys(name.rpartition(".")[0] or name for name in student.transferred)
        yield f"started from the teacher: {', '.join(layers)}"


def anomalies_of(view: RunView) -> tuple[Anomaly, ...]:
    """What forbids a comparison of the models."""
    report = view.record("report", EvaluationReport)
    return () if report is None else report.anomalies


def gates_of(view: RunView) -> tuple[GateVerdict, ...]:
    """The verdicts on the evaluation report, if there is one; gates relative to the champion wait for a promotion."""
    report = view.record("report", EvaluationReport)
    gates = [gate for gate in view.plan.recipe.gates if gate.relative_to != CHAMPION]
    return () if report is None else judge(gates, report)


def weights_of(view: RunView) -> dict[str, str]:
    """Path of the weights in each slot, in the order of the plan."""
    found: dict[str, str] = {}
    for slot in dict.fromkeys(node.gives for node in view.plan.nodes):
        entry, record = view.entry(slot), view.record(slot, Checkpoint)
        if entry is not None and record is not None:
            found[slot] = str(entry.file(record.weights))
    return found


def artifact_of(view: RunView) -> ArtifactFacts | None:
    """The int8 file, if it was exported."""
    entry, artifact = view.entry("artifact"), view.record("artifact", Artifact)
    if entry is None or artifact is None:
        return None
    path = entry.file(artifact.path)
    inputs = tuple(map(input_line, artifact.inputs))
    return ArtifactFacts(path=str(path), sha256=entry.sha256(artifact.path), bytes=path.stat().st_size, inputs=inputs)


def input_line(spec: TensorSpec) -> str:
    """Word one input of a file; a size that is not `batch` or `any` is fixed."""
    free = ("batch", *["any"] * len(spec.shape))
    sizes = (str(size) if size >= 0 else name for size, name in zip(spec.shape, free, strict=False))
    return f"{spec.name} {spec.dtype} [{', '.join(sizes)}]"


def version_of(view: RunView) -> VersionFacts | None:
    """The model version, if it was registered."""
    version = view.record("version", ModelVersion)
    return None if version is None else VersionFacts(name=version.name, version=version.version)


VERDICTS = {
    "better": "with the teacher",
    "worse": "WORSE with the teacher:",
    "undecided": "no gain of the teacher shown:",
}


TRY = "; try another 'alpha' or 'temperature', 'taught_by: student' for the quantized student, or no teacher"


def line_of(gain: GainFacts) -> str:
    """A gain in words; KDQ calls it a gain or a harm only if its whole interval is on that side of zero."""
    return f"{gain.stage}: {VERDICTS[gain.verdict]} {gain_in_words(gain)}{TRY if gain.verdict == 'worse' else ''}"


def gain_in_words(gain: GainFacts) -> str:
    """The difference with its unit and interval, such as `+1.2 points top-1 (0.4 to 2)`."""
    kind, _, task = gain.metric.partition("/")
    scale, unit = (100, "points top-1") if kind == "top1" else (1, "hard loss")
    unit += f" of {task!r}" if task else ""
    low, high = (f"{scale * end:.3g}" for end in (gain.low, gain.high))
    return f"{scale * gain.difference:+.3g} {unit} ({low} to {high})"


def table_of(view: RunView, columns: Sequence[Column]) -> tuple[dict[str, str], ...]:
    """The closing table: one row for each model; a metric that was not measured is an empty cell.

    A column that no model has a value for is left out.

    If there are several tasks, the plain columns show the first. A column with `by_task` is repeated for each other
    task.

    Args:
        view: the run so far.
        columns: the columns of the recipe's evaluators, in order.
    """
    measured = {model: {metric.name: metric for metric in metrics} for model, metrics in view.metrics.items()}
    names = dict.fromkeys(name for values in measured.values() for name in values)
    shown: list[Column] = []
    for column in columns:
        others = [name for name in names if column.by_task and name.startswith(f"{column.metric}/")]
        tasks = [name.removeprefix(f"{column.metric}/") for name in others]
        more = [
            column.model_copy(update={"heading": f"{column.heading} {task}", "metric": f"{column.metric}/{task}"})
            for task in tasks
        ]
        shown += [one for one in (column, *more) if one.metric in names]
    return tuple(
        {"model": model.title} | {one.heading: _cell(measured.get(model.slot, {}), one) for one in shown}
        for model in view.plan.models
    )


def _cell(metrics: Mapping[str, Metric], column: Column) -> str:
    metric = metrics.get(column.metric)
    if metric is None:
        return ""
    ends = [column.form.format(end) for end in (metric.low, metric.high) if end is not None]
    interval = f" ({' to '.join(ends)})" if column.interval and len(ends) == 2 else ""
    return column.form.format(metric.value) + interval
