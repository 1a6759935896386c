"""The evaluator `quality` against scikit-learn."""

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


def test_a_test_split_without_labels_is_refused(subject, table):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Quality().evaluate(student, student, table(np.zeros((9, 3))))
    assert str(caught.value) == (
        "evaluator 'quality' compares with hard labels, but the test split has none that are classes; "
        "give the workload labels, or leave 'quality' out of 'evaluate'"
    )


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
