"""Files take turns in random order, in rounds with new sessions, on the least busy CPUs."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdq_core.timing.pinned import chosen_cpus, pinned
from kdq_core.timing.turns import _is_steady, measure_times

X = (np.zeros((3, 2), np.float32),)


class Sleeper:
    """Takes a time at each call and notes it."""

    def __init__(self, name: str, seconds: Callable[[int], float], notes: list[Any]) -> None:
        self.name, self.seconds, self.notes, self.done = name, seconds, notes, 0
        notes.append(("open", name))

    def run(self, inputs: Any) -> None:
        self.notes.append((self.name, inputs[0].shape))
        self.done += 1
        time.sleep(self.seconds(self.done))


def opener(name: str, seconds: float, notes: list[Any]) -> Callable[[], Sleeper]:
    return lambda: Sleeper(name, lambda _: seconds, notes)


def test_each_round_opens_the_files_anew_and_the_order_is_random_but_balanced() -> None:
    notes: list[Any] = []
    ((one, other),) = measure_times(
        [opener("a", 0.002, notes), opener("b", 0.004, notes)], [X], seconds=0.5, rounds=6, seed=1
    )
    opened = [name for kind, name in notes if kind == "open"][1:]  # the first starts the runtime
    assert len(opened) == 12
    assert len({tuple(opened[at : at + 2]) for at in range(0, 12, 2)}) == 2
    assert len(one.rounds) == len(other.rounds) == 6
    assert {times.shape for times in (*one.rounds, *other.rounds)} == {one.rounds[0].shape}
    turns = one.rounds[0].shape[0]
    called = [name for name, _ in notes if name != "open"]
    last = "".join(called[-2 * turns :])  # one call is a turn of these slow files
    pairs = [last[at : at + 2] for at in range(0, len(last), 2)]
    assert set(pairs) == {"ab", "ba"}
    assert abs(pairs.count("ab") - pairs.count("ba")) <= 1
    assert 1.5 < other.ratio_to(one).value < 2.2
    assert (one.batch, one.calls) == (3, 6 * turns)


def test_the_seed_decides_the_order_of_opening() -> None:
    def opened(seed: int) -> list[str]:
        notes: list[Any] = []
        measure_times([opener("a", 0, notes), opener("b", 0, notes)], [X], seconds=0.01, rounds=4, seed=seed)
        return [name for kind, name in notes if kind == "open"][1:]

    assert opened(3) == opened(3)
    assert opened(3) != opened(4)


def test_several_batches_share_the_sessions_of_a_round() -> None:
    notes: list[Any] = []
    found = measure_times([opener("a", 0, notes)], [X, (np.zeros((8, 2)),)], seconds=0.02, rounds=3)
    assert [name for kind, name in notes if kind == "open"] == ["a"] * 4
    assert [times.batch for (times,) in found] == [3, 8]


@pytest.mark.parametrize(("slower", "least", "most"), [(0.0, 5, 50), (0.003, 1, 1)])
def test_short_calls_follow_each_other_in_a_turn_and_each_file_makes_as_many(
    slower: float, least: int, most: int
) -> None:
    notes: list[Any] = []
    ((one, other),) = measure_times([opener("a", 0, notes), opener("b", slower, notes)], [X], seconds=0.1, rounds=2)
    assert one.rounds[0].shape == other.rounds[0].shape
    assert least <= one.rounds[0].shape[1] <= most


def test_the_warm_up_lasts_until_calls_do_not_become_faster() -> None:
    assert not _is_steady([4, 4, 4, 4, 3, 3, 3, 3])
    assert _is_steady([9, 4, 4, 4, 4, 4, 4, 4, 3.95])
    notes: list[Any] = []

    def slow_at_first() -> Sleeper:
        return Sleeper("a", lambda done: 0.004 if done < 15 else 0.001, notes)

    ((times,),) = measure_times([slow_at_first], [X], seconds=1.0, rounds=2)
    assert np.mean(np.concatenate(times.rounds) > 0.004) < 0.1


def test_a_slow_file_is_measured_twice_a_round() -> None:
    notes: list[Any] = []
    ((times,),) = measure_times([opener("a", 0.01, notes)], [X], seconds=0.001, rounds=2)
    assert times.calls == 4


def test_the_thread_is_pinned_meanwhile_and_free_afterwards() -> None:
    before = os.sched_getaffinity(0)

    def fails() -> None:
        with pinned(1) as cpus:
            assert os.sched_getaffinity(0) == set(cpus)
            assert len(cpus) == 1
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert os.sched_getaffinity(0) == before
    assert gc.isenabled()


def test_a_runtime_starts_before_the_thread_is_pinned() -> None:
    seen: list[int] = []

    class Looking:
        def __init__(self) -> None:
            seen.append(len(os.sched_getaffinity(0)))

        def run(self, inputs: Any) -> None:
            seen.append(len(os.sched_getaffinity(0)))

    measure_times([Looking], [X], seconds=0.01, rounds=2)
    assert seen[0] == len(os.sched_getaffinity(0))
    assert set(seen[1:]) == {1}


def test_garbage_that_was_not_collected_before_is_not_afterwards() -> None:
    gc.disable()
    try:
        with pinned(1):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_least_busy_cpus_are_chosen() -> None:
    assert chosen_cpus([0, 1, 2, 3], [90.0, 5.0, 50.0, 1.0], 2) == (1, 3)
    assert chosen_cpus([4, 6], [0.0], 1) == (4,)
    assert chosen_cpus([0, 1], [0.0, 0.0], 8) == (0, 1)
