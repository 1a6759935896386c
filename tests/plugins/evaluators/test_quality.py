"""The evaluator `quality` against scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest

from kdq_core.api import StageError
from kdq_evaluators.quality import Quality


def named(metrics):
    return {m.name: m for m in metrics}


def problem(classes=5, samples=83):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, samples)
    logits = random.normal(size=(samples, classes)).astype(np.float32)
    logits[np.arange(samples), labels] += 1
    return logits, labels


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("absent", [False, True])
def test_the_metrics_equal_those_of_scikit_learn(subject, table, absent):
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    logits, labels = problem()
    if absent:  # a class that is neither in the labels nor predicted
        logits[:, 4], labels = -9, labels % 4
    student = subject("student", lambda x: x)
    found = named(Quality().evaluate(student, student, table(logits, labels)))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, logits.argmax(1), average="macro")
    assert found.keys() == {"top1", "precision", "recall", "f1"}
    assert found["top1"].value == accuracy_score(labels, logits.argmax(1))
    assert found["precision"].value == pytest.approx(precision, abs=1e-6)
    assert found["recall"].value == pytest.approx(recall, abs=1e-6)
    assert found["f1"].value == pytest.approx(f1, abs=1e-6)
    assert {m.unit for m in found.values()} == {"fraction"}
    assert found["top1"].samples == 83
    assert found["top1"].low < found["top1"].value < found["top1"].high


def test_another_file_than_the_baseline_gets_difference_and_agreement(subject, table):
    # Candidate: right on 0, 1, 2; baseline: right on 0, 3; they agree on samples 0 and 4 (both wrong, the same way).
    answers = {"int8": [0, 1, 2, 0, 1], "student": [0, 0, 0, 3, 1]}
    labels, eye = np.array([0, 1, 2, 3, 4]), np.eye(5, dtype=np.float32)
    subjects = {role: subject(role, lambda x, a=a: eye[np.array(a)]) for role, a in answers.items()}
    found = named(Quality().evaluate(subjects["int8"], subjects["student"], table(np.zeros((5, 1)), labels)))
    assert found["top1"].value == pytest.approx(0.6)
    assert found["top1_difference"].value == pytest.approx(0.2)
    assert found["agreement"].value == pytest.approx(0.4)
    assert found["top1_difference"].low < 0 < found["top1_difference"].high


def test_the_files_run_with_the_threads_of_the_stage(subject, table):
    student = subject("student", lambda x: x)
    Quality().evaluate(student, student, table(*problem()))
    assert student.target.threads_asked == [2]


def test_an_answer_that_is_not_finite_is_refused(subject, table):
    logits, labels = problem()
    logits[3, 1] = logits[5, 0] = np.nan
    teacher = subject("teacher", lambda x: x)
    with pytest.raises(StageError) as caught:
        Quality().evaluate(teacher, teacher, table(logits, labels))
    assert str(caught.value) == (
        "teacher model 'teacher.onnx' gives NaN or infinity for 2 of 83 test samples; "
        "train it with a lower learning rate or with 'clip_norm'"
    )


def test_without_labels_the_agreement_with_the_float_student_is_measured(subject, table):
    rows = np.eye(4, 3, dtype=np.float32)
    student, int8 = subject("student", lambda x: x), subject("int8", lambda x: -x)
    found = named(Quality().evaluate(int8, student, table(rows)))
    assert found.keys() == {"agreement"}
    assert found["agreement"].value == (rows.argmax(1) == (-rows).argmax(1)).mean()
    assert Quality().evaluate(student, student, table(rows)) == ()
    with pytest.raises(StageError) as caught:
        Quality().evaluate(subject("int8", lambda x: x[:, :1]), subject("student", lambda x: x[:, :1]), table(rows))
    assert str(caught.value) == (
        "evaluator 'quality' compares with labels, but the test split has none that fit an output; give the workload "
        "labels, or leave 'quality' out of 'evaluate'"
    )


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_numbers_are_measured_by_their_errors(subject, table, shape):
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    random = np.random.default_rng(1)
    truth = random.normal(size=shape).astype(np.float32)
    given = (truth + random.normal(size=shape)).astype(np.float32).reshape(40, -1)
    student = subject("student", lambda x: x)
    found = named(Quality().evaluate(student, student, table(given, truth)))
    assert found.keys() == {"rmse", "mae"}
    assert found["rmse"].value == pytest.approx(root_mean_squared_error(truth.reshape(-1), given.reshape(-1)), rel=1e-5)
    assert found["mae"].value == pytest.approx(mean_absolute_error(truth.reshape(-1), given.reshape(-1)), rel=1e-5)
    for metric in found.values():
        assert metric.direction == "lower"
        assert metric.low < metric.value < metric.high


def test_the_interval_of_an_error_covers_it_about_nineteen_times_in_twenty(subject, table):
    random = np.random.default_rng(3)
    student, covered = subject("student", lambda x: x), 0
    for _ in range(200):
        truth = random.normal(size=200).astype(np.float32)
        given = (truth + 2 * random.normal(size=200)).astype(np.float32)[:, None]
        found = named(Quality().evaluate(student, student, table(given, truth)))
        covered += found["rmse"].low <= 2 <= found["rmse"].high
    assert 180 <= covered <= 199


def test_labels_of_zero_and_one_are_judged_by_the_sign_of_their_logits(subject, table):
    from sklearn.metrics import f1_score

    random = np.random.default_rng(2)
    truth = random.integers(0, 2, (50, 4)).astype(np.float32)
    logits = (truth - 0.5 + random.normal(size=(50, 4))).astype(np.float32)
    student = subject("student", lambda x: x)
    found = named(Quality().evaluate(student, student, table(logits, truth)))
    assert found.keys() == {"label_accuracy", "label_f1"}
    assert found["label_accuracy"].value == pytest.approx(((logits > 0) == truth).mean())
    assert found["label_f1"].value == pytest.approx(f1_score(truth, logits > 0, average="macro"), abs=1e-6)
    one = named(Quality().evaluate(student, student, table(logits[:, :1], truth[:, 0])))
    assert one["label_f1"].value == pytest.approx(f1_score(truth[:, 0], logits[:, 0] > 0), abs=1e-6)


def test_a_thousand_classes_and_fifty_thousand_samples_take_little_memory():
    code = """
import resource
import numpy as np, torch
from kdq_evaluators.quality import absolute
torch.set_deterministic_debug_mode(2)
random = np.random.default_rng(0)
truth = random.integers(0, 1000, 50_000)
given = np.where(random.random(50_000) < 0.7, truth, random.integers(0, 1000, 50_000))
absolute(given[:10], truth[:10], 1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {m.name: m.value for m in absolute(given, truth, 1000)}
assert abs(found["top1"] - (given == truth).mean()) < 1e-12
assert torch.get_deterministic_debug_mode() == 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500_000  # KiB


def test_an_empty_test_split_is_refused(subject):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Quality().evaluate(student, student, lambda: ())
    assert str(caught.value) == "the evaluators need the workload's test split, which is empty; give it samples"


def test_samples_labelled_as_ignored_are_left_out(subject, table):
    logits, labels = problem()
    student = subject("student", lambda x: x)
    some = labels.copy()
    some[40:] = -100
    found = named(Quality().evaluate(student, student, table(logits, some)))
    wanted = named(Quality().evaluate(student, student, table(logits[:40], labels[:40])))
    assert found == wanted


def test_one_logit_a_sample_is_no_choice_between_classes(subject, table):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Quality().evaluate(student, student, table(np.ones((4, 1), np.float32), np.array([0, 1, 0, 1])))
    assert str(caught.value) == (
        "evaluator 'quality' asks which class has the largest logit, but the test split's labels are of outputs with "
        "one logit a sample; give a logit to each class, or leave 'quality' out of 'evaluate'"
    )
