"""What `quality` keeps of each test sample: the mean of it is the metric."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdq_evaluators.outcomes import FILE
from kdq_evaluators.quality import Quality


def kept_beside(metrics, folder):
    return {m.name: m.value for m in metrics}, load_file(folder / FILE)


def test_right_classes_are_kept_by_sample_and_ignored_ones_left_out(subject, table, tmp_path):
    logits, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]], np.array([0, 1, 0, -100, 1])
    student = subject("student", lambda x: x, folder=tmp_path)
    metrics, kept = kept_beside(Quality().evaluate(student, student, table(logits, labels)), tmp_path)
    assert {name: values.tolist() for name, values in kept.items()} == {"top1": [1, 1, 0, 1]}
    assert kept["top1"].dtype == np.uint8
    assert metrics["top1"] == kept["top1"].mean()


def test_errors_of_numbers_are_kept_by_sample(subject, table, tmp_path):
    random = np.random.default_rng(1)
    truth = random.normal(size=(40, 3)).astype(np.float32)
    student = subject("student", lambda x: x, folder=tmp_path)
    given = truth + random.normal(size=(40, 3)).astype(np.float32)
    metrics, kept = kept_beside(Quality().evaluate(student, student, table(given, truth)), tmp_path)
    assert kept.keys() == {"rmse", "mae"}
    assert metrics["rmse"] == pytest.approx(np.sqrt(kept["rmse"].mean()), rel=1e-5)
    assert metrics["mae"] == pytest.approx(kept["mae"].mean(), rel=1e-5)


def test_right_labels_are_kept_by_sample(subject, table, tmp_path):
    random = np.random.default_rng(2)
    truth = random.integers(0, 2, (50, 4)).astype(np.float32)
    student = subject("student", lambda x: x, folder=tmp_path)
    found = Quality().evaluate(student, student, table(truth - 0.5 + random.normal(size=(50, 4)), truth))
    metrics, kept = kept_beside(found, tmp_path)
    assert metrics["label_accuracy"] == pytest.approx(kept["label_accuracy"].mean())


def test_without_a_folder_nothing_is_kept(subject, table, tmp_path):
    student = subject("student", lambda x: x)
    assert Quality().evaluate(student, student, table(np.eye(3, dtype=np.float32), np.arange(3)))
    assert not (tmp_path / FILE).exists()
