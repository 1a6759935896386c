"""Gates on what the teacher brought."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdq_core.errors import RecipeError
from kdq_core.plan.gates import judge
from kdq_core.reading.checks import load_recipe
from kdq_core.recipe.spec import Gate
from kdq_core.store.records import Checkpoint, EvaluationReport, Gain
from kdq_stages.evaluate import gained

ASKED = "name: x\nworkload: digits\ngates: [{metric: teacher_gain_top1, at_least: 0, of: student}]\n"


def test_a_gate_may_ask_for_the_gain_where_a_control_is_trained_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(ASKED + "distill: {control: true}\n")
    assert load_recipe(file).gates[0].metric == "teacher_gain_top1"
    file.write_text(ASKED)
    with pytest.raises(RecipeError, match="no evaluator of the recipe gives the metric 'teacher_gain_top1' of a gate"):
        load_recipe(file)


def test_the_gains_of_a_student_are_metrics_with_their_interval() -> None:
    gains = (
        Gain(metric="top1", taught=0.9, control=0.8, difference=0.1, low=0.05, high=0.15, samples=300),
        Gain(metric="loss/age", taught=1.0, control=0.5, difference=0.5, low=0.1, high=0.9, samples=200),
    )
    found = gained(Checkpoint(slot="student", weights="w", parameters=1, gains=gains))
    assert [(m.name, m.unit, m.direction, m.value, m.low, m.high, m.samples) for m in found] == [
        ("teacher_gain_top1", "fraction", "higher", 0.1, 0.05, 0.15, 300),
        ("teacher_gain_loss/age", "loss", "lower", 0.5, 0.1, 0.9, 200),
    ]
    report = EvaluationReport(models={"student": found})
    gates = (Gate(metric="teacher_gain_top1", at_least=0.0, of="student"),
             Gate(metric="teacher_gain_loss/age", at_most=0.0, of="student"))  # fmt: skip
    assert [verdict.met for verdict in judge(gates, report)] == [True, False]
