"""The evaluator `latency` with runtimes that sleep."""

import time

import numpy as np
import pytest

from kdq_core.api import StageError
from kdq_evaluators.latency import Latency, metric, quantile


def sleeper(name, seconds, calls):
    def run(x):
        calls.append((name, x.shape))
        time.sleep(seconds)
        return x

    return run


def test_candidate_and_baseline_take_turns_and_the_ratio_is_honest(subject, table):
    calls = []
    int8, student = (
        subject(
            n,
            sleeper(n, s, calls),
        )
        for n, s in (("int8", 0.002), ("student", 0.006))
    )
    metrics = Latency(warmup=2, repeats=20, batch_size=3).evaluate(int8, student, table(np.zeros((9, 4))))
    found = {m.name: m for m in metrics}
    assert [name for name, _ in calls] == ["int8", "student"] * 22
    assert {shape for _, shape in calls} == {(3, 4)}
    assert found.keys() == {"latency_p50_ms", "latency_p95_ms", "speedup"}
    assert 2 <= found["latency_p50_ms"].value <= found["latency_p95_ms"].value
    assert 1.5 < found["speedup"].value < 3.5
    assert found["speedup"].low <= found["speedup"].value <= found["speedup"].high
    assert {m.samples for m in metrics} == {20}
    assert int8.target.threads_asked == student.target.threads_asked == [1]


def test_the_baseline_itself_has_no_speedup(subject, table):
    calls = []
    student = subject("student", sleeper("student", 0, calls))
    metrics = Latency(warmup=0, repeats=10).evaluate(student, student, table(np.zeros((9, 4))))
    assert [m.name for m in metrics] == ["latency_p50_ms", "latency_p95_ms"]
    assert {m.samples for m in metrics} == {10}
    assert len(calls) == 20  # it takes turns with a copy of itself, as the others do with it


def test_a_slow_model_is_measured_less_often_but_ten_times(subject, table):
    calls = []
    student = subject("student", sleeper("student", 0.01, calls))
    metrics = Latency(warmup=0, seconds=0.001).evaluate(student, student, table(np.zeros((9, 4))))
    assert metrics[0].samples == len(calls) / 2 == 10


def test_a_batch_larger_than_the_first_batch_repeats_its_samples(subject, table):
    calls = []
    student = subject("student", sleeper("student", 0, calls))
    Latency(warmup=0, repeats=10, batch_size=20).evaluate(student, student, table(np.zeros((9, 4))))
    assert {shape for _, shape in calls} == {(20, 4)}


def test_the_quantiles_equal_those_of_numpy():
    ordered = sorted(np.random.default_rng(0).normal(size=37).tolist())
    for share in (0.0, 0.5, 0.95, 1.0):
        assert quantile(ordered, share) == pytest.approx(np.quantile(ordered, share))


def test_the_interval_lies_between_order_statistics_and_has_no_end_it_cannot_have():
    values = [float(i) for i in range(100)]
    median = metric("m", values, 0.5, "ms")
    assert (median.low, median.value, median.high) == (39.0, 49.5, 60.0)
    tail = metric("m", values[:10], 0.95, "ms")
    assert tail.high is None
    assert tail.low == 7.0


def test_the_median_interval_covers_the_true_median_95_times_in_100():
    random = np.random.default_rng(0)
    intervals = [metric("m", sorted(random.exponential(size=200).tolist()), 0.5, "ms") for _ in range(1000)]
    covered = sum(m.low <= np.log(2) <= m.high for m in intervals)
    assert 930 <= covered <= 985


def test_an_empty_test_split_is_refused(subject):
    student = subject("student", lambda x: x)
    with pytest.raises(StageError) as caught:
        Latency().evaluate(student, student, lambda: ())
    assert str(caught.value) == (
        "evaluator 'latency' needs one test sample, but the test split is empty; give it samples"
    )
