"""The facts of a run: what `kdq run --json` prints and `kdq_flows.compress` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_core.plan.gates import GateVerdict, judge
from kdq_core.recipe.spec import Gate
from kdq_core.store.family import Measured
from kdq_core.store.records import Artifact, Checkpoint, EvaluationReport, ModelVersion
from kdq_core.store.store import Entry
from kdq_flows.facts.coverage import OperatorFacts

MODELS = ("teacher", "student", "int8")


class StageFacts(Frozen):
    """What became of one stage."""

    name: str
    key: str
    state: Literal["ran", "cached", "failed"]
    seconds: float


class GainFacts(Frozen):
    """What the student of one stage gained from the teacher over its control; see `kdq_core.store.records.Gain`."""

    stage: str
    metric: str
    taught: float
    control: float
    difference: float
    low: float
    high: float
    samples: int
    verdict: Literal["better", "worse", "undecided"]


class ArtifactFacts(Frozen):
    """The int8 file."""

    path: str
    sha256: str
    bytes: int


class VersionFacts(Frozen):
    """The registered version."""

    name: str
    version: int


class RunResult(Frozen):
    """All facts of one run.

    Attributes:
        run: name of the run.
        status: `no-news` when every stage was cached.
        seconds: wall-clock time.
        stages: in the order of the plan; stages that were never reached are missing.
        models: per model its metrics by name; in JSON one that is not finite is "NaN", "Infinity" or "-Infinity".
        gains: of the teacher, one for each stage that trained a control.
        notes: what the evaluators say besides of the int8 model, such as the layer where file and simulation part.
        gates: the recipe's gates and whether the int8 model meets them, once it was evaluated.
        artifact: the int8 file, once exported.
        coverage: how each of its operators runs.
        version: the model version, once registered.
        error: the error of a failed run.
        links: addresses of the user interfaces that are up.
    """

    run: str
    status: Literal["completed", "no-news", "failed"]
    seconds: float
    stages: tuple[StageFacts, ...]
    models: dict[str, dict[str, Measured]]
    gains: tuple[GainFacts, ...] = ()
    notes: tuple[str, ...] = ()
    gates: tuple[GateVerdict, ...] = ()
    artifact: ArtifactFacts | None = None
    coverage: tuple[OperatorFacts, ...] = ()
    version: VersionFacts | None = None
    error: str | None = None
    links: dict[str, str] = Field(default={})


def models_of(entries: Mapping[str, Entry]) -> dict[str, dict[str, float]]:
    """Metric values per model, from the evaluation report if there is one."""
    report = entries["evaluate"].record if "evaluate" in entries else None
    if not isinstance(report, EvaluationReport):
        return {}
    return {role: {m.name: m.value for m in report.models.get(role, ())} for role in MODELS}


def gains_of(entries: Mapping[str, Entry]) -> tuple[GainFacts, ...]:
    """What the students gained from the teacher, in the order of the stages."""
    records = {name: entry.record for name, entry in entries.items()}
    return tuple(
        GainFacts(stage=name, verdict=gain.verdict, **gain.model_dump())
        for name, record in records.items()
        if isinstance(record, Checkpoint)
        for gain in record.gains
    )


def notes_of(entries: Mapping[str, Entry]) -> tuple[str, ...]:
    """Which layers of student and teacher met, and what was noted with the metrics of the int8 model, each once."""
    report = entries["evaluate"].record if "evaluate" in entries else None
    metrics = report.models.get("int8", ()) if isinstance(report, EvaluationReport) else ()
    first = {metric.note: metric for metric in reversed(metrics) if metric.note}
    said = (f"{m.name} is {m.value:.6g}: {m.note}" for m in metrics if m.note and first[m.note] is m)
    student = entries["distill"].record if "distill" in entries else None
    return (*(met(student) if isinstance(student, Checkpoint) else ()), *said)


def met(student: Checkpoint) -> Iterator[str]:
    """What of the student was compared with what of the teacher, or started from it."""
    for name, pairs in student.compared.items():
        yield f"{name} compares {', '.join(' ~ '.join(pair) for pair in pairs)} (student ~ teacher)"
    if student.transferred:
        layers = dict.fromkeys(name.rpartition(".")[0] or name for name in student.transferred)
        yield f"started from the teacher: {', '.join(layers)}"


def gates_of(gates: Sequence[Gate], entries: Mapping[str, Entry]) -> tuple[GateVerdict, ...]:
    """The verdicts on the evaluation report, if there is one."""
    report = entries["evaluate"].record if "evaluate" in entries else None
    return judge(gates, report) if isinstance(report, EvaluationReport) else ()


def artifact_of(entries: Mapping[str, Entry]) -> ArtifactFacts | None:
    """The int8 file, if it was exported."""
    entry = entries.get("export")
    if entry is None or not isinstance(entry.record, Artifact):
        return None
    path = entry.file(entry.record.path)
    return ArtifactFacts(path=str(path), sha256=entry.sha256(entry.record.path), bytes=path.stat().st_size)


def version_of(entries: Mapping[str, Entry]) -> VersionFacts | None:
    """The model version, if it was registered."""
    record = entries["register"].record if "register" in entries else None
    return VersionFacts(name=record.name, version=record.version) if isinstance(record, ModelVersion) else None


COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("top-1", "top1", "{:.2%}"),
    ("F1", "f1", "{:.2%}"),
    ("bytes", "bytes", "{:,.0f}"),
    ("p50 ms", "latency_p50_ms", "{:.3f}"),
    ("int8 MACs", "coverage_macs", "{:.0%}"),
    ("flips", "parity_flips", "{:.0f}"),
)
"""Heading, metric and format of each column of the closing table."""


VERDICTS = {
    "better": "with the teacher",
    "worse": "WORSE with the teacher:",
    "undecided": "no gain of the teacher shown:",
}


def line_of(gain: GainFacts) -> str:
    """A gain in words; it is called one, or a harm, only where its whole interval lies on that side of zero."""
    kind, _, task = gain.metric.partition("/")
    scale, unit = (100, "points top-1") if kind == "top1" else (1, "hard loss")
    unit += f" of {task!r}" if task else ""
    low, high = (f"{scale * end:.3g}" for end in (gain.low, gain.high))
    found = VERDICTS[gain.verdict]
    return f"{gain.stage}: {found} {scale * gain.difference:+.3g} {unit} ({low} to {high})"


def table_of(result: RunResult) -> list[dict[str, object]]:
    """The closing table: one row a model; a metric that was not measured is an empty cell.

    Of several tasks the first has the common columns, each other one its top-1.
    """
    rows: list[dict[str, object]] = []
    others = dict.fromkeys(name for values in result.models.values() for name in values if name.startswith("top1/"))
    columns = (*COLUMNS[:1], *((f"top-1 {name[5:]}", name, "{:.2%}") for name in others), *COLUMNS[1:])
    for role, title in zip(MODELS, ("teacher", "float student", "int8 student"), strict=True):
        values = result.models.get(role, {})
        cells = {name: form.format(values[key]) if key in values else "" for name, key, form in columns}
        rows.append({"model": title, **cells})
    return rows
