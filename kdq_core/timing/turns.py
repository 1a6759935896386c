"""Time calls of one file, or of several beside each other: in turns, and in rounds with new sessions."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kdq_core.timing.pinned import pinned
from kdq_core.timing.times import Times

if TYPE_CHECKING:
    import numpy as np

    Inputs = tuple[np.ndarray, ...]

ROUNDS = 10
"""New sessions lie elsewhere in memory, so one file differs by some per cent from round to round."""
BURST_SECONDS = 1e-3
"""About the least length of a turn: its calls follow each other, so that caches are warm, as in real use."""
MOST_CALLS = 50
"""Most calls of one file in a turn."""
FEWEST_TURNS = 2
"""Fewest turns in a round, for files that take long."""
STEADY_TURNS = 4
"""The warm-up compares that many turns with as many before."""
STEADY = 0.02
"""The warm-up ends once turns are not faster by this share than those before."""
WARM_SHARE = 0.25
"""Most of the time of a round that the warm-up takes."""
SHIFT = 1 << 20
"""Most bytes that KDQ allocates before it opens a file, so that the file lies elsewhere in each round."""


class Runs(Protocol):
    """A loaded file."""

    def run(self, inputs: Inputs) -> object:
        """Compute the outputs for one batch."""


Opener = Callable[[], Runs]


@dataclass
class _Batch:
    """One batch, and what the first round finds out for all: calls of a file in a turn, and turns in a round."""

    inputs: Inputs
    seconds: float
    calls: int = 0
    turns: int = 0


def measure_times(
    openers: Sequence[Opener],
    batches: Sequence[Inputs],
    *,
    seconds: float,
    threads: int = 1,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[tuple[Times, ...], ...]:
    """Time calls of files beside each other.

    In each round KDQ opens the files anew, in random order. For each batch it warms them up until their times are
    steady; then the files take turns, in random order within a turn. All rounds have equally many turns. Meanwhile the
    thread keeps to the least busy CPUs, and Python collects no garbage.

    Args:
        openers: load one file each.
        batches: inputs of one call each, the same for all files; each input is `[B, ...]`.
        seconds: about how long all calls with one batch take; opening the files comes on top.
        threads: number of CPUs; the openers ask their runtime for as many threads.
        rounds: number of rounds, 2 at least.
        seed: decides every random order.

    Returns:
        For each batch the times of each file, in the order of `openers`.
    """
    plans = [_Batch(inputs, seconds / rounds) for inputs in batches]
    found: list[list[list[np.ndarray]]] = [[[] for _ in openers] for _ in batches]
    openers[0]()  # a runtime that starts on few CPUs, as OpenVINO does, would keep to so many threads in this process
    with pinned(threads):
        for number in range(rounds):
            order = random.Random(f"{seed} {number}")  # noqa: S311 - an order of turns, no secret
            sessions, _held = _opened(openers, order)
            for batch, per_file in zip(plans, found, strict=True):
                for times, new in zip(per_file, _round(sessions, batch, order), strict=True):
                    times.append(new)
            del sessions, _held
    return tuple(
        tuple(Times(tuple(times), samples_in(inputs)) for times in per_file)
        for inputs, per_file in zip(batches, found, strict=True)
    )


def samples_in(inputs: Inputs) -> int:
    """Number of samples in a batch: the first axis of its first input."""
    return len(inputs[0]) if inputs and inputs[0].ndim else 1


def _opened(openers: Sequence[Opener], order: random.Random) -> tuple[list[Runs], list[Any]]:
    """Open the files in random order, each behind a piece of memory of random size; give these pieces too."""
    held: list[Any] = []
    sessions: dict[int, Runs] = {}
    for index in order.sample(range(len(openers)), len(openers)):
        held.append(bytearray(order.randrange(1, SHIFT)))
        sessions[index] = openers[index]()
    return [sessions[index] for index in range(len(openers))], held


def _round(sessions: list[Runs], batch: _Batch, order: random.Random) -> list[np.ndarray]:
    """Warm up, and measure the turns of one round; give the times of each session, `[turns, calls]`."""
    import numpy as np

    if not batch.calls:
        batch.calls = _calls_in_turn(sessions, batch.inputs)
    quickest = _warm_up(sessions, batch)
    if not batch.turns:
        batch.turns = max(FEWEST_TURNS, round(batch.seconds * (1 - WARM_SHARE) / quickest))
    flips = [order.random() < 0.5 for _ in range((batch.turns + 1) // 2)]
    backwards = [turn for flip in flips for turn in (flip, not flip)][: batch.turns]
    found: list[list[list[float]]] = [[] for _ in sessions]
    for back in backwards:
        for index in sorted(range(len(sessions)), reverse=back):
            found[index].append(_burst(sessions[index], batch.inputs, batch.calls))
    return [np.array(times) for times in found]


def _calls_in_turn(sessions: Sequence[Runs], inputs: Inputs) -> int:
    """How many calls a file makes in a turn; as many for each file, because the first ones find the caches cold."""
    took = 0.0
    for session in sessions:
        _burst(session, inputs, 1)
        times = _burst(session, inputs, 1)
        if times[0] < 10 * BURST_SECONDS:  # else it is a single call, whatever disturbed it
            times += _burst(session, inputs, 5)
        took = max(took, min(times))
    return max(1, min(MOST_CALLS, math.ceil(BURST_SECONDS / took)))


def _warm_up(sessions: list[Runs], batch: _Batch) -> float:
    """Run turns until no file becomes faster any more, or the warm-up has had its share; give the quickest's seconds.

    The quickest turn is the one that other processes disturbed least.
    """
    import numpy as np

    end, quickest = time.perf_counter() + WARM_SHARE * batch.seconds, math.inf
    medians: list[list[float]] = [[] for _ in sessions]
    while True:
        began = time.perf_counter()
        for index in range(len(sessions)):
            times = _burst(sessions[index], batch.inputs, batch.calls)
            medians[index].append(float(np.median(times)))
        quickest = min(quickest, time.perf_counter() - began)
        settled = len(medians[0]) >= 2 * STEADY_TURNS and all(map(_is_steady, medians))
        if settled or time.perf_counter() >= end:
            return quickest


def _is_steady(turns: Sequence[float]) -> bool:
    import numpy as np

    before, now = np.median(turns[-2 * STEADY_TURNS : -STEADY_TURNS]), np.median(turns[-STEADY_TURNS:])
    return bool(now >= (1 - STEADY) * before)


def _burst(session: Runs, inputs: Inputs, calls: int) -> list[float]:
    """Seconds of calls that follow each other."""
    clock, run, times = time.perf_counter, session.run, []
    for _ in range(calls):
        began = clock()
        run(inputs)
        times.append(clock() - began)
    return times
