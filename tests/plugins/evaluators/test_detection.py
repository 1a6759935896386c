"""The evaluator `detection` by hand."""

import sys

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, StageError
from kdq_evaluators.detection import NAMES, Detection

THRESHOLDS = np.arange(0.5, 1, 0.05)


def named(metrics):
    return {metric.name: metric for metric in metrics}


@pytest.fixture
def images():
    """Boxes of 40 images, up to 3 of each of 2 classes, and answers that are moved, with false ones among them."""
    random = np.random.default_rng(0)
    corner, size = random.random((40, 6, 2)) * 80, 15 + random.random((40, 6, 2)) * 25
    number = np.repeat([[0, 1]], 3, axis=1) * np.ones((40, 1))
    truth = np.concatenate([corner, corner + size, number[..., None]], 2).astype(np.float32)
    truth[random.random((40, 6)) < 0.3, 4] = -1
    moved = truth[..., :4] + random.normal(size=(40, 6, 4)) * 2
    given = np.concatenate([moved, random.random((40, 6, 1)), number[..., None]], 2).astype(np.float32)
    given[random.random((40, 6)) < 0.2, 4] = 0
    return given, truth


def batches_of(given, truth):
    def batches():
        for ids in torch.arange(len(given)).split(7):
            yield Batch((torch.tensor(given)[ids],), torch.tensor(truth)[ids], ids)

    return batches


def overlap(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:4], other[2:4])
    inside = np.prod(np.maximum(0, high - low))
    return inside / (np.prod(one[2:4] - one[:2]) + np.prod(other[2:4] - other[:2]) - inside)


def average_precision(given, truth, number, threshold):
    """COCO's average precision of one class: greedy matches by score, precision at 101 recalls."""
    answers = []
    for boxes, labels in zip(given, truth, strict=True):
        free = [box for box in labels if box[4] == number]
        for box in sorted((b for b in boxes if b[5] == number and b[4] > 0), key=lambda b: -b[4]):
            best = max(free, key=lambda label: overlap(box, label), default=None)
            hit = best is not None and overlap(box, best) >= threshold
            free = [label for label in free if not hit or label is not best]
            answers.append((box[4], hit))
    hits = np.cumsum([hit for _, hit in sorted(answers, key=lambda one: -one[0])])
    recall, precision = (
        hits / sum((labels[:, 4] == number).sum() for labels in truth),
        hits / np.arange(1, len(hits) + 1),
    )
    best = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, np.linspace(0, 1, 101))
    return np.append(best, 0)[np.minimum(place, len(best))].mean()


def test_average_precision_equals_its_definition(subject, images):
    pytest.importorskip("faster_coco_eval")
    given, truth = images
    student = subject("student", lambda x: x)
    found = named(Detection().evaluate(student, student, batches_of(given, truth)))
    assert found.keys() == NAMES.keys()
    by = {t: np.mean([average_precision(given, truth, number, t) for number in (0, 1)]) for t in THRESHOLDS}
    assert found["map_50"].value == pytest.approx(by[0.5], abs=1e-6)
    assert found["map"].value == pytest.approx(np.mean(list(by.values())), abs=1e-6)
    assert found["map"].low < found["map"].value < found["map"].high
    assert found["map"].samples == 40


def test_the_difference_from_the_float_student_is_paired(subject, images):
    pytest.importorskip("faster_coco_eval")
    given, truth = images
    student, int8 = subject("student", lambda x: x), subject("int8", lambda x: x + np.float32([1, 1, 1, 1, 0, 0]))
    found = named(Detection().evaluate(int8, student, batches_of(given, truth)))
    own = named(Detection().evaluate(student, student, batches_of(given, truth)))
    difference = found["map_difference"]
    assert difference.value == pytest.approx(found["map"].value - own["map"].value)
    assert difference.high - difference.low < found["map"].high - found["map"].low


def test_another_head_is_decoded_by_a_function(subject, images, tmp_path, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    given, truth = images
    (tmp_path / "heads.py").write_text("def boxes(outputs):\n    return outputs[0].reshape(-1, 6, 6)\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    plain, flat = subject("student", lambda x: x), subject("int8", lambda x: x.reshape(-1, 36))
    wanted = Detection().evaluate(plain, plain, batches_of(given, truth))
    evaluator = Detection(decode="heads:boxes")
    assert evaluator.evaluate(flat, flat, batches_of(given, truth)) == wanted
    assert evaluator.runs() == ("heads:boxes",)


def test_outputs_and_labels_of_another_task_are_named(subject, images, table, monkeypatch):
    given, truth = images
    student, other = subject("student", lambda x: x), subject("other", lambda x: x[:, 0])
    with pytest.raises(StageError) as caught:
        Detection().evaluate(other, other, batches_of(given, truth))
    assert str(caught.value) == (
        "evaluator 'detection' reads boxes [N, D, 6] (x1, y1, x2, y2, score, class), but 'other.onnx' gives [40, 6]; "
        "give its option 'decode' a function that makes boxes of the outputs, or leave 'detection' out of 'evaluate'"
    )
    with pytest.raises(StageError) as caught:
        Detection().evaluate(student, student, table(np.zeros((3, 2)), np.array([0, 1, 1])))
    assert str(caught.value) == (
        "evaluator 'detection' compares with boxes [B, G, 5] (x1, y1, x2, y2, class) in `Batch.targets`, but a test "
        "batch has [3]; give such labels, or leave 'detection' out of 'evaluate'"
    )
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(StageError) as caught:
        Detection().evaluate(student, student, batches_of(given, truth))
    assert str(caught.value) == (
        "evaluator 'detection' computes with faster-coco-eval, which is not installed: `pip install faster-coco-eval`"
    )
