"""What a file says of a split is computed once, kept in files, and read by every evaluator that asks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdq_core.api import Batch, PluginError, StageError
from kdq_core.store.predictions import opened
from kdq_core.work.predictions import KeptPredictions
from kdq_evaluators.parity import Parity
from kdq_evaluators.quality import Quality

ROWS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
LABELS = ROWS.argmax(1)


@pytest.fixture
def counted(subject, tmp_path):
    """Makes a subject whose predictions are kept; `calls` counts the batches that its file answers."""
    draft = tmp_path / "draft"
    draft.mkdir()

    def make(role, batches, function=lambda x: x * 0.1, **fields):
        calls = []

        def answer(x):
            calls.append(len(x))
            return function(x)

        one = subject(role, answer, **fields)
        one.target.__dict__["outputs"] = ("logits",)
        return replace(one, kept=KeptPredictions(one, batches, draft)), calls

    make.draft = draft
    return make


def test_each_file_runs_once_over_the_split_for_all_evaluators(counted, table):
    batches, model = table(ROWS, LABELS), nn.Identity()
    student, theirs = counted("student", batches)
    int8, ours = counted("int8", batches, lambda x: x, simulation=model, prepared=model, output_scales=(0.1,))
    for evaluator in (Quality(), Parity()):
        for candidate in (student, int8):
            evaluator.evaluate(candidate, student, batches)
    assert theirs == ours == [7, 7, 7, 7, 2]
    assert [session.threads_asked for session in (student.target, int8.target)] == [[2], [2]]


@pytest.mark.parametrize("evaluator", [Quality(), Parity()])
def test_an_evaluator_finds_the_same_in_what_is_kept_as_in_what_it_runs(counted, table, evaluator):
    batches, model = table(ROWS, LABELS), nn.Identity()
    student, _ = counted("student", batches, lambda x: x[:, ::-1] * np.float32(0.1))
    int8, _ = counted("int8", batches, lambda x: x * np.float32(0.97), simulation=model, output_scales=(0.01,))
    run = [replace(one, kept=None) for one in (int8, student)]
    found = evaluator.evaluate(int8, student, batches)
    assert found
    assert found == evaluator.evaluate(*run, batches)


def test_predictions_are_the_bits_that_the_file_gives_and_cannot_be_written(counted, table):
    batches = table(ROWS)
    student, _ = counted("student", batches)
    kept = student.predict(batches)
    run = replace(student, kept=None).predict(batches)
    for outputs in (kept, run):
        np.testing.assert_array_equal(outputs[0], ROWS * np.float32(0.1), strict=True)
        with pytest.raises(ValueError, match="read-only"):
            outputs[0][0] = 0
    assert isinstance(kept[0].base, np.memmap)


def test_the_record_says_how_to_open_what_was_kept(counted, table):
    batches = table(ROWS)
    student, _ = counted("student", batches, lambda x: x.astype(">f8")[:, None])
    student.predict(batches)
    (stored,) = student.kept.stored
    assert stored.model_dump() == {
        "model": "student", "split": "test", "output": "logits", "path": "predictions/student-test-0.bin",
        "dtype": "<f8", "shape": (30, 1, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(opened(counted.draft, stored), ROWS[:, None].astype("<f8"), strict=True)


def test_nothing_is_kept_of_a_file_whose_predictions_nobody_reads(counted, table):
    student, calls = counted("student", table(ROWS))
    assert student.kept.stored == ()
    assert (calls, list(counted.draft.iterdir())) == ([], [])


def test_other_batches_and_another_file_are_not_served_from_what_is_kept(counted, table, tmp_path):
    batches, fewer = table(ROWS), table(ROWS[:9])
    student, calls = counted("student", batches)
    student.predict(batches)
    del calls[:]
    assert len(student.predict(fewer)[0]) == 9
    assert calls == [7, 2]
    other = tmp_path / "other.onnx"
    student.target.functions[other.name] = lambda x: -x
    np.testing.assert_array_equal(replace(student, path=other).predict(batches)[0], -ROWS)
    assert len(replace(student, threads=1).predict(batches)[0]) == 30
    assert len(calls) == 2 + 5


@pytest.mark.parametrize("keep", [True, False])
def test_samples_of_different_shapes_are_no_array_and_can_still_be_run(counted, keep):
    def batches():
        for length in (4, 5):
            yield Batch((torch.zeros(2, length, 3),), None, torch.arange(2))

    student, _ = counted("student", batches)
    student = student if keep else replace(student, kept=None)
    with pytest.raises(StageError) as caught:
        student.predict(batches)
    assert str(caught.value) == (
        "student model 'student.onnx' gives samples of the shapes [(4, 3)] in the first batch and [(5, 3)] in a later "
        "one, so its predictions are no one array; let the workload pad its test split to one length, or leave out "
        "the evaluators that compare sample by sample"
    )
    assert [outputs[0].shape for outputs in student.run(batches)] == [(2, 4, 3), (2, 5, 3)]


def test_an_evaluator_writes_to_the_folder_of_its_subject(subject, tmp_path):
    student = subject("student", folder=tmp_path / "files" / "mine")
    student.file("curve-1.csv").write_text("1")
    assert (tmp_path / "files" / "mine" / "curve-1.csv").read_text() == "1"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/x", ".hidden"])
def test_a_file_is_asked_for_by_a_plain_name(subject, tmp_path, name):
    with pytest.raises(PluginError) as caught:
        subject("student", folder=tmp_path).file(name)
    assert str(caught.value) == (
        f"an evaluator asked for a file called {name!r}, but a name has letters, digits, '_', '-' and '.' only and no "
        "folder; give it a plain name such as 'curve.svg'"
    )


def test_a_subject_without_a_folder_takes_no_files(subject):
    with pytest.raises(PluginError) as caught:
        subject("student").file("curve.svg")
    assert str(caught.value) == (
        "an evaluator asked for a file 'curve.svg', but its subject has no folder to write to; make it with "
        "Subject(..., folder=...)"
    )
