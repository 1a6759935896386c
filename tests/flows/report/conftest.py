"""A recorded run of the digits: three models, ten samples, one answer that int8 lost and one that it gained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.plan.gates import judge
from kdq_core.plan.view import RunView
from kdq_core.plugins.kinds import Column
from kdq_core.recipe.spec import Gate
from kdq_core.store.predictions import write_array
from kdq_core.store.records import (
    Artifact,
    Checkpoint,
    EpochRecord,
    EvaluationReport,
    Metric,
    OperatorCoverage,
    ShownSamples,
    StoredPredictions,
)  # fmt: skip
from kdq_flows.facts.parts import StageFacts
from kdq_flows.facts.result import RunResult, models_of, table_of
from kdq_flows.facts.verdict import verdict_of
from kdq_flows.report.kept import RunRecord, bare

LOST, GAINED = 3, 7
TRUTH = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def logits(answers: list[int]) -> np.ndarray:
    return np.float32(np.eye(3)[answers] * 4)


def measured(value: float, **more: float) -> tuple[Metric, ...]:
    found = [Metric(name="top1", value=value, unit="fraction", direction="higher", low=value - 0.1, high=1.0)]
    units = {"bytes": "bytes", "latency_p50_ms": "ms", "speedup": "ratio", "top1_difference": "fraction"}
    ends = {"speedup": (1.1, 1.3), "top1_difference": (-0.02, 0.03)}
    for name, number in more.items():
        low, high = ends.get(name, (None, None))
        found.append(Metric(name=name, value=number, unit=units[name], direction="higher", low=low, high=high))
    return tuple(found)


def history(*values: float) -> tuple[EpochRecord, ...]:
    return tuple(
        EpochRecord(epoch=n, values={"validation/top1": v, "train/loss": 1 - v}) for n, v in enumerate(values, 1)
    )


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Any]:
    """Records by stage; their files lie in `tmp_path`."""
    answers = {model: TRUTH.tolist() for model in ("teacher", "student", "int8")}
    answers["int8"][LOST] = 1
    answers["student"][GAINED] = 0
    (tmp_path / "predictions").mkdir()
    (tmp_path / "samples").mkdir()
    stored = []
    for model, given in answers.items():
        path = f"predictions/{model}-test-0.bin"
        array = write_array(tmp_path, "logits", path, logits(given))
        stored.append(
            StoredPredictions(
                model=model, split="test", output="logits", path=path, dtype=array.dtype, shape=array.shape
            )
        )
    pictures = np.linspace(0, 1, 2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
    report = EvaluationReport(
        models={
            "teacher": measured(1.0, bytes=9e5, latency_p50_ms=0.3),
            "student": measured(0.9, bytes=4e5, latency_p50_ms=0.2),
            "int8": measured(0.9, top1_difference=0.002, bytes=1e5, latency_p50_ms=0.1, speedup=1.2),
        },
        predictions=tuple(stored),
        labels=(write_array(tmp_path, "logits", "samples/labels-0.bin", TRUTH),),
        shown=ShownSamples(
            rows=(LOST, GAINED), inputs=(write_array(tmp_path, "input", "samples/input-0.bin", pictures),)
        ),
    )
    operators = (
        OperatorCoverage(path="<b>conv", operator="conv", kernel="QLinearConv", int8=True, macs=90, weight_bytes=10,
                         weight_bits=4, activation_bits=8),
        OperatorCoverage(path="head", operator="linear", kernel="Gemm", int8=False, reason="a rule", macs=10),
    )  # fmt: skip
    artifact = Artifact(
        path="int8.onnx", example="e", baselines={"student": "student.onnx", "teacher": "teacher.onnx"}, inputs=(),
        outputs=(), output_scales=(), weight_bits_used=8, operators=operators,
    )  # fmt: skip
    return {
        "train_teacher": Checkpoint(slot="teacher", weights="w", parameters=1, history=history(0.5, 0.9)),
        "distill": Checkpoint(slot="student", weights="w", parameters=1, history=history(0.4, 0.8, 0.9)),
        "quantize": Checkpoint(slot="quantized", weights="w", parameters=1, history=history(0.85)),
        "export": artifact,
        "evaluate": report,
    }


@pytest.fixture
def record_of() -> Callable[[RunView], RunRecord]:
    """Makes the record of a run from its view."""

    def record(view: RunView, name: str = "x-1") -> RunRecord:
        report = view.record("report", EvaluationReport)
        gates = judge((Gate(metric="top1", at_least=0.95),), report) if report else ()
        stages = tuple(StageFacts(name=n.name, key=f"{i}" * 64, state="cached" if i == 1 else "ran", seconds=2.5 * i)
                       for i, n in enumerate(view.plan.nodes))  # fmt: skip
        columns = [Column(heading="top-1", metric="top1", form="{:.2%}"), Column(heading="bytes", metric="bytes")]
        result = RunResult(
            run=name, status="completed", seconds=65.2, stages=stages, models=models_of(view),
            table=table_of(view, columns), gates=gates, verdict=verdict_of(view, (), gates),
        )  # fmt: skip
        return RunRecord(result=result, plan=bare(view.plan), recipe="name: x\n", began=0.0)

    return record
