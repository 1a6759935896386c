"""The page of results says what the runs measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdq_core.store.records import EvaluationReport, Metric
from kdq_core.store.store import Store
from kdq_flows.facts.parts import StageFacts
from kdq_flows.facts.result import RunResult

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KEYS = {"train_teacher": "a" * 64, "evaluate": "b" * 64}


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", EXAMPLES / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(name: str, value: float, low: float | None = None, high: float | None = None) -> Metric:
    return Metric(name=name, value=value, unit="fraction", direction="higher", low=low, high=high)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the report of a run."""
    made, sizes = Store(tmp_path / "store"), {"teacher": 9e5, "student": 4e5, "int8": 1e5}
    models = {
        model: (measured("top1", 0.9, 0.88, 0.92), measured("bytes", size), measured("parameters", 77754))
        for model, size in sizes.items()
    }
    models["int8"] += (measured("top1_difference", -0.001, -0.002, 0.001), measured("latency_p50_ms", 1.0))
    with made.draft(KEYS["evaluate"]) as draft:
        report = EvaluationReport(models=models)
        made.commit(draft, stage="evaluate", key=KEYS["evaluate"], parts={}, record=report)
    return made


def run(**states: str) -> RunResult:
    stages = [StageFacts(name=n, key=k, state=states.get(n, "ran"), seconds=90.0) for n, k in KEYS.items()]
    return RunResult(run="clothes", status="completed", seconds=181.0, stages=tuple(stages), models={})


def test_a_row_has_values_intervals_and_the_time_of_all_stages(results: ModuleType, store: Store) -> None:
    row: dict[str, Any] = results.facts(run(), store, {}) | {"cpu_minutes": 5.25, "note": None}
    [line] = results.line_of("clothes", row)
    assert line == (
        "| `clothes` | top1 | 90.00 (88.00 to 92.00) | 90.00 (88.00 to 92.00) | 90.00 (88.00 to 92.00) "
        "| -0.10 (-0.20 to +0.10) | 77,754 | 400,000 to 100,000 | 3.0 | 5.2 |"
    )


def test_the_time_of_a_kept_stage_is_that_of_the_run_that_computed_it(results: ModuleType, store: Store) -> None:
    text = "^KDQ kept train_teacher from a run whose time is not known; run it in a new home$"
    with pytest.raises(SystemExit, match=text):
        results.facts(run(train_teacher="cached"), store, {})
    row = results.facts(run(train_teacher="cached"), store, {"other": {"seconds": {KEYS["train_teacher"]: 600.0}}})
    assert sum(row["seconds"].values()) == 690.0


def test_a_gate_that_is_not_met_stands_on_the_page(results: ModuleType, store: Store) -> None:
    row = results.facts(run(), store, {}) | {"cpu_minutes": None, "note": "The machine was busy."}
    assert "Each int8 file meets all gates of its recipe." in results.page({"clothes": row})
    assert "\n\n`clothes`: The machine was busy.\n\n" in results.page({"clothes": row})
    row["gates"] = {"top1 of int8 at least 0.95": False}
    assert "Gates that are not met: `clothes`: top1 of int8 at least 0.95." in results.page({"clothes": row})


def test_the_page_is_that_of_the_kept_results(results: ModuleType) -> None:
    import json

    kept = json.loads((EXAMPLES / "results.json").read_text(encoding="utf-8"))
    assert results.page(kept) == (EXAMPLES / "RESULTS.md").read_text(encoding="utf-8"), "run python examples/results.py"
