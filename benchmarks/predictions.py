"""Measure what the evaluator `quality` takes for many predictions: time and memory, each in a process of its own.

The predictions are memory-mapped, as in the store. Two models answer; the labels are classes.

```
python benchmarks/predictions.py > benchmarks/predictions.md
```
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from machine import machine

PACKAGES = ("kdq", "numpy", "torch", "torchmetrics", "scipy")
CASES = ((100_000, 10), (1_000_000, 10), (10_000_000, 10), (50_000, 1000))
PART = 100_000


def write(folder: Path, samples: int, classes: int) -> None:
    """Write labels, and logits of two models that differ a little."""
    random = np.random.default_rng(0)
    files = {name: (folder / name).open("wb") for name in ("labels", "student", "int8")}
    for start in range(0, samples, PART):
        count = min(PART, samples - start)
        labels = random.integers(0, classes, count)
        logits = random.standard_normal((count, classes), np.float32)
        logits[np.arange(count), labels] += 2
        files["labels"].write(labels.tobytes())
        files["student"].write(logits.tobytes())
        files["int8"].write((np.round(logits * 16) / 16).astype(np.float32).tobytes())
    for file in files.values():
        file.close()


def measure(folder: Path, samples: int, classes: int) -> None:
    """Evaluate, and print seconds and the peak of the memory, both beyond those of a small evaluation."""
    import torch

    from kdq_core.api import Batch, Subject
    from kdq_evaluators.quality import Quality

    def subject(role: str, count: int) -> Subject:
        shape = (count, classes)
        kept = np.memmap(folder / role, np.float32, "r", shape=shape)
        target: Any = SimpleNamespace(signature=lambda _: ((), (SimpleNamespace(name="logits"),)))
        return Subject(role, folder / role, target, 1, kept=lambda *_: (kept,))

    def run(count: int) -> None:
        labels = torch.from_numpy(np.fromfile(folder / "labels", np.int64, count))

        def batches() -> Iterator[Batch]:
            for ids in torch.arange(count).split(256):
                yield Batch((), labels[ids], ids)

        student = subject("student", count)
        Quality().evaluate(subject("int8", count), student, batches)

    run(1000)
    began = time.perf_counter()
    run(samples)
    seconds = time.perf_counter() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "mebibytes": int(peak.split()[1]) / 1024}))


def main() -> None:
    """Measure each case, and print the page."""
    lines = ["| samples | classes | seconds | microseconds a sample | peak of the process, MiB |"]
    lines.append("|---:|---:|---:|---:|---:|")
    for samples, classes in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), samples, classes)
            asked = [sys.executable, __file__, folder, str(samples), str(classes)]
            found = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, check=True).stdout)
        each = 1e6 * found["seconds"] / samples
        lines.append(f"| {samples:,} | {classes:,} | {found['seconds']:.1f} | {each:.2f} | {found['mebibytes']:,.0f} |")
    head = (
        "# Many predictions",
        "",
        "Written by `python benchmarks/predictions.py > benchmarks/predictions.md`.",
        "",
        "The evaluator `quality` on kept predictions of two models, with all its metrics, differences and intervals.",
        "The peak has the interpreter, torch and the memory-mapped files in it. The target is 10 million predictions",
        "within 2,000 MiB, in time that grows linearly.",
        "",
    )
    print("\n".join((*head, *lines, "", machine(PACKAGES))))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
