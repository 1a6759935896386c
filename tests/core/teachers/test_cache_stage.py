"""The stage that keeps a teacher's outputs, and the students that read them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.store.records import Checkpoint, TeacherOutputs
from kdq_core.tensors import Batch, View
from kdq_core.work.data import view_of

pytestmark = pytest.mark.isa

RECIPE: dict[str, Any] = {
    "workload": {"use": "digits", "options": {"teacher_width": 16, "student_width": 16}},
    "distill": {"fit": {"epochs": 3}},
    "quantize": {"use": "minmax-qat", "fit": {"epochs": 1}},
}
STAGES = ("train_teacher", "cache_teacher", "distill", "quantize")


def ran(stages_of: Any, home: Path, stages: tuple[str, ...] = STAGES, **cache: Any) -> Any:
    run = stages_of(home, **RECIPE, teacher={"fit": {"epochs": 1}, "precision": "fp32", "cache": cache})
    for name in stages:
        run.stage(name)
    return run


def losses(run: Any, stage: str) -> list[float]:
    record = run.entries[stage].record
    assert isinstance(record, Checkpoint)
    return [epoch.values["train/loss"] for epoch in record.history]


@pytest.fixture(scope="module")
def kept(stages_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ran(stages_of, tmp_path_factory.mktemp("kept"), views=3, form="fp32")


def test_students_that_read_kept_outputs_have_the_curve_of_those_with_the_teacher_beside_them(
    kept: Any, stages_of: Any, tmp_path: Path
) -> None:
    """With as many views as epochs, both see the same crops in the same order."""
    online = ran(stages_of, tmp_path, ("train_teacher", "distill", "quantize"), enabled=False)
    for stage in ("distill", "quantize"):
        assert losses(kept, stage) == pytest.approx(losses(online, stage), rel=1e-6)


def test_a_student_with_dropout_too_has_one_curve_with_kept_outputs_and_beside_the_teacher(
    stages_of: Any, tiny: Any, tmp_path: Path
) -> None:
    found = []
    for home, cache in (("kept", {"views": 3, "form": "fp32"}), ("beside", {"enabled": False})):
        fit = {"epochs": 3, "batch_size": 32}
        run = stages_of(
            tmp_path / home, tiny, workload="digits", teacher={"fit": fit, "precision": "fp32", "cache": cache},
            distill={"fit": fit}, quantize={"use": "minmax-qat", "fit": fit},
        )  # fmt: skip
        for node in run.plan.nodes[: 4 if home == "kept" else 3]:
            run.stage(node.name)
        found.append([losses(run, stage) for stage in ("distill", "quantize")])
    assert found[0] == [pytest.approx(curve, rel=1e-6) for curve in found[1]]


def test_the_entry_holds_what_the_loaded_teacher_says_of_each_view(kept: Any, tmp_path: Path) -> None:
    entry, context = kept.entries["cache_teacher"], kept.work("cache_teacher", tmp_path)
    record = entry.record
    assert isinstance(record, TeacherOutputs)
    assert (record.views, record.samples, record.classes, record.seed) == (3, 1197, 10, 0)
    assert record.teacher == kept.entries["train_teacher"].digest
    assert record.data == context.workload.fingerprint()
    rows = np.fromfile(entry.file("logits.bin"), "<f4").reshape(3, 1197, 10)
    teacher = context.model("teacher")
    batch = next(iter(context.workload.batches("train", batch_size=64, view=View(0, 2))))
    with torch.no_grad():
        said = teacher(*batch.inputs).numpy()
    np.testing.assert_allclose(rows[2, batch.ids.numpy()], said, rtol=1e-4, atol=1e-5)
    done = [event["done"] for event in kept.events if event.get("stage") == "cache_teacher"]
    assert done[-1] == 3 * 1197
    assert done == sorted(done)


def test_each_epoch_takes_the_next_kept_view_in_an_order_of_its_own(kept: Any, tmp_path: Path) -> None:
    context = kept.work("distill", tmp_path)
    first, later = ([*context.batches(epoch, 64)] for epoch in (1, 4))

    def by_number(batches: list[Batch]) -> dict[int, bytes]:
        rows = [(int(n), x.numpy().tobytes()) for b in batches for n, x in zip(b.ids, b.inputs[0], strict=True)]
        return dict(rows)

    assert {batch.view for batch in first + later} == {1}
    assert by_number(first) == by_number(later)
    assert list(by_number(first)) != list(by_number(later))
    assert by_number(first) != by_number([*context.batches(0, 64)])


def test_the_teacher_trains_on_views_of_its_own(kept: Any, tmp_path: Path) -> None:
    context = kept.work("train_teacher", tmp_path)
    assert view_of(context, 3) is None
    assert [batch.view for batch in context.batches(3, 600)] == [3, 3]
