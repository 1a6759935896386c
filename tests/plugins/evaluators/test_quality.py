"""The evaluator `quality` against scikit-learn."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kdq_core.api import StageError
from kdq_evaluators.quality import Quality

ABSOLUTE = {"top1", "precision", "recall", "f1", "nll", "brier", "ece", "prior_shift", "recall_worst"}


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
    assert found.keys() == ABSOLUTE
    assert found["top1"].value == accuracy_score(labels, logits.argmax(1))
    assert found["precision"].value == pytest.approx(precision, abs=1e-6)
    assert found["recall"].value == pytest.approx(recall, abs=1e-6)
    assert found["f1"].value == pytest.approx(f1, abs=1e-6)
    assert found["top1"].samples == 83
    for name in ABSOLUTE - {"recall_worst", "topk"}:
        assert found[name].low < found[name].value < found[name].high


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


def test_calibration_top_k_and_shift_equal_independent_computations(subject, table):
    from scipy.special import softmax
    from sklearn.metrics import brier_score_loss, log_loss, recall_score, top_k_accuracy_score
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = problem(classes=7, samples=400)
    student = subject("student", lambda x: x)
    found = named(Quality(k=3).evaluate(student, student, table(logits, labels)))
    odds = softmax(logits.astype(np.float64), axis=1)
    assert found["topk"].value == top_k_accuracy_score(labels, logits, k=3)
    assert found["nll"].value == pytest.approx(log_loss(labels, odds), rel=1e-6)
    assert found["brier"].value == pytest.approx(brier_score_loss(labels, odds, scale_by_half=False), rel=1e-6)
    theirs = multiclass_calibration_error(torch.tensor(odds), torch.tensor(labels), 7, n_bins=15)
    assert found["ece"].value == pytest.approx(float(theirs), abs=1e-6)
    shares = [np.bincount(x, minlength=7) / 400 for x in (labels, logits.argmax(1))]
    assert found["prior_shift"].value == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)
    recalls = recall_score(labels, logits.argmax(1), average=None)
    assert (found["recall_worst"].value, found["recall_worst"].samples) == (
        recalls.min(), np.bincount(labels)[recalls.argmin()],
    )  # fmt: skip


def test_differences_are_those_of_the_metrics_and_the_test_is_mcnemars(subject, table):
    from scipy.stats import binomtest

    logits, labels = problem(samples=300)
    worse = logits + np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)
    student, int8 = subject("student", lambda x: x[:, :5]), subject("int8", lambda x: x[:, 5:])
    batches = table(np.concatenate((logits, worse), 1), labels)
    found, own = (named(Quality().evaluate(one, student, batches)) for one in (int8, student))
    for name in ("top1", "f1", "nll"):
        difference = found[f"{name}_difference"]
        assert difference.value == pytest.approx(found[name].value - own[name].value)
        assert difference.low < difference.value < difference.high
    right, before = worse.argmax(1) == labels, logits.argmax(1) == labels
    gained, lost = int((right & ~before).sum()), int((before & ~right).sum())
    assert found["top1_mcnemar"].value == pytest.approx(binomtest(gained, gained + lost).pvalue)
    assert found["top1_mcnemar"].value < 0.05


def test_the_agreement_with_the_teacher_is_measured_where_there_is_one(subject, table):
    logits, labels = problem()
    student, teacher = subject("student", lambda x: x), subject("teacher", lambda x: x[:, ::-1])
    beside = replace(student, beside={"teacher": teacher, "student": student})
    found = named(Quality().evaluate(beside, student, table(logits, labels)))
    assert found["agreement_teacher"].value == (logits.argmax(1) == logits[:, ::-1].argmax(1)).mean()
    own = replace(teacher, beside={"teacher": teacher})
    assert "agreement_teacher" not in named(Quality().evaluate(own, student, table(logits, labels)))


def test_the_table_of_classes_has_exact_intervals(subject, table, tmp_path):
    from scipy.stats import beta
    from sklearn.metrics import precision_recall_fscore_support

    logits, labels = problem(samples=200)
    student = subject("student", lambda x: x, folder=tmp_path / "files")
    Quality().evaluate(student, student, table(logits, labels))
    rows = pd.read_csv(tmp_path / "files" / "classes.csv")
    wanted = precision_recall_fscore_support(labels, logits.argmax(1))
    for name, values in zip(("precision", "recall", "f1"), wanted, strict=False):
        np.testing.assert_allclose(rows[name], values, atol=1e-6)
        assert (rows[f"{name}_low"] < rows[name]).all()
        assert (rows[name] < rows[f"{name}_high"]).all()
    right, count = rows["right"][2], rows["labels"][2]
    assert rows["recall_low"][2] == pytest.approx(beta.ppf(0.025, right, count - right + 1), abs=1e-6)
    union = rows["labels"][2] + rows["predicted"][2] - right
    low = beta.ppf(0.025, right, union - right + 1)
    assert rows["f1_low"][2] == pytest.approx(2 * low / (1 + low), abs=1e-6)


def test_a_label_that_the_output_has_no_class_for_is_named(subject, table):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Quality().evaluate(student, student, table(np.eye(4, 3), np.array([0, 1, 2, 3])))
    assert str(caught.value) == (
        "the test split has the label 3, but the output has 3 classes, numbered from 0; correct the labels, or give "
        "the model that many outputs"
    )


def test_reading_in_pieces_changes_nothing(subject, table, monkeypatch):
    logits, labels = problem()
    student = subject("student", lambda x: x)
    whole = Quality().evaluate(student, student, table(logits, labels))
    monkeypatch.setattr("kdq_evaluators.sampled.PIECE", 35)
    assert Quality().evaluate(student, student, table(logits, labels)) == whole


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
        "teacher model 'teacher.onnx' gives NaN or infinity for 2 of 83 test samples, first for sample 3; let the "
        "model answer for such a sample, for instance a sentence whose mask is all zero, or drop it from the data"
    )
    logits[20:] = np.nan
    with pytest.raises(StageError) as caught:
        Quality().evaluate(teacher, teacher, table(logits, labels))
    assert str(caught.value) == (
        "teacher model 'teacher.onnx' gives NaN or infinity for 65 of 83 test samples, first for sample 3; "
        "train it with a lower learning rate or with 'clip_norm'"
    )


def test_without_labels_the_agreement_with_the_float_student_is_measured(subject, table):
    rows = np.eye(4, 3, dtype=np.float32)
    student, int8 = subject("student", lambda x: x), subject("int8", lambda x: -x)
    found = named(Quality().evaluate(int8, student, table(rows)))
    assert found.keys() == {"agreement"}
    assert found["agreement"].note == (
        "the test split has no labels, so 'quality' measures no more than the agreement with the float student"
    )
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
    assert one["label_f1"].low < one["label_f1"].value < one["label_f1"].high


def test_a_thousand_classes_and_fifty_thousand_samples_take_little_memory():
    code = """
import resource
import numpy as np, torch
from kdq_evaluators.classes import macro, Said
torch.set_deterministic_debug_mode(2)
random = np.random.default_rng(0)
truth = random.integers(0, 1000, 50_000)
given = np.where(random.random(50_000) < 0.7, truth, random.integers(0, 1000, 50_000))
def said(truth, given):
    return Said(truth, given, 1000, *[None] * 4)
macro(said(truth[:10], given[:10]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {one.name: one.metric() for one in macro(said(truth, given))}
assert 0.69 < found["f1"].low < found["f1"].value < found["f1"].high < 0.71
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
