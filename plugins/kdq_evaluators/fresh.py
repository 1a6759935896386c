"""Loads and calls a file in a process of its own, and prints time and memory; the evaluator `cost` starts it."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """What to load.

    Attributes:
        target: `module:class` of the target.
        options: its fields.
        path: the file.
        threads: CPU threads.
        inputs: NumPy archive with the inputs of one call, in order.
    """

    target: str
    options: dict[str, Any]
    path: str
    threads: int
    inputs: str


def main() -> None:
    """Load the file and call it once; the runtime is already there, since it has loaded an empty model."""
    import numpy as np

    asked = Asked(**json.loads(sys.argv[1]))
    module, _, name = asked.target.partition(":")
    target = getattr(importlib.import_module(module), name)(**asked.options)
    with np.load(asked.inputs) as archive:
        inputs = tuple(archive[key] for key in archive.files)
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.onnx"
        write_empty(empty)
        target.session(empty, threads=asked.threads).run((np.zeros((1, 1), np.float32),))
    before = memory("VmRSS")
    forget_peak()
    began = time.perf_counter()
    session = target.session(Path(asked.path), threads=asked.threads)
    loaded = time.perf_counter() - began
    session.run(inputs)
    peak, found = memory("VmHWM"), {"load_ms": 1e3 * loaded}
    if before is not None and peak is not None:
        found |= {"memory_added_bytes": max(0.0, peak - before), "memory_peak_bytes": peak}
    print(json.dumps(found))


def write_empty(path: Path) -> None:
    """Write a model that gives its input."""
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "empty", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def memory(what: str) -> float | None:
    """A line of /proc/self/status in bytes; `None` where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:")), None)


def forget_peak() -> None:
    """Let Linux measure the peak anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main()
