"""Evaluator `cost`: what a model costs to ship, to load and to run.

What: bytes of the compressed file (`bytes_compressed`); bits of a stored parameter (`bits_per_parameter`), and how many
    parameters have 32, 16, 8 and fewer bits; multiply-accumulates of one sample by kernel (`macs_int8`, `macs_float`);
    time to load the file in a fresh process (`load_ms`), the memory that loading and one call add to that process
    (`memory_added_bytes`) and its peak (`memory_peak_bytes`); energy of one call (`energy_mj`).
Formula: multiply-accumulates of an int8 file are those of the runtime's own graph; of a float file, half of the
    operations that torch counts in the model it was written from. Memory added is the peak after loading and one call
    minus what the process had after it loaded an empty model. Energy is the counter of the CPU package over repeated
    calls, with all else that runs there, divided by their number.
Source: torch.utils.flop_counter. Peak memory: VmHWM in Linux's /proc. Energy: RAPL, powercap in Linux. The interval
    (at least 95 %) of the median of six processes or more is between the smallest and the largest, which holds for any
    distribution: Conover 1999, "Practical Nonparametric Statistics", 3.2.
Defaults and where they come from: gzip, since every system has it. Six processes are the fewest with a 95 % interval.
Costs: about a second for each process. It is in no recipe by default.
Limits: ONNX files only; memory and energy on Linux only. Where a counter cannot be read, as RAPL without the rights of
    root, its metric is left out. Operations of a teacher that is an ONNX file are not counted.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdq_core.api import Batches, Column, Evaluator, Field, Metric, StageError, Subject
from kdq_evaluators.size import read

if TYPE_CHECKING:
    import numpy as np

RAPL = Path("/sys/class/powercap")
LEAST = 6


class Cost(Evaluator):
    """Compressed bytes, parameters by bits, operations by kernel, loading, memory and energy."""

    metrics: ClassVar[tuple[str, ...]] = (
        "bytes_compressed", "bits_per_parameter", "parameters_32bit", "parameters_16bit", "parameters_8bit",
        "parameters_under_8bit", "macs_int8", "macs_float", "load_ms", "memory_added_bytes", "memory_peak_bytes",
        "energy_mj",
    )  # fmt: skip
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="compressed", metric="bytes_compressed", form="{:,.0f}"),
        Column(heading="memory added", metric="memory_added_bytes", form="{:,.0f}"),
        Column(heading="load ms", metric="load_ms", form="{:.1f}"),
    )

    compression: Literal["gzip", "zstd"] = Field(
        default="gzip", description="gzip at level 9, or zstd at level 19, which needs `pip install zstandard`"
    )
    processes: int = Field(default=LEAST, ge=1, le=1000, description="fresh processes that load the file")
    energy_seconds: float = Field(default=2.0, gt=0, le=600, description="how long calls repeat for their energy")

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:  # noqa: ARG002
        """Exact counts, and medians over processes.

        Raises:
            StageError: the file is no ONNX file, a process failed, or a package is missing.
        """
        import numpy as np

        first = next(iter(batches()), None)
        if first is None:
            raise StageError("the evaluators need the workload's test split, which is empty; give it samples")
        inputs = tuple(np.ascontiguousarray(x.numpy()[:1]) for x in first.inputs)
        return (
            exactly("bytes_compressed", compressed(candidate.path, self.compression), "bytes", "lower"),
            *parameters(candidate.path),
            *operations(candidate, inputs),
            *self._fresh(candidate, inputs),
            *energy(candidate, inputs, self.energy_seconds),
        )

    def _fresh(self, subject: Subject, inputs: tuple[np.ndarray, ...]) -> tuple[Metric, ...]:
        import numpy as np

        from kdq_evaluators.fresh import Asked

        target = type(subject.target)
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "inputs.npz", *inputs)
            asked = Asked(
                f"{target.__module__}:{target.__qualname__}", subject.target.model_dump(mode="json"),
                str(subject.path.resolve()), subject.threads, str(Path(folder) / "inputs.npz"),
            )  # fmt: skip
            found = [called(asked, subject) for _ in range(self.processes)]
        units = {"load_ms": "ms", "memory_added_bytes": "bytes", "memory_peak_bytes": "bytes"}
        return tuple(
            median(name, [one[name] for one in found], unit) for name, unit in units.items() if name in found[0]
        )


def exactly(name: str, value: float, unit: str, direction: Literal["higher", "lower", "neither"] = "neither") -> Metric:
    """A metric of an exact figure, without an interval."""
    return Metric(name=name, value=value, unit=unit, direction=direction)


def median(name: str, values: list[float], unit: str) -> Metric:
    """The median over processes; with six or more, between the smallest and the largest."""
    ends = (min(values), max(values)) if len(values) >= LEAST else (None, None)
    return Metric(
        name=name, value=statistics.median(values), unit=unit, direction="lower", low=ends[0], high=ends[1],
        samples=len(values),
    )  # fmt: skip


def compressed(path: Path, how: str) -> int:
    """Bytes of the file, compressed; with its external data.

    Raises:
        StageError: the package is missing.
    """
    raw = b"".join(one.read_bytes() for one in files_of(path))
    if how == "gzip":
        return len(gzip.compress(raw, 9, mtime=0))
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise StageError(
            "evaluator 'cost' was asked for zstd, which is not installed: `pip install zstandard`, or leave "
            "'compression' out"
        ) from error
    return len(zstandard.ZstdCompressor(level=19).compress(raw))


def files_of(path: Path) -> list[Path]:
    """An ONNX file and the files with its external data."""
    import onnx

    from kdq_evaluators.size import constants

    model = onnx.load(path, load_external_data=False)
    entries = (entry for _, tensor in constants(model.graph) for entry in tensor.external_data)
    names = {entry.value for entry in entries if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(names))]


def parameters(path: Path) -> tuple[Metric, ...]:
    """Stored parameters by bits, and bits of one on average."""
    by_bits = read(path).by_bits
    count = sum(by_bits.values())
    groups = {
        "32bit": sum(n for bits, n in by_bits.items() if bits > 16),
        "16bit": sum(n for bits, n in by_bits.items() if 8 < bits <= 16),
        "8bit": sum(n for bits, n in by_bits.items() if 7.5 < bits <= 8),
        "under_8bit": sum(n for bits, n in by_bits.items() if bits <= 7.5),
    }
    mean = (exactly("bits_per_parameter", sum(b * n for b, n in by_bits.items()) / count, "bits", "lower"),)
    found = tuple(exactly(f"parameters_{name}", number, "count") for name, number in groups.items())
    return (mean if count else ()) + found


def operations(subject: Subject, inputs: tuple[np.ndarray, ...]) -> tuple[Metric, ...]:
    """Multiply-accumulates of one sample, by kernel."""
    if subject.operators:
        counts = {True: 0, False: 0}
        for one in subject.operators:
            counts[one.int8] += one.macs + one.activation_macs
    elif subject.simulation is not None:
        counts = {True: 0, False: counted(subject.simulation, inputs)}
    else:
        return ()
    return (
        exactly("macs_int8", counts[True], "macs"),
        exactly("macs_float", counts[False], "macs", "lower"),
    )


def counted(model: Any, inputs: tuple[np.ndarray, ...]) -> int:
    """Half of the floating-point operations of one call on one sample, as torch counts them.

    oneDNN is off meanwhile: its LSTM is one operator, which torch does not count.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    before = torch.backends.mkldnn.set_flags(_enabled=False)[0]  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*(torch.from_numpy(x) for x in inputs))
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops()) // 2


def called(asked: Any, subject: Subject) -> dict[str, float]:
    """Load and call the file in a new process.

    Raises:
        StageError: the process failed.
    """
    paths = os.pathsep.join(one for one in sys.path if one)
    done = subprocess.run(
        [sys.executable, "-m", "kdq_evaluators.fresh", json.dumps(asked._asdict())],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise StageError(
            f"evaluator 'cost' loads {subject.path.name!r} in a fresh process, which ended with code "
            f"{done.returncode}: {last.strip()}; run the file by itself, or leave 'cost' out of 'evaluate'"
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def energy(subject: Subject, inputs: tuple[np.ndarray, ...], seconds: float) -> tuple[Metric, ...]:
    """Millijoules of one call; nothing where no counter can be read."""
    before = joules()
    if before is None:
        return ()
    session = subject.target.session(subject.path, threads=subject.threads)
    session.run(inputs)
    before, calls, end = joules() or {}, 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        session.run(inputs)
        calls += 1
    after = joules() or {}
    if any(after.get(name, -math.inf) < start for name, start in before.items()):
        return ()  # a counter began anew at zero meanwhile
    used = sum(after[name] - start for name, start in before.items())
    return (Metric(name="energy_mj", value=1e3 * used / max(1, calls), unit="mJ", direction="lower", samples=calls),)


def joules() -> dict[str, float] | None:
    """Counters of the CPU packages in joules, or `None` where none can be read."""
    found = {}
    for path in sorted(RAPL.glob("intel-rapl:?")):
        try:
            found[path.name] = int((path / "energy_uj").read_text()) / 1e6
        except OSError:
            return None
    return found or None
