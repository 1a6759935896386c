"""The table a run closes with."""

from __future__ import annotations

from typing import Any

from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Column, Evaluator
from kdq_core.recipe.spec import DEFAULT_EVALUATORS
from kdq_core.store.records import EvaluationReport, Metric
from kdq_flows.facts.result import table_of


def house_columns() -> list[Column]:
    built = [Catalog.load().build("evaluator", name) for name in DEFAULT_EVALUATORS]
    return [column for evaluator in built if isinstance(evaluator, Evaluator) for column in evaluator.columns]


def report(**models: dict[str, float]) -> EvaluationReport:
    return EvaluationReport(
        models={
            model: tuple(Metric(name=n, value=v, unit="fraction", direction="higher") for n, v in values.items())
            for model, values in models.items()
        }
    )


def test_a_metric_that_was_not_measured_is_an_empty_cell_and_of_no_model_no_column(view_of: Any) -> None:
    measured = report(student={"top1": 0.5, "bytes": 2000.0}, int8={"top1": 0.25, "parity_flips": 3.0})
    rows = table_of(view_of(evaluate=measured), house_columns())
    assert [row["model"] for row in rows] == ["teacher", "float student", "int8 student"]
    assert [row["top-1"] for row in rows] == ["", "50.00%", "25.00%"]
    assert [row["bytes"] for row in rows] == ["", "2,000", ""]
    assert list(rows[0]) == ["model", "top-1", "bytes", "flips"]


def test_each_further_task_has_a_column(view_of: Any) -> None:
    measured = report(student={"top1": 0.5, "top1/odd": 0.75}, int8={"top1": 0.25, "top1/odd": 0.5})
    rows = table_of(view_of(evaluate=measured), house_columns())
    assert list(rows[0])[:3] == ["model", "top-1", "top-1 odd"]
    assert [row["top-1 odd"] for row in rows] == ["", "75.00%", "50.00%"]


def test_a_guests_metric_can_be_shown(view_of: Any) -> None:
    column = Column(heading="energy", metric="joules", form="{:.1f} J")
    rows = table_of(view_of(evaluate=report(int8={"joules": 1.25})), [column])
    assert rows == (
        {"model": "teacher", "energy": ""},
        {"model": "float student", "energy": ""},
        {"model": "int8 student", "energy": "1.2 J"},
    )


def test_the_speed_up_stands_in_the_table_with_its_interval(view_of: Any) -> None:
    def measured(**ends: float) -> EvaluationReport:
        speedup = Metric(name="speedup", value=1.634, unit="ratio", direction="higher", **ends)
        times = Metric(name="latency_p50_ms", value=0.5, unit="ms", direction="lower", low=0.4, high=0.6)
        return EvaluationReport(models={"student": (times,), "int8": (times, speedup)})

    rows = table_of(view_of(evaluate=measured(low=1.58, high=1.694)), house_columns())
    assert rows == (
        {"model": "teacher", "speed-up": ""},
        {"model": "float student", "speed-up": ""},
        {"model": "int8 student", "speed-up": "1.63 (1.58 to 1.69)"},
    )
    rows = table_of(view_of(evaluate=measured(low=1.58)), house_columns())
    assert rows[2]["speed-up"] == "1.63"


def test_both_shares_of_int8_stand_in_the_table(view_of: Any) -> None:
    rows = table_of(view_of(evaluate=report(int8={"int8_macs": 1.0, "coverage_all_macs": 0.64})), house_columns())
    assert rows[2] == {"model": "int8 student", "int8 MACs": "100%", "of all": "64%"}
