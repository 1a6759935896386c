"""Intervals of times hold the true value as often as they say, also if calls depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import signal

from kdq_core.timing.times import Estimate, Times

ROUNDS, TURNS, CALLS, WARM = 10, 40, 3, 13
WITHIN, OF_SESSION, STEP = 0.1, 0.03, 0.9
"""Standard deviation of log times within a round and of a session; AR(1) coefficient from turn to turn. KDQ does not
measure the first `WARM` turns of a round."""


def noise(random: np.random.Generator) -> np.ndarray:
    """Log times `[rounds, turns, calls]`: each turn's depend on those before, as of a machine whose load changes."""
    shocks = random.normal(scale=WITHIN * math.sqrt(1 - STEP**2), size=ROUNDS * (WARM + TURNS) + 200)
    course = signal.lfilter([1], [1, -STEP], shocks)[200:].reshape(ROUNDS, WARM + TURNS, 1)[:, WARM:]
    session = random.normal(scale=OF_SESSION, size=(ROUNDS, 1, 1))
    return np.asarray(course + session + random.normal(scale=WITHIN, size=(ROUNDS, TURNS, CALLS)))


def two_files(random: np.random.Generator, ratio: float = 1.0) -> tuple[Times, Times]:
    """Two files: the first takes `ratio` times as long, 0.02 s; the load of the machine is the same for both."""
    load = noise(random)
    own = [np.exp(np.log(scale * 0.02) + load + noise(random) / 2) for scale in (ratio, 1.0)]
    return Times(tuple(own[0]), batch=4), Times(tuple(own[1]), batch=4)


DEVIATION = math.sqrt((2 * WITHIN**2 + OF_SESSION**2) * 1.25)
"""Of the log of a single call."""
ESTIMATES: dict[str, tuple[Callable[[Times, Times], Estimate], float]] = {
    "ratio": (lambda one, other: one.ratio_to(other), 1.3),
    "p50": (lambda _, other: other.quantile(0.5), 0.02),
    "p95": (lambda _, other: other.quantile(0.95), 0.02 * math.exp(1.6448536 * DEVIATION)),
    "p99": (lambda _, other: other.quantile(0.99), 0.02 * math.exp(2.3263479 * DEVIATION)),
    "throughput": (lambda _, other: other.throughput(), 4 / (0.02 * math.exp(DEVIATION**2 / 2))),
}


def covered(name: str, draws: int) -> float:
    estimate, true = ESTIMATES[name]
    random = np.random.default_rng(0)
    found = [estimate(*two_files(random, 1.3)) for _ in range(draws)]
    return sum(one.low <= true <= one.high for one in found) / draws


@pytest.mark.parametrize("name", ESTIMATES)
def test_intervals_hold_the_true_value_95_times_in_100_although_turns_depend_on_each_other(name: str) -> None:
    assert 0.92 <= covered(name, 300) <= 0.99


@pytest.mark.rare
@pytest.mark.parametrize("name", ESTIMATES)
def test_intervals_of_many_draws_hold_the_true_value_93_to_97_times_in_100(name: str) -> None:
    assert 0.93 <= covered(name, 4000) <= 0.97


def test_the_interval_over_single_turns_would_be_far_too_narrow() -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(40):
        _, times = two_files(random)
        turns = Times(tuple(np.concatenate(times.rounds).reshape(-1, 1, CALLS))).quantile(0.5)
        held.append(turns.low <= 0.02 <= turns.high)
    assert sum(held) < 0.75 * len(held)


def test_the_formula_is_that_of_sectioning() -> None:
    rounds = tuple(np.array([[value, value * 2, value * 4]]) for value in (1.0, 2.0, 4.0))
    found = Times(rounds).quantile(0.5)
    # The share of Woodruff's end is above 1, and its time is the longest, 16: below that of the sections.
    # medians 2, 4, 8 in the rounds and 4 over all; t(2) = 4.3027 as tabulated in Fisher and Yates 1963, table III.
    half = 4.3027 * math.sqrt(2 * math.log(2) ** 2 / 6)
    assert (found.value, found.low, found.high) == pytest.approx((4, 4 * math.exp(-half), 4 * math.exp(half)), rel=1e-4)


def test_the_upper_end_of_a_quantile_is_at_least_that_of_the_share_of_calls() -> None:
    rounds = (np.array([[1.0, 1, 1, 9, 9]]), np.array([[1.0, 1, 1, 1, 9]]))
    # Each round's median is 1. Of the calls, 0.6 and 0.8 take at most 1: t(1) = 12.7 errors of 0.1 reach every call.
    found = Times(rounds).quantile(0.5)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 9))


def test_throughput_counts_samples_and_follows_the_mean() -> None:
    rounds = (np.array([[0.1, 0.3]]), np.array([[0.1, 0.3]]))
    assert Times(rounds, batch=8).throughput().value == pytest.approx(40)
    assert Times(rounds).calls == 4


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.01, 1.2, "faster"),
        (1.0, 1.2, "no difference"),
        (0.9, 1.0, "no difference"),
        (0.9, 1.1, "no difference"),
        (0.8, 0.99, "slower"),
    ],
)
def test_faster_is_said_only_where_the_interval_parts_from_1(low: float, high: float, verdict: str) -> None:
    assert Estimate((low + high) / 2, low, high).verdict == verdict
