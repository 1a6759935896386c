"""The stage `evaluate`: each file runs once over the test split, what it said is kept, evaluators write files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdq_core.api import Batches, Evaluator, Metric, Subject
from kdq_core.errors import StoreError
from kdq_core.plan.view import RunView
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Kind, Plugin
from kdq_core.recipe.spec import Use
from kdq_core.store.predictions import opened
from kdq_core.store.records import EvaluationReport, Failure
from kdq_flows.facts.result import troubles
from kdq_stages.evaluate import Evaluate, subjects_of
from kdq_stages.evaluate import measured as stage_measured
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

    recipe = {"teacher": {"fit": FIT}, "distill": {"fit": FIT}, "quantize": {"use": "minmax-qat", "fit": FIT}}
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
        *(f"files/quality/{model}/{file}" for model in FILES for file in ("classes.csv", "outcomes.safetensors")),
        "samples/labels-0.bin",
        "samples/input-0.bin",
    }
    assert entry.file("files/size/int8/role.txt").read_text() == "int8"


class Raises(Evaluator):
    """Raises for the int8 file, in place of `latency`."""

    metrics = ("speedup",)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        if candidate.role == "int8":
            raise ZeroDivisionError("no time passed")
        return ()


def test_an_evaluator_that_raises_is_named_and_the_others_are_reported(measured: Any, tmp_path: Path) -> None:
    run, _ = measured
    work, stage = run.work("evaluate", tmp_path), Evaluate()
    evaluators = (*work.evaluators[:1], Raises())
    uses = (*run.recipe.evaluate[:1], Use(use="latency"))
    fake = SimpleNamespace(
        section=lambda name: uses, evaluators=evaluators, draft=tmp_path, progress=lambda *args: None
    )
    subjects = subjects_of(work)
    batches = lambda: work.workload.batches("test", batch_size=64)  # noqa: E731
    report = stage_measured(fake, subjects, batches)  # type: ignore[arg-type]
    assert report.failures == (
        Failure(
            evaluator="latency", model="int8", error="ZeroDivisionError: no time passed", metrics=("speedup",)
        ),
    )  # fmt: skip
    assert report.value("int8", "top1") is not None
    assert not stage.still_there(report, run.site)
    assert stage.still_there(run.entries["evaluate"].record, run.site)
    (line,) = troubles(report)
    assert line == "evaluator 'latency' failed on int8: ZeroDivisionError: no time passed"


def test_if_every_evaluator_raises_so_does_the_stage(measured: Any, tmp_path: Path) -> None:
    run, _ = measured
    subjects = {"int8": subjects_of(run.work("evaluate", tmp_path))["int8"]}
    subjects["student"] = subjects["int8"]
    fake = SimpleNamespace(
        section=lambda name: (Use(use="latency"),), evaluators=(Raises(),), draft=tmp_path, progress=lambda *args: None
    )
    with pytest.raises(ZeroDivisionError, match="no time passed"):
        stage_measured(fake, {"int8": subjects["int8"], "student": subjects["int8"]}, tuple)  # type: ignore[arg-type]


def test_predictions_that_are_cut_off_are_told(measured: Any, tmp_path: Path) -> None:
    run, _ = measured
    entry = run.entries["evaluate"]
    stored = entry.record.predictions[0]
    (tmp_path / "predictions").mkdir()
    path, whole = tmp_path / stored.path, (entry.folder / stored.path).read_bytes()
    for content, said in ((whole[:-1], f"has {len(whole) - 1:,} bytes"), (None, "is missing")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StoreError) as caught:
            opened(tmp_path, stored)
        assert str(caught.value) == (
            f"the predictions of the {stored.model} model in {str(path)!r} should have {len(whole):,} bytes, but the "
            f"file {said}; run the recipe again: KDQ drops the damaged entry and computes it anew"
        )
