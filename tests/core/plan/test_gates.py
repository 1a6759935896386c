"""A required gate stops a run, and names what runs in float."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StageError
from kdq_core.plan.gates import check_required, judge, with_fitting_gates
from kdq_core.plan.plan import asked_of, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import models_of, wire
from kdq_core.recipe.spec import DEFAULT_GATES, Gate, Recipe, Site
from kdq_core.store.family import in_json
from kdq_core.store.records import EvaluationReport, Metric, OperatorCoverage


def report(coverage):
    metric = Metric(name="coverage_macs", value=coverage, unit="fraction", direction="higher")
    return EvaluationReport(models={"int8": (metric,)})


def row(path, int8, reason="", macs=10):
    kernel = "QLinearConv" if int8 else "Conv"
    return OperatorCoverage(
        path=path, operator="conv", kernel=kernel, int8=int8, reason=reason, macs=macs, weight_bytes=1
    )


FLOATS = (row("stem", True), row("body", False, "left in float by a rule of the recipe"), row("pool", False, "x", 0))


def test_a_required_gate_that_is_not_met_names_what_runs_in_float():
    gates = (Gate(metric="coverage_macs", at_least=1.0, required=True), Gate(metric="top1", at_least=0.9))
    with pytest.raises(StageError) as caught:
        check_required(gates, report(0.75), FLOATS)
    assert str(caught.value) == (
        "required gates are not met: int8 coverage_macs ≥ 1: 0.75, bound 1; in float: body (left in float by a rule "
        "of the recipe); nothing was registered. Mend the model or the recipe, or drop 'required' from the gate"
    )


def test_gates_that_are_met_or_not_required_let_the_run_go_on():
    check_required((Gate(metric="coverage_macs", at_least=1.0, required=True),), report(1.0), FLOATS)
    check_required((Gate(metric="top1", at_least=0.9),), report(0.5), FLOATS)


def test_what_is_noted_with_a_metric_is_told_where_its_gate_is_not_met():
    flips = Metric(name="parity_flips", value=3, unit="count", direction="lower", note="they part at stem")
    report = EvaluationReport(models={"int8": (flips,)})
    assert [v.note for at_most in (2, 3) for v in judge((Gate(metric="parity_flips", at_most=at_most),), report)] == [
        "they part at stem", "",
    ]  # fmt: skip
    with pytest.raises(StageError, match=r"int8 parity_flips ≤ 2: 3, bound 2 \(they part at stem\); nothing was"):
        check_required((Gate(metric="parity_flips", at_most=2, required=True),), report, ())


def test_a_model_that_was_not_measured_is_named_where_a_gate_compares_with_it():
    (verdict,) = judge((Gate(metric="coverage_macs", at_least=0.9, relative_to="teacher"),), report(1.0))
    assert (verdict.met, verdict.bound) == (False, None)
    assert verdict.note == "teacher coverage_macs was not measured"


@pytest.mark.parametrize(
    ("teacher", "left"),
    [
        ({"members": [{"source": "onnx", "file": "t.onnx"}]}, 4),
        ({"members": [{"source": "onnx", "file": "t.onnx", "normalize": {"mean": [0.1], "std": [1.0]}}]}, 3),
        ({"members": [{"source": "registered", "model": "t/1"}, {"source": "pipeline"}]}, 3),
        ({"members": [{"source": "pipeline"}, {"source": "student"}]}, 4),
        ({"inputs": ["sound"]}, 3),
    ],
)
def test_the_default_gates_do_not_compare_with_a_teacher_that_cannot_be_measured(teacher, left, tmp_path):
    recipe = Recipe.model_validate({"name": "x", "workload": "digits", "teacher": teacher})
    catalog = Catalog.load()
    asked = asked_of(recipe, Site(home=tmp_path), catalog)
    fitted, note = with_fitting_gates(asked, models_of(wire(asked, catalog), asked))
    assert [gate.metric for gate in fitted.gates] == ["top1", "coverage_macs", "parity_flips", "speedup"][4 - left :]
    assert note == (
        "" if left == 4 else
        "no teacher is measured beside the int8 file, so the default gates do not compare with one"
    )  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ask", [{"at_least": 0.5}, {"at_most": 0.5}])
def test_a_metric_that_is_not_finite_meets_no_gate_and_is_told(value: float, ask: dict[str, float]) -> None:
    (verdict,) = judge((Gate(metric="coverage_macs", **ask),), report(value))
    assert not verdict.met
    assert verdict.note == "int8 coverage_macs is not finite, which meets no gate"
    assert json.loads(verdict.model_dump_json())["value"] == in_json(value)


@pytest.mark.parametrize("base", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ask", [{"at_least": 0.5}, {"at_most": 0.5}])
def test_a_gate_relative_to_what_is_not_finite_is_not_met(base: float, ask: dict[str, float]) -> None:
    both = report(1.0).models | {"teacher": report(base).models["int8"]}
    gate = Gate(metric="coverage_macs", relative_to="teacher", **ask)
    (verdict,) = judge((gate,), EvaluationReport(models=both))
    assert not verdict.met
    assert verdict.note == "teacher coverage_macs is not finite, which meets no gate"


def test_a_note_with_a_metric_that_is_not_finite_is_kept() -> None:
    loss = Metric(name="loss", value=math.nan, unit="", direction="lower", note="label 3 has no sample")
    (verdict,) = judge((Gate(metric="loss", at_most=1.0),), EvaluationReport(models={"int8": (loss,)}))
    assert verdict.note == "label 3 has no sample; int8 loss is not finite, which meets no gate"


def test_a_metric_that_was_not_measured_does_not_meet_a_required_gate():
    with pytest.raises(StageError, match=r"int8 top1 ≥ 0.9: not measured, bound 0.9 .*; nothing was registered"):
        check_required((Gate(metric="top1", at_least=0.9, required=True),), report(1.0), FLOATS)


@pytest.mark.parametrize(
    ("quantizer", "metrics", "note"),
    [
        ("static", ["top1", "coverage_macs", "parity_flips", "speedup"], ""),
        ("weight-only", ["top1", "parity_flips"],
         "quantizer 'weight-only' computes in float by design, so the default gates do without coverage_macs and "
         "speedup"),
        ("dynamic", ["top1", "coverage_linear_macs", "parity_flips", "speedup"],
         "quantizer 'dynamic' computes linear layers alone in int8, so the default gates ask for coverage_linear_macs, "
         "not coverage_macs"),
    ],
)  # fmt: skip
def test_default_gates_fit_the_quantizer_and_written_ones_stay(
    quantizer: str, metrics: list[str], note: str, tmp_path: Path
) -> None:
    catalog, site = Catalog.load(), Site(home=tmp_path)
    recipe = Recipe.model_validate({"name": "x", "workload": "digits", "quantize": {"use": quantizer}})
    plan = make_plan(recipe, site, catalog)
    assert [gate.metric for gate in plan.recipe.gates] == metrics
    assert {gate.metric for gate in plan.recipe.gates if gate.required} == set(metrics) - {"top1", "speedup"}
    assert plan.note == note
    again = make_plan(Recipe.model_validate(plan.recipe.model_dump(mode="json")), site, catalog)
    assert (again.recipe.gates, again.note) == (plan.recipe.gates, note)
    written = Recipe.model_validate(recipe.model_dump(mode="json"))  # all fields count as the recipe's own
    assert make_plan(written, site, catalog).recipe.gates == DEFAULT_GATES


@pytest.mark.parametrize(
    ("sections", "metrics", "note"),
    [
        ({}, [], "no evaluator of the recipe gives 'top1', 'coverage_macs', 'parity_flips', 'speedup', so the default "
         "gates do without"),
        ({"gates": [{"metric": "bytes", "at_most": 9}, {"metric": "top1/other", "at_least": 0.5}]},
         ["bytes", "top1/other"], "no evaluator of the recipe gives 'top1/other', so that gate cannot be met"),
    ],
)  # fmt: skip
def test_gates_of_what_no_evaluator_gives_are_told(
    sections: dict[str, Any], metrics: list[str], note: str, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate({"name": "x", "workload": "digits", "evaluate": ["size"], **sections})
    catalog, site = Catalog.load(), Site(home=tmp_path)
    plan = make_plan(recipe, site, catalog)
    assert ([gate.metric for gate in plan.recipe.gates], plan.note) == (metrics, note)
    again = make_plan(Recipe.model_validate(plan.recipe.model_dump(mode="json")), site, catalog)
    assert (again.recipe.gates, again.note) == (plan.recipe.gates, note)


def with_interval(low: float | None, high: float | None, value: float = 1.0, note: str = "") -> EvaluationReport:
    metric = Metric(name="speedup", value=value, unit="ratio", direction="higher", low=low, high=high, note=note)
    teacher = Metric(name="speedup", value=0.5, unit="ratio", direction="higher")
    return EvaluationReport(models={"int8": (metric,), "teacher": (teacher,)})


@pytest.mark.parametrize(
    ("ask", "rule", "value", "bound", "met"),
    [
        ({"at_least": 0.98, "bound": "low"}, "int8 speedup (low end) ≥ 0.98", 0.97, 0.98, False),
        ({"at_least": 0.98}, "int8 speedup ≥ 0.98", 1.0, 0.98, True),
        ({"at_least": 0.98, "bound": "high"}, "int8 speedup (high end) ≥ 0.98", 1.03, 0.98, True),
        ({"at_most": 1.0, "bound": "high"}, "int8 speedup (high end) ≤ 1", 1.03, 1.0, False),
        (
            {"at_least": 1.9, "relative_to": "teacher", "bound": "low"},
            "int8 speedup (low end) ≥ 1.9 x teacher speedup", 0.97, 0.95, True,
        ),
    ],
)  # fmt: skip
def test_a_gate_may_judge_an_end_of_the_interval(
    ask: dict[str, Any], rule: str, value: float, bound: float, met: bool
) -> None:
    (verdict,) = judge((Gate(metric="speedup", **ask),), with_interval(0.97, 1.03))
    assert (verdict.rule, verdict.value, verdict.met) == (rule, value, met)
    assert verdict.bound == pytest.approx(bound)


def test_a_gate_on_an_end_that_a_metric_does_not_have_is_not_met_and_told() -> None:
    report = with_interval(None, 1.03, note="slow")
    (low,) = judge((Gate(metric="speedup", at_least=0.5, bound="low"),), report)
    assert (low.value, low.met) == (None, False)
    assert low.note == "slow; int8 speedup has no low end of an interval; leave 'bound' out of the gate"
    (high,) = judge((Gate(metric="speedup", at_least=0.5, bound="high"),), report)
    assert high.met
    assert high.note == ""


@pytest.mark.parametrize("base", [0.0, -0.25])
@pytest.mark.parametrize("ask", [{"at_least": 0.9}, {"at_most": 2.0}])
def test_a_gate_relative_to_what_is_not_above_zero_is_not_met_and_told(base: float, ask: dict[str, float]) -> None:
    both = report(1.0).models | {"teacher": report(base).models["int8"]}
    (verdict,) = judge((Gate(metric="coverage_macs", relative_to="teacher", **ask),), EvaluationReport(models=both))
    assert (verdict.met, verdict.bound) == (False, None)
    assert verdict.note == (
        f"teacher coverage_macs is {base:g}, and a share of what is not above 0 means nothing; write an absolute bound"
    )


def test_never_slower_than_float_is_a_default_gate_that_stops_no_run() -> None:
    gate = DEFAULT_GATES[-1]
    assert (gate.metric, gate.at_least, gate.bound, gate.required) == ("speedup", 0.98, "low", False)
    assert judge((gate,), with_interval(0.981, 1.0, 0.99))[0].met
    assert not judge((gate,), with_interval(0.979, 1.3, 1.1))[0].met


def test_a_required_gate_on_all_products_names_those_between_activations_too() -> None:
    product = row("", False, "products between activations gain nothing in int8", 0)
    products = (*FLOATS, product.model_copy(update={"operator": "attention", "activation_macs": 5}))
    metric = Metric(name="coverage_all_macs", value=0.5, unit="fraction", direction="higher")
    gate = Gate(metric="coverage_all_macs", at_least=1.0, required=True)
    with pytest.raises(StageError) as caught:
        check_required((gate,), EvaluationReport(models={"int8": (metric,)}), products)
    assert "in float: body (left in float by a rule of the recipe), attention (products between" in str(caught.value)
    gates = (Gate(metric="coverage_macs", at_least=1.0, required=True),)
    with pytest.raises(StageError) as caught:
        check_required(gates, report(0.75), products)
    assert "attention" not in str(caught.value)


def test_a_metric_of_another_task_is_told_with_what_was_measured():
    (verdict,) = judge((Gate(metric="rmse", at_most=0.3),), report(1.0))
    assert (verdict.met, verdict.note) == (
        False, "no evaluator measured it for int8; they measured: coverage_macs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "teacher", "good", "bad", "rule"),
    [
        ("rmse", 2.0, 2.0, 2.2, "int8 rmse ≤ 1.05 x teacher rmse"),
        ("label_accuracy", 0.8, 0.79, 0.7, "int8 label_accuracy ≥ 0.95 x teacher label_accuracy"),
    ],
)
def test_the_default_gate_on_top1_asks_for_another_metric_if_labels_are_numbers(
    name: str, teacher: float, good: float, bad: float, rule: str
) -> None:
    def verdicts(gate: Gate, value: float) -> list[tuple[str, bool]]:
        direction = "lower" if name == "rmse" else "higher"
        one = Metric(name=name, value=value, unit="", direction=direction)
        models = {"int8": (one,), "teacher": (one.model_copy(update={"value": teacher}),)}
        return [(v.rule, v.met) for v in judge((gate,), EvaluationReport(models=models))]

    default, own = DEFAULT_GATES[0], Gate(metric="top1", at_least=0.9)
    assert verdicts(default, good) == [(rule, True)]
    assert verdicts(default, bad) == [(rule, False)]
    assert verdicts(own, good) == [("int8 top1 ≥ 0.9", False)]  # a gate that somebody wrote stays


def test_the_default_gate_on_top1_stays_if_classes_were_measured_or_nothing_was() -> None:
    both = tuple(Metric(name=name, value=0.9, unit="", direction="higher") for name in ("top1", "rmse"))
    for metrics in (both, ()):
        (verdict,) = judge(DEFAULT_GATES[:1], EvaluationReport(models={"int8": metrics, "teacher": metrics}))
        assert verdict.rule == "int8 top1 ≥ 0.95 x teacher top1"
        assert verdict.met is bool(metrics)
