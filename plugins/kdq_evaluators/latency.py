"""Evaluator `latency`: how long a call of the shipped file takes, and its speed-up over the float student's file.

What: median, 95th and 99th percentile of the wall time of a call, samples in a second at several batch sizes, and the
    speed-up over the float student's file, which is measured beside it.
Formula: speedup = median time of the float student's file / median time of this file. KDQ measures in rounds. In each
    round it opens both files anew, warms them up until their times are steady, and lets them take turns in random
    order. The interval is 95 %, by sectioning: it comes from how much the rounds differ.
Source: sectioning: Asmussen and Glynn 2007, "Stochastic Simulation", III.5a; Nakayama 2014, "Confidence intervals for
    quantiles using sectioning", https://doi.org/10.1145/2558328. It needs neither independent calls nor a distribution.
    Random order and new sessions: Georges et al. 2007, "Statistically rigorous Java performance evaluation",
    https://doi.org/10.1145/1297027.1297033.
Defaults and where they come from: one sample and one thread, as on a small device. Ten rounds, because the place of a
    session in memory makes one file a few per cent faster or slower; half a second a batch size finds a difference of
    10 % also between busy processes (`benchmarks/latency_honesty.md`).
Costs: about `seconds` for each batch size, and `rounds` times the opening of the file, for each model. Even if a call
    takes long, KDQ makes at least three in each round.
Limits: times depend on this machine and its load; compare within a report, not between reports. Of two files, `speedup`
    compares better than their times, because KDQ measures them beside each other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from kdq_core.api import (
    Batches,
    Column,
    Estimate,
    Evaluator,
    Field,
    Metric,
    StageError,
    Subject,
    Times,
    measure_times,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

QUANTILES = {"latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
BatchSize = Annotated[int, Field(ge=1, le=65_536)]


class Latency(Evaluator):
    """Wall time of a call, throughput, and the speed-up over the float student."""

    metrics: ClassVar[tuple[str, ...]] = (*QUANTILES, "throughput", "speedup")
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="speed-up", metric="speedup", form="{:.2f}", interval=True),
    )

    batch_size: BatchSize | None = Field(
        default=None, description="samples in a call; null: the target's `batch_size`, or 1 if it has none"
    )
    further_batches: tuple[BatchSize, ...] = Field(
        default=(8, 32), description="further sizes of a call, for throughput and speed-up"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads of the runtime")
    rounds: int = Field(default=10, ge=2, le=1000, description="how often KDQ opens the files anew")
    seconds: float = Field(default=0.5, gt=0, le=3600, description="time of all calls with one batch size")

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Return times, throughput, and `speedup` if candidate and baseline are different files.

        Throughput and speed-up of a further batch size have that size behind a slash: `throughput/32`.
        """
        subjects = (candidate,) if candidate.path == baseline.path else (candidate, baseline)
        first: int = getattr(candidate.target, "batch_size", 1) if self.batch_size is None else self.batch_size
        sizes = tuple(dict.fromkeys((first, *self.further_batches)))
        found = measure_times(
            [partial(one.target.session, one.path, threads=self.threads) for one in subjects],
            [inputs_of(batches, size) for size in sizes],
            seconds=self.seconds,
            threads=self.threads,
            rounds=self.rounds,
        )
        times = dict(zip(sizes, found, strict=True))
        return (*_times_of(times[first][0]), *_by_size("throughput", times), *_speedups(times))


def _speedups(times: Mapping[int, tuple[Times, ...]]) -> tuple[Metric, ...]:
    found = _by_size("speedup", {size: measured for size, measured in times.items() if len(measured) == 2})
    return (found[0].model_copy(update={"note": _note(*found)}), *found[1:]) if found else ()


def _by_size(name: str, times: Mapping[int, tuple[Times, ...]]) -> tuple[Metric, ...]:
    """The throughput or the speed-up at each batch size; that of the first has the plain name."""
    made: list[Metric] = []
    for size, (own, *others) in times.items():
        estimate = others[0].ratio_to(own) if name == "speedup" else own.throughput()
        title = f"{name}/{size}" if made else name
        made.append(_metric(title, estimate, "ratio" if name == "speedup" else "samples/s", own, "higher"))
    return tuple(made)


def inputs_of(batches: Batches, size: int) -> tuple[np.ndarray, ...]:
    """Return the first `size` test samples, each input `[size, ...]`; a smaller first batch is repeated.

    Raises:
        StageError: the test split is empty.
    """
    import numpy as np

    for batch in batches():
        rows = np.arange(size) % len(batch.ids)
        return tuple(np.ascontiguousarray(x.numpy()[rows]) for x in batch.inputs)
    raise StageError("evaluator 'latency' needs one test sample, but the test split is empty; give it samples")


def _times_of(times: Times) -> tuple[Metric, ...]:
    found = {name: times.quantile(share) for name, share in QUANTILES.items()}
    in_ms = {name: Estimate(1e3 * one.value, 1e3 * one.low, 1e3 * one.high) for name, one in found.items()}
    return tuple(_metric(name, estimate, "ms", times, "lower") for name, estimate in in_ms.items())


def _metric(name: str, estimate: Estimate, unit: str, times: Times, direction: str) -> Metric:
    return Metric.model_validate({
        "name": name, "unit": unit, "direction": direction, "samples": times.calls,
        "value": estimate.value, "low": estimate.low, "high": estimate.high,
    })  # fmt: skip


def _note(speedup: Metric, *further: Metric) -> str:
    """Tell what a file gains that is not shown to be faster; empty if it is."""
    if speedup.low is None or speedup.high is None or speedup.low > 1:
        return ""
    said = "slower than" if speedup.high < 1 else "no difference shown from"
    others = [f"{one.value:.2f} at batch {one.name.partition('/')[2]}" for one in further]
    return "; ".join((f"{said} the float student's file ({speedup.low:.2f} to {speedup.high:.2f})", *others))
