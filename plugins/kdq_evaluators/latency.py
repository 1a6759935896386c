"""Evaluator `latency`: how long one call of the shipped file takes, beside the float student's on the same machine.

What: median and 95th percentile of the wall time of one call, and the speed-up over the baseline.
Formula: candidate and baseline are called in turns, so that the machine's load affects both alike; speedup = median
    over the turns of baseline time / candidate time. The baseline takes turns with a copy of itself, so that its times
    can be compared.
Source: intervals (95 %) between order statistics, which assume no distribution: Conover 1999, "Practical Nonparametric
    Statistics", 3.2. If the sample is too small for an end of the interval, that end is left out.
Defaults and where they come from: one sample and one thread, as on a small device. 200 turns give the median to a few
    per cent. No turn begins after `seconds`, so that a large model is measured less often instead of for hours.
Costs: a little over `seconds` per model, but never less than 10 turns.
Limits: times depend on this machine and its load; compare within a report, not between reports.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Z95, Batches, Column, Evaluator, Field, Metric, Session, StageError, Subject

if TYPE_CHECKING:
    import numpy as np

LEAST_TURNS = 10


class Latency(Evaluator):
    """Wall time of one call, and the speed-up over the float student."""

    metrics: ClassVar[tuple[str, ...]] = ("latency_p50_ms", "latency_p95_ms", "speedup")
    columns: ClassVar[tuple[Column, ...]] = (Column(heading="p50 ms", metric="latency_p50_ms", form="{:.3f}"),)

    batch_size: int = Field(default=1, ge=1, le=65_536, description="samples in a call")
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads of the runtime")
    warmup: int = Field(default=20, ge=0, le=10_000, description="calls of each file before the measurement")
    repeats: int = Field(default=200, ge=LEAST_TURNS, le=1_000_000, description="turns that are measured")
    seconds: float = Field(default=1.0, gt=0, le=3600, description="no new turn begins after this time")

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Return `latency_p50_ms`, `latency_p95_ms`, and `speedup` if candidate and baseline are different files."""
        inputs = first_inputs(batches, self.batch_size)
        sessions = [subject.target.session(subject.path, threads=self.threads) for subject in (candidate, baseline)]
        for _ in range(self.warmup):
            for session in sessions:
                session.run(inputs)
        times = self._turns(sessions, inputs)
        ours = sorted(1e3 * turn[0] for turn in times)
        found = (
            metric("latency_p50_ms", ours, 0.5, "ms"),
            metric("latency_p95_ms", ours, 0.95, "ms"),
        )
        if candidate.path == baseline.path:
            return found
        return (*found, metric("speedup", sorted(theirs / own for own, theirs in times), 0.5, "ratio"))

    def _turns(self, sessions: list[Session], inputs: tuple[np.ndarray, ...]) -> list[list[float]]:
        """Seconds of one call of each session, turn by turn."""
        times: list[list[float]] = []
        end = time.perf_counter() + self.seconds
        while len(times) < self.repeats and (len(times) < LEAST_TURNS or time.perf_counter() < end):
            times.append([seconds(session, inputs) for session in sessions])
        return times


def seconds(session: Session, inputs: tuple[np.ndarray, ...]) -> float:
    """Measure the wall time of one call."""
    start = time.perf_counter()
    session.run(inputs)
    return time.perf_counter() - start


def first_inputs(batches: Batches, size: int) -> tuple[np.ndarray, ...]:
    """Return the first `size` test samples, each input `[size, ...]`; a smaller first batch is repeated.

    Raises:
        StageError: the test split is empty.
    """
    import numpy as np

    for batch in batches():
        rows = np.arange(size) % len(batch.ids)
        return tuple(np.ascontiguousarray(x.numpy()[rows]) for x in batch.inputs)
    raise StageError("evaluator 'latency' needs one test sample, but the test split is empty; give it samples")


def metric(name: str, ordered: list[float], share: float, unit: str) -> Metric:
    """Make a metric of the quantile `share` of sorted values, with its 95 % interval between order statistics."""
    count = len(ordered)
    half = Z95 * math.sqrt(count * share * (1 - share))
    low, high = math.floor(count * share - half) - 1, math.ceil(count * share + half)
    return Metric(
        name=name,
        value=quantile(ordered, share),
        unit=unit,
        direction="lower" if unit == "ms" else "higher",
        low=ordered[low] if low >= 0 else None,
        high=ordered[high] if high < count else None,
        samples=count,
    )


def quantile(ordered: list[float], share: float) -> float:
    """Interpolate linearly between the two nearest of sorted values."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
