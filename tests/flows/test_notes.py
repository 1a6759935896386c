"""What evaluators note with a metric is among the facts of a run, and on the screen."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdq_core.store.records import Checkpoint, EvaluationReport, Metric, TensorSpec
from kdq_flows.cli.run import _closing
from kdq_flows.facts.parts import ArtifactFacts
from kdq_flows.facts.result import RunResult, gates_of, input_line, models_of, notes_of, weights_of


def metric(name: str, value: float, note: str = "") -> Metric:
    return Metric(name=name, value=value, unit="lsb", direction="lower", note=note)


def test_what_met_is_told_and_each_note_on_the_int8_model_once_with_its_first_metric(
    capsys: pytest.CaptureFixture[str], view_of: Any
) -> None:
    metrics = (
        metric("parity_flips", 2, "they part at stem"), metric("parity_p99_lsb", 1.5, "they part at stem"),
        metric("latency_p50_ms", 0.1), metric("other", 3, "another"),
    )  # fmt: skip
    report = EvaluationReport(models={"int8": metrics, "student": (metric("bytes", 1, "not told"),)})
    student = Checkpoint(
        slot="student", weights="w", parameters=1, transferred=("stem.weight", "stem.bias", "token"),
        compared={"fitnet": (("stem", "members.0.stem"), ("body", "members.1.body"))},
    )  # fmt: skip
    told = (
        "fitnet compares stem ~ members.0.stem, body ~ members.1.body (student ~ teacher)",
        "started from the teacher: stem, token",
        "parity_flips is 2: they part at stem",
        "other is 3: another",
    )
    assert notes_of(view_of(distill=student, evaluate=report)) == told
    assert notes_of(view_of()) == ()
    _closing(RunResult(run="r", status="completed", seconds=1, stages=(), models={}, notes=told))
    assert "\n" + "\n".join(told[1:]) + "\n" in capsys.readouterr().out


def test_metrics_and_gates_that_are_not_finite_are_text_in_valid_json(view_of: Any) -> None:
    report = EvaluationReport(models={"int8": (metric("f1", math.nan), metric("parity_flips", math.inf))})
    view = view_of(evaluate=report)
    result = RunResult(
        run="r", status="completed", seconds=1, stages=(), models=models_of(view), gates=gates_of(view)
    )  # fmt: skip
    printed = json.loads(result.model_dump_json(), parse_constant=pytest.fail)
    assert printed["models"]["int8"] == {"f1": "NaN", "parity_flips": "Infinity"}
    flips = next(gate for gate in printed["gates"] if "parity_flips" in gate["rule"])
    assert (flips["value"], flips["met"]) == ("Infinity", False)
    assert RunResult.model_validate(printed).models["int8"]["parity_flips"] == math.inf


def test_a_run_that_measures_nothing_says_so_and_where_its_files_are(
    capsys: pytest.CaptureFixture[str], view_of: Any, tmp_path: Path
) -> None:
    teacher, student = (Checkpoint(slot=slot, weights="w", parameters=1) for slot in ("teacher", "student"))
    weights = weights_of(view_of(train_teacher=teacher, distill=student))
    assert weights == {"teacher": str(tmp_path / "w"), "student": str(tmp_path / "w")}
    facts = {"run": "r", "status": "completed", "seconds": 1, "stages": (), "models": {}, "weights": weights}
    _closing(RunResult.model_validate(facts))
    pages = "pages     'kdq up' starts them, or says where they are\n"
    head = "r: completed in 1.0 s; no stage of the recipe measures a model, so there is no table\n"
    assert capsys.readouterr().out == (f"{head}teacher   {tmp_path / 'w'}\nstudent   {tmp_path / 'w'}\n{pages}")
    shapes = {"tokens": (-1, -1), "x": (-1, 3)}
    inputs = [input_line(TensorSpec(name=name, dtype="int64", shape=shape)) for name, shape in shapes.items()]
    file = ArtifactFacts(path="/int8.onnx", sha256="ab", bytes=1234, inputs=tuple(inputs))
    _closing(RunResult.model_validate(facts | {"artifact": file}))
    assert capsys.readouterr().out == (
        f"{head}file      /int8.onnx\n          1,234 bytes, sha256 ab\n"
        f"          takes tokens int64 [batch, any], x int64 [batch, 3]\n{pages}"
    )
