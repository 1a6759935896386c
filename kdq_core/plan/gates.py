"""Gates: the rules of a recipe that a model must meet, judged by its evaluation report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from kdq_core.errors import StageError
from kdq_core.frozen import Frozen
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.contract import Model
from kdq_core.reading.checks import given_metrics
from kdq_core.recipe.spec import DEFAULT_GATES, Gate, Recipe
from kdq_core.store.family import Measured
from kdq_core.store.records import EvaluationReport, Metric, OperatorCoverage

COVERAGE = "coverage_macs"
ALL_PRODUCTS = "coverage_all_macs"
FITTED: dict[str, tuple[tuple[Gate, ...], str]] = {
    "none": (
        tuple(gate for gate in DEFAULT_GATES if gate.metric not in (COVERAGE, "speedup")),
        "computes in float by design, so the default gates do without coverage_macs and speedup",
    ),
    "dynamic": (
        tuple(
            gate.model_copy(update={"metric": "coverage_linear_macs"}) if gate.metric == COVERAGE else gate
            for gate in DEFAULT_GATES
        ),
        "computes linear layers alone in int8, so the default gates ask for coverage_linear_macs, not coverage_macs",
    ),
}
"""The default gates for quantizers whose activations are not static, and the reason for the user."""
CLASSES = DEFAULT_GATES[0]
NUMBERS = (
    Gate(metric="label_accuracy", at_least=0.95, relative_to="teacher"),
    Gate(metric="rmse", at_most=1.05, relative_to="teacher"),
)
"""What the default gate `CLASSES` asks for if the labels of the test split are numbers: the first that was measured."""


class GateVerdict(Frozen):
    """One gate with the measured value. `bound` is absolute: it includes the factor of a relative gate."""

    rule: str
    value: Measured | None
    bound: Measured | None
    met: bool
    note: str = ""


def with_fitting_gates(asked: Asked, models: Iterable[Model]) -> tuple[Recipe, str]:
    """Fit the default gates to the recipe.

    KDQ drops a default gate on coverage if the quantizer computes in float by design, on a model or relative to a model
    that the run does not measure, or on a metric that no evaluator gives.

    Args:
        asked: the recipe with its plug-ins; a recipe with gates of its own keeps them.
        models: the models that the run measures.

    Returns:
        The recipe, and a note for the user; the note is empty if the gates are the usual ones, or the recipe's own and
        all of them can be measured.
    """
    recipe, slots = asked.recipe, {model.slot for model in models}
    name = recipe.quantize.use
    gates, why = FITTED.get(asked.quantizer.activations, (DEFAULT_GATES, ""))
    gates = tuple(gate for gate in gates if gate.of in slots)
    notes = [f"quantizer {name!r} {why}"] if why and "int8" in slots else []
    if gates and "teacher" not in slots:
        gates = tuple(gate for gate in gates if gate.relative_to != "teacher")
        notes.append("no teacher is measured beside the int8 file, so the default gates do not compare with one")
    given = given_metrics(recipe, asked.evaluators)
    missing = [gate.metric for gate in gates if given is not None and gate.metric not in given]
    if missing:
        gates = tuple(gate for gate in gates if gate.metric not in missing)
        listed = ", ".join(map(repr, missing))
        notes.append(f"no evaluator of the recipe gives {listed}, so the default gates do without")
    if "gates" not in recipe.model_fields_set:
        recipe = recipe.model_copy(update={"gates": gates})
    if recipe.gates != gates:
        known = given if slots else None
        lacking = [] if known is None else [g.metric for g in recipe.gates if g.metric.partition("/")[0] not in known]
        notes = [f"no evaluator of the recipe gives {metric!r}, so that gate cannot be met" for metric in lacking]
    return recipe, "; ".join(notes)


def judge(gates: Sequence[Gate], report: EvaluationReport) -> tuple[GateVerdict, ...]:
    """Judge every gate; a metric that was not measured, or is not finite, does not meet its gate.

    If labels are numbers, so that there is no top-1, the default gate on it asks for their accuracy or RMSE.
    Anomalies come first, as verdicts that are not met; with one, no gate is met that compares an anomalous model.
    """
    return (
        *(GateVerdict(rule=a.rule, value=a.value, bound=a.bound, met=False, note=a.note) for a in report.anomalies),
        *(_in_context(gate, _verdict(gate, report), report) for gate in (_for_labels(gate, report) for gate in gates)),
    )


def _for_labels(gate: Gate, report: EvaluationReport) -> Gate:
    """The gate, or the one of `NUMBERS` that stands for the default gate on top-1."""
    if gate != CLASSES or report.metric(gate.of, gate.metric) is not None:
        return gate
    return next((one for one in NUMBERS if report.metric(one.of, one.metric) is not None), gate)


def _in_context(gate: Gate, verdict: GateVerdict, report: EvaluationReport) -> GateVerdict:
    """The verdict with the evaluator that failed to measure it, or the anomaly that forbids the comparison."""
    why = report.unmeasured(gate.of, gate.metric) if verdict.value is None else ""
    if not why and verdict.value is not None and verdict.bound is None and gate.relative_to is not None:
        why = report.unmeasured(gate.relative_to, gate.metric)
    if not why and report.metric(gate.of, gate.metric) is None and report.models.get(gate.of):
        measured = sorted({one.name.partition("/")[0] for one in report.models[gate.of]})
        why = f"no evaluator measured it for {gate.of}; they measured: {', '.join(measured)}"
    if why:
        return verdict.model_copy(update={"note": "; ".join(filter(None, (verdict.note, why)))})
    odd = next((a for a in report.anomalies if gate.relative_to and a.model in ("", gate.of, gate.relative_to)), None)
    if odd is None:
        return verdict
    return verdict.model_copy(update={"met": False, "note": f"not compared, because of {odd.rule}"})


def check_required(gates: Sequence[Gate], report: EvaluationReport, operators: Sequence[OperatorCoverage]) -> None:
    """Fail the run if the model does not meet a gate marked `required`.

    Args:
        gates: gates of the recipe.
        report: report of the evaluation.
        operators: coverage of the int8 file, to name the operators in float.

    Raises:
        StageError: names each required gate that is not met, its value and bound, or what forbids a comparison.
    """
    odd = [f"{a.rule}: {_number(a.value)}, bound {_number(a.bound)} ({a.note})" for a in report.anomalies]
    if odd:
        raise StageError(f"the models cannot be compared: {'; '.join(odd)}; nothing was registered")
    failed = [v for gate, v in zip(gates, judge(gates, report), strict=True) if gate.required and not v.met]
    if not failed:
        return
    said = "; ".join(
        f"{v.rule}: {_number(v.value)}, bound {_number(v.bound)}" + (f" ({v.note})" if v.note else "") for v in failed
    )
    everything = any(ALL_PRODUCTS in v.rule for v in failed)
    silent = [row for row in operators if not row.int8 and not row.by_choice]
    rows = [row for row in silent if (row.macs or (everything and row.activation_macs))]
    slow = [f"{row.path or row.operator} ({row.reason})" for row in rows]
    floats = f"; in float: {', '.join(slow)}" if slow and any("coverage" in v.rule for v in failed) else ""
    raise StageError(
        f"required gates are not met: {said}{floats}; nothing was registered. "
        "Mend the model or the recipe, or drop 'required' from the gate"
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _verdict(gate: Gate, report: EvaluationReport) -> GateVerdict:
    sign, limit = ("≥", gate.at_least) if gate.at_least is not None else ("≤", gate.at_most)
    assert limit is not None
    metric = report.metric(gate.of, gate.metric)
    bound: float | None
    value, bound, problem = _judged(gate, metric), limit, ""
    text = f"{limit:g}"
    if gate.relative_to is not None:
        base = report.value(gate.relative_to, gate.metric)
        text += f" x {gate.relative_to} {gate.metric}"
        bound, problem = _relative(gate, limit, base)
    if value is None and metric is not None:
        problem = f"{gate.of} {gate.metric} has no {gate.bound} end of an interval; leave 'bound' out of the gate"
    elif value is not None and not _finite(value):
        problem = f"{gate.of} {gate.metric} is not finite, which meets no gate"
    met = _finite(value) and _finite(bound) and (value >= bound if sign == "≥" else value <= bound)
    note = "; ".join(filter(None, ("" if metric is None else metric.note, problem)))
    rule = f"{gate.of} {gate.metric}{f' ({gate.bound} end)' if gate.bound else ''} {sign} {text}"
    return GateVerdict(rule=rule, value=value, bound=bound, met=met, note="" if met else note)


def _judged(gate: Gate, metric: Metric | None) -> float | None:
    """The value that a gate is about: the metric's, or an end of its interval."""
    if metric is None:
        return None
    return {None: metric.value, "low": metric.low, "high": metric.high}[gate.bound]


def _relative(gate: Gate, limit: float, base: float | None) -> tuple[float | None, str]:
    """The absolute bound of a relative gate, and what is wrong with it; a base that is not positive gives none."""
    name = f"{gate.relative_to} {gate.metric}"
    if base is None:
        return None, f"{name} was not measured"
    if not math.isfinite(base):
        return limit * base, f"{name} is not finite, which meets no gate"
    if base <= 0:
        return None, f"{name} is {base:.6g}, and a share of what is not above 0 means nothing; write an absolute bound"
    return limit * base, ""
