"""The table a run closes with."""

from __future__ import annotations

from kdq_flows.facts.result import RunResult, table_of


def result(**models: dict[str, float]) -> RunResult:
    return RunResult(run="x", status="completed", seconds=1.0, stages=(), models=models)


def test_a_metric_that_was_not_measured_is_an_empty_cell() -> None:
    rows = table_of(result(student={"top1": 0.5, "bytes": 2000.0}, int8={"top1": 0.25, "parity_flips": 3.0}))
    assert [row["model"] for row in rows] == ["teacher", "float student", "int8 student"]
    assert [row["top-1"] for row in rows] == ["", "50.00%", "25.00%"]
    assert [row["bytes"] for row in rows] == ["", "2,000", ""]
    assert list(rows[0]) == ["model", "top-1", "F1", "bytes", "p50 ms", "int8 MACs", "flips"]


def test_each_further_task_has_a_column() -> None:
    rows = table_of(result(student={"top1": 0.5, "top1/odd": 0.75}, int8={"top1": 0.25, "top1/odd": 0.5}))
    assert list(rows[0])[:3] == ["model", "top-1", "top-1 odd"]
    assert [row["top-1 odd"] for row in rows] == ["", "75.00%", "50.00%"]
