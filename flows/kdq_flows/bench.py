"""Compare the time of two ONNX files: what `kdq bench` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from kdq_core.errors import RecipeError, StageError
from kdq_core.frozen import Frozen
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Target
from kdq_core.timing.times import Estimate, Times
from kdq_core.timing.turns import ROUNDS, measure_times

if TYPE_CHECKING:
    from kdq_core.store.records import TensorSpec

CONFIDENCE = 0.99
"""Of the ratio: of 100 comparisons of a file with itself, one may find a difference."""


class Interval(Frozen):
    """A value with its interval."""

    value: float
    low: float
    high: float


class FileTimes(Frozen):
    """The times of one file; intervals are 95 %."""

    file: str
    p50_ms: Interval
    p95_ms: Interval
    p99_ms: Interval
    throughput: Interval = Field(description="samples in a second")
    calls: int


class Ratio(Frozen):
    """Time of the first file / time of the second, with its 99 % interval, and what it says of the second."""

    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "no difference"] = Field(
        description="of the second file against the first; `no difference` if the interval holds 1"
    )


class AtBatch(Ratio):
    """The comparison at one batch size."""

    batch: int
    files: tuple[FileTimes, FileTimes]


class Bench(Ratio):
    """The comparison of two files; its ratio is that of the first batch size."""

    confidence: float = CONFIDENCE
    target: str
    threads: int
    batches: tuple[AtBatch, ...]


def bench(
    first: Path,
    second: Path,
    *,
    batches: Sequence[int] = (),
    threads: int = 1,
    seconds: float = 2.0,
    target: str = "onnxruntime-cpu",
    inputs: Path | None = None,
    seed: int = 0,
) -> Bench:
    """Measure two files beside each other.

    Args:
        first: the file to compare with.
        second: the file to judge.
        batches: numbers of samples in a call; by default 1, or what the files fix.
        threads: CPU threads of the runtime.
        seconds: about how long the calls take at each batch size.
        target: name of the runtime.
        inputs: an npz file with an array for each input, by name; random inputs without it.
        seed: decides the random inputs and the order of all calls.

    Raises:
        RecipeError: a file is missing or the runtime cannot load it, the files take different inputs, or a batch size
            or the given inputs do not fit them.
        StageError: a file does not compute its outputs.
    """
    from kdq_flows.bench_inputs import common_inputs, fitting_batches, made, read

    runtime = Catalog.load().build("target", target)
    assert isinstance(runtime, Target)
    specs = common_inputs(*((str(path), inputs_of(runtime, path, target)) for path in (first, second)))
    sizes = fitting_batches(specs, batches)
    arrays = [read(inputs, specs, size) if inputs else made(specs, size, seed) for size in sizes]
    found = measure_times(
        [partial(runtime.session, path, threads=threads) for path in (first, second)],
        arrays, seconds=seconds, threads=threads, rounds=ROUNDS, seed=seed,
    )  # fmt: skip
    at = tuple(_at(size, (str(first), str(second)), times) for size, times in zip(sizes, found, strict=True))
    return Bench(**at[0].model_dump(include=set(Ratio.model_fields)), target=target, threads=threads, batches=at)


def inputs_of(runtime: Target, path: Path, target: str) -> tuple[TensorSpec, ...]:
    """The inputs that a file describes.

    Raises:
        RecipeError: it is missing, or the runtime cannot load it.
    """
    if not path.is_file():
        raise RecipeError(f"no file {str(path)!r}; check the path")
    try:
        return runtime.signature(path)[0]
    except StageError as error:
        why = str(error).rpartition("; ")[0] or str(error)
        raise RecipeError(f"{why}; give an ONNX file that the target {target!r} can load") from None


def _at(batch: int, files: tuple[str, str], times: tuple[Times, ...]) -> AtBatch:
    one, other = times
    ratio = one.ratio_to(other, confidence=CONFIDENCE)
    return AtBatch(
        ratio=ratio.value, low=ratio.low, high=ratio.high, verdict=ratio.verdict, batch=batch,
        files=(_file(files[0], one), _file(files[1], other)),
    )  # fmt: skip


def _file(name: str, times: Times) -> FileTimes:
    p50, p95, p99 = (_interval(times.quantile(share), 1e3) for share in (0.5, 0.95, 0.99))
    return FileTimes(
        file=name, p50_ms=p50, p95_ms=p95, p99_ms=p99, throughput=_interval(times.throughput()), calls=times.calls
    )


def _interval(estimate: Estimate, scale: float = 1.0) -> Interval:
    return Interval(value=scale * estimate.value, low=scale * estimate.low, high=scale * estimate.high)
