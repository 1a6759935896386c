"""The evaluator `latency` with runtimes that sleep."""

import time

import numpy as np
import pytest

from kdq_core.api import StageError
from kdq_evaluators.latency import Latency

ZEROS = np.zeros((9, 4))


def sleeper(name, seconds, calls):
    def run(x):
        calls.append((name, x.shape))
        time.sleep(seconds * (1 if len(x) < 5 else 3))
        return x

    return run


def measured(subject, table, int8, student, **options):
    calls = []
    subjects = [subject(n, sleeper(n, s, calls)) for n, s in (("int8", int8), ("student", student))]
    metrics = Latency(seconds=0.2, rounds=6, **options).evaluate(*subjects, table(ZEROS))
    assert [len(subject.target.threads_asked) for subject in subjects] == [7, 6]  # one more to start the runtime
    assert set(subjects[0].target.threads_asked) == {options.get("threads", 1)}
    return {m.name: m for m in metrics}, calls


def test_times_throughput_and_speed_up_are_those_of_the_files(subject, table):
    found, calls = measured(subject, table, 0.002, 0.006, batch_size=3, further_batches=(6,), threads=2)
    assert list(found) == [
        "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput", "throughput/6", "speedup", "speedup/6",
    ]  # fmt: skip
    assert {shape for _, shape in calls} == {(3, 4), (6, 4)}
    assert 2 <= found["latency_p50_ms"].value < 3.5
    assert found["latency_p50_ms"].value <= found["latency_p95_ms"].value <= found["latency_p99_ms"].value
    assert 800 < found["throughput"].value <= 3 / 0.002
    assert 500 < found["throughput/6"].value <= 6 / 0.006
    assert 2 < found["speedup"].value < 3.5
    assert all(m.low <= m.value <= m.high for m in found.values())
    assert len({m.samples for m in found.values()}) <= 2
    assert found["speedup"].note == ""


def test_a_file_that_is_not_faster_is_told_with_its_other_batch_sizes(subject, table):
    found, _ = measured(subject, table, 0.006, 0.002, further_batches=(6,))
    low, high, other = found["speedup"].low, found["speedup"].high, found["speedup/6"].value
    assert found["speedup"].note == (
        f"slower than the float student's file ({low:.2f} to {high:.2f}); {other:.2f} at batch 6"
    )


def test_a_file_that_may_be_as_fast_is_told(subject, table):
    found, _ = measured(subject, table, 0.002, 0.002, further_batches=())
    if not found["speedup"].low <= 1 <= found["speedup"].high:  # one of twenty intervals does not hold the truth
        pytest.fail(str(found["speedup"]))
    assert found["speedup"].note.startswith("no difference shown from the float student's file (")


def test_the_baseline_is_measured_alone_and_has_no_speed_up(subject, table):
    calls = []
    student = subject("student", sleeper("student", 0, calls))
    metrics = Latency(seconds=0.02, rounds=2, further_batches=(2,)).evaluate(student, student, table(ZEROS))
    assert [m.name for m in metrics] == [
        "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "throughput", "throughput/2",
    ]  # fmt: skip
    assert len(student.target.threads_asked) == 3


def test_a_batch_larger_than_the_first_batch_repeats_its_samples(subject, table):
    calls = []
    student = subject("student", sleeper("student", 0, calls))
    options = {"seconds": 0.02, "rounds": 2, "batch_size": 20, "further_batches": (20,)}
    metrics = Latency(**options).evaluate(student, student, table(ZEROS))
    assert {shape for _, shape in calls} == {(20, 4)}
    assert [m.name for m in metrics].count("throughput") == 1


def test_an_empty_test_split_is_refused(subject):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Latency().evaluate(student, student, lambda: ())
    assert str(caught.value) == (
        "evaluator 'latency' needs one test sample, but the test split is empty; give it samples"
    )
