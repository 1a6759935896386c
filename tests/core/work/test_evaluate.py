"""The stage `evaluate`: each file runs once over the test split, what it said is kept, evaluators write files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.api import Batches, Evaluator, Metric, Subject
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Kind, Plugin
from kdq_core.store.records import EvaluationReport
from kdq_targets.ort_session import OrtSession

FIT = {"epochs": 1, "batch_size": 48}
FILES = {"teacher": "teacher.onnx", "student": "student.onnx", "int8": "int8.onnx"}


class Writes(Evaluator):
    """Writes which model it was asked about, in place of `size`."""

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        candidate.file("role.txt").write_text(candidate.role)
        return (Metric(name="samples", value=len(candidate.predict(batches)[0]), unit="count", direction="neither"),)


@pytest.fixture(scope="module")
def measured(stages_of: Any, tiny: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run up to `evaluate`, and the batches that each file answered in it."""

    class WithToy(type(tiny)):  # type: ignore[misc]
        def build(self, kind: Kind, name: str, options: Any = None, **where: Any) -> Plugin:
            return Writes() if (kind, name) == ("evaluator", "size") else super().build(kind, name, options, **where)

    recipe = {"teacher": {"fit": FIT}, "distill": {"fit": FIT}, "quantize": {"fit": FIT}}
    run = stages_of(
        tmp_path_factory.mktemp("measured"),
        WithToy(tiny.plugins, tiny.quarantined),
        workload="digits",
        evaluate=["quality", "parity", "size"],
        **recipe,
    )
    for name in ("train_teacher", "cache_teacher", "distill", "quantize", "export"):
        run.stage(name)
    answered: Counter[str] = Counter()
    init, call = OrtSession.__init__, OrtSession.run

    def opens(self: Any, path: Path, **options: Any) -> None:
        self.counted = Path(path).name
        init(self, path, **options)

    def runs(self: Any, inputs: Any) -> Any:
        answered[self.counted] += len(inputs[0])
        return call(self, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtSession, "__init__", opens)
        patch.setattr(OrtSession, "run", runs)
        run.stage("evaluate")
    return run, answered


def test_each_file_answers_each_sample_once(measured: Any) -> None:
    run, answered = measured
    report = run.entries["evaluate"].record
    assert {"top1", "agreement", "parity_flips", "samples"} <= {metric.name for metric in report.models["int8"]}
    assert answered == {"teacher.onnx": 64, "student.onnx": 64, "int8.onnx": 64}


def test_a_run_view_opens_what_the_files_said(measured: Any) -> None:
    run, _ = measured
    view = RunView(run.plan, run.entries)
    (batch,) = run.work("evaluate", Path()).workload.batches("test", batch_size=64)
    for model, name in FILES.items():
        (given,) = OrtSession(run.entries["export"].file(name), threads=1).run((batch.inputs[0].numpy(),))
        found = view.predictions(model)
        assert list(found) == ["logits"]
        np.testing.assert_array_equal(found["logits"], given, strict=True)
        assert not found["logits"].flags.writeable
        assert found["logits"].base is not None
    assert view.predictions("int8", "validation") == {}
    assert RunView(run.plan, {}).predictions("int8") == {}


def test_the_entry_holds_predictions_and_the_files_of_evaluators(measured: Any) -> None:
    run, _ = measured
    entry = run.entries["evaluate"]
    assert isinstance(entry.record, EvaluationReport)
    assert {one.path for one in entry.record.predictions} == {f"predictions/{model}-test-0.bin" for model in FILES}
    assert {ref.path for ref in entry.manifest.files} == {
        *(f"predictions/{model}-test-0.bin" for model in FILES),
        *(f"files/size/{model}/role.txt" for model in FILES),
        "samples/labels-0.bin",
        "samples/input-0.bin",
    }
    assert entry.file("files/size/int8/role.txt").read_text() == "int8"
