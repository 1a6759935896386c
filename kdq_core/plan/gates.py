"""Gates: the rules of a recipe that a model must meet, judged by its evaluation report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from kdq_core.errors import StageError
from kdq_core.frozen import Frozen
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.contract import Model
from kdq_core.recipe.spec import DEFAULT_GATES, Gate, Recipe
from kdq_core.store.family import Measured
from kdq_core.store.records import EvaluationReport, OperatorCoverage, gain_metrics

COVERAGE = "coverage_macs"
FITTED: dict[str, tuple[tuple[Gate, ...], str]] = {
    "none": (
        tuple(gate for gate in DEFAULT_GATES if gate.metric != COVERAGE),
        "computes in float by design, so the default gates do without coverage_macs",
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
    given = given_metrics(asked)
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


def given_metrics(asked: Asked) -> set[str] | None:
    """The metrics of the report: those of the recipe's evaluators, and the teacher's gains if it asks for a control.

    `None` if an evaluator does not declare its metrics.
    """
    if not all(evaluator.metrics for evaluator in asked.evaluators):
        return None
    gains = gain_metrics(asked.recipe.distill.control, asked.recipe.quantize.control)
    return gains | {metric for evaluator in asked.evaluators for metric in evaluator.metrics}


def judge(gates: Sequence[Gate], report: EvaluationReport) -> tuple[GateVerdict, ...]:
    """Judge every gate; a metric that was not measured, or is not finite, does not meet its gate."""
    return tuple(_verdict(gate, report) for gate in gates)


def check_required(gates: Sequence[Gate], report: EvaluationReport, operators: Sequence[OperatorCoverage]) -> None:
    """Fail the run if the model does not meet a gate marked `required`.

    Args:
        gates: gates of the recipe.
        report: report of the evaluation.
        operators: coverage of the int8 file, to name the operators in float.

    Raises:
        StageError: names each required gate that is not met, its value and bound.
    """
    failed = [v for gate, v in zip(gates, judge(gates, report), strict=True) if gate.required and not v.met]
    if not failed:
        return
    said = "; ".join(
        f"{v.rule}: {_number(v.value)}, bound {_number(v.bound)}" + (f" ({v.note})" if v.note else "") for v in failed
    )
    slow = [f"{row.path} ({row.reason})" for row in operators if row.macs and not row.int8]
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
    value, bound = report.value(gate.of, gate.metric), limit
    text = f"{limit:g}"
    if gate.relative_to is not None:
        base = report.value(gate.relative_to, gate.metric)
        bound = None if base is None or limit is None else limit * base
        text += f" x {gate.relative_to} {gate.metric}"
    met = _finite(value) and _finite(bound) and (value >= bound if sign == "≥" else value <= bound)
    note = next((m.note for m in report.models.get(gate.of, ()) if m.name == gate.metric), "")
    if value is not None and bound is None:
        note = f"{gate.relative_to} {gate.metric} was not measured"
    elif value is not None and not (_finite(value) and _finite(bound)):
        whose = gate.of if not _finite(value) else gate.relative_to
        note = "; ".join(filter(None, (note, f"{whose} {gate.metric} is not finite, which meets no gate")))
    rule = f"{gate.of} {gate.metric} {sign} {text}"
    return GateVerdict(rule=rule, value=value, bound=bound, met=met, note="" if met else note)
