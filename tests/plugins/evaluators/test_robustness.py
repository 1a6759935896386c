"""The evaluator `robustness`, and the corruptions that it makes."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, StageError
from kdq_evaluators.corruptions import KINDS, corrupted, facts, kind_of
from kdq_evaluators.robustness import Robustness

RANDOM = np.random.default_rng(0)
INPUTS = {
    "image": np.add.outer(RANDOM.random((40, 3)), np.hypot(*np.mgrid[:16, :16] / 8)).astype(np.float32),
    "audio": (np.sin(np.arange(1600) / 400)[None] * RANDOM.random((40, 1))).astype(np.float32),
    "text": np.where(np.arange(20) < RANDOM.integers(5, 21, 40)[:, None], RANDOM.integers(1, 90, (40, 20)), 0),
    "table": RANDOM.normal(size=(40, 7)).astype(np.float32) * 10 ** RANDOM.random(7).astype(np.float32),
}


def named(metrics):
    return {metric.name: metric for metric in metrics}


def worse(kind, name, severity, seed=0):
    x = INPUTS[kind]
    return corrupted(x, kind, name, severity, np.random.default_rng(seed), facts(x, kind, 0, 3))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_a_corruption_grows_with_its_severity_and_keeps_type_shape_and_range(kind, name):
    x = INPUTS[kind]
    away = []
    for severity in range(1, 6):
        found = worse(kind, name, severity)
        assert (found.dtype, found.shape) == (x.dtype, x.shape)
        if name != "columns":
            assert found.min() >= x.min()
            assert found.max() <= x.max()
        away.append((found != x).mean() if kind == "text" else np.abs(found - x).mean())
    assert away[0] > 0
    assert away == sorted(away)
    np.testing.assert_array_equal(worse(kind, name, 3), worse(kind, name, 3))


def test_dropped_tokens_leave_the_others_in_order():
    x, found = INPUTS["text"], worse("text", "drop", 5)
    for before, after in zip(x, found, strict=True):
        kept, rest = after[after != 0], iter(before)
        assert all(token in rest for token in kept)
        assert not after[len(kept) :].any()
    assert (found != 0).sum() == pytest.approx(0.75 * (x != 0).sum(), rel=0.1)


def test_what_an_input_is_follows_from_type_and_shape():
    assert {kind: kind_of(x) for kind, x in INPUTS.items()} == {kind: kind for kind in INPUTS}
    assert kind_of(INPUTS["audio"][:, None]) == "audio"
    assert [kind_of(np.zeros(shape, np.float32)) for shape in ((2, 3, 4), (5,), (1, 2, 3, 4, 5))] == [None] * 3


@pytest.fixture
def problem(subject):
    """Images of two classes by brightness, and a model with its threshold."""
    labels = RANDOM.integers(0, 2, 300)
    rows = (RANDOM.random((300, 1, 8, 8)) * 0.5 + 0.25 * labels[:, None, None, None]).astype(np.float32)

    def batches():
        for ids in torch.arange(300).split(64):
            yield Batch((torch.tensor(rows)[ids],), torch.tensor(labels)[ids], ids)

    def model(role, at):
        return subject(role, lambda x: np.stack([at - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - at], 1))

    return batches, model


def test_the_drop_of_a_file_is_compared_with_that_of_the_float_student(problem):
    batches, model = problem
    student, brittle = model("student", 0.375), model("int8", 0.29)
    found = named(Robustness(samples=200).evaluate(brittle, student, batches))
    own = named(Robustness(samples=200).evaluate(student, student, batches))
    for name in ("", *(f"/{one}" for one in KINDS["image"])):
        difference = found[f"robust_drop_difference{name}"]
        wanted = found[f"robust_drop{name}"].value - own[f"robust_drop{name}"].value
        assert difference.value == pytest.approx(wanted, abs=1e-12)
        assert difference.low < difference.value < difference.high
        assert difference.samples == 200
    assert own["robust_drop/brightness"].value > 0.2
    assert own["robust_drop/brightness"].low > 0.1
    assert abs(own["robust_drop/blur"].value) < 0.05
    assert found == named(Robustness(samples=200).evaluate(brittle, student, batches))


def test_each_severity_is_in_the_file(problem, tmp_path):
    batches, model = problem
    student = replace(model("student", 0.375), folder=tmp_path / "files")
    found = named(Robustness().evaluate(student, student, batches))
    rows = list(csv.DictReader((tmp_path / "files" / "robustness.csv").read_text().splitlines()))
    assert len(rows) == 1 + 5 * len(KINDS["image"])
    scores = [float(row["score"]) for row in rows if row["corruption"] == "noise"]
    assert np.mean(scores) == pytest.approx(found["robust_top1/noise"].value, abs=1e-5)


def test_numbers_are_measured_by_their_absolute_error(subject, table):
    rows = INPUTS["table"]
    truth = rows.sum(1)
    student = subject("student", lambda x: x.sum(1, keepdims=True))
    found = named(Robustness().evaluate(student, student, table(rows, truth)))
    assert found["robust_mae"].value == pytest.approx(found["robust_drop"].value)
    assert found["robust_drop/columns"].low > 0


def test_inputs_and_labels_that_fit_nothing_are_named(subject, table):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Robustness().evaluate(student, student, table(np.zeros((9, 3, 4)), np.zeros(9, int)))
    assert str(caught.value) == (
        "evaluator 'robustness' corrupts images, sound, token numbers and tables, but the first input is float32 "
        "[7, 3, 4]; say what it is with the option 'modality', or leave 'robustness' out of 'evaluate'"
    )
    with pytest.raises(StageError) as caught:
        Robustness().evaluate(student, student, table(np.zeros((9, 3)), np.zeros((9, 2), int)))
    assert str(caught.value) == (
        "evaluator 'robustness' measures classes and numbers, but the first output of 'student.onnx' is [9, 3] and "
        "its labels are int64 [9, 2]; leave it out of 'evaluate'"
    )
    with pytest.raises(StageError) as caught:
        Robustness().evaluate(student, student, table(np.zeros((9, 3))))
    assert str(caught.value) == (
        "evaluator 'robustness' compares with labels, but a test batch has no `targets`; give them, or leave "
        "'robustness' out of 'evaluate'"
    )
