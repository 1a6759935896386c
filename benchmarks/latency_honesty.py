"""Try how honest `kdq bench` is: one file against itself, and against a file with 10 % more work.

Each try is one comparison with its own seed. KDQ should find no difference between a file and itself, on an idle
machine and beside two busy processes, and it should find two more layers behind twenty. The script keeps its tries in
`benchmarks/latency_honesty.json`. If you start it again, it makes the tries that are still missing. Each time it writes
`benchmarks/latency_honesty.md`:

```
python benchmarks/latency_honesty.py same busy planted --tries 100
```
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import busy, machine

RESULTS = Path(__file__).with_suffix(".json")
PACKAGES = ("kdq", "onnxruntime")
CONDITIONS = {
    "same": "a file against itself",
    "busy": "a file against itself, beside two busy processes",
    "planted": "a file against one with 10 % more work",
}
NETS = {"small": (64, 1), "middle": (128, 32)}
"""Width of the layers, and samples in a call."""
LAYERS, MORE = 20, 22
SECONDS = 0.5
BUSY = "import numpy as np; x = np.ones((512, 512), np.float32)\nwhile True: x @ x"


def write(path: Path, width: int, layers: int) -> Path:
    """Write an ONNX file of products with square matrices, each with a ReLU behind it."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(layers):
        matrix = random.normal(scale=(2 / width) ** 0.5, size=(width, width)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Keep processes busy meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(1 if count else 0)
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


def tries(condition: str, net: str, seeds: list[int], end: float) -> list[dict[str, Any]]:
    """Compare once for each seed, until the time is over."""
    from kdq_flows.bench import bench

    (width, batch), found = NETS[net], []
    with tempfile.TemporaryDirectory() as folder, beside(2 if condition == "busy" else 0):
        one = write(Path(folder) / "one.onnx", width, LAYERS)
        other = write(Path(folder) / "other.onnx", width, MORE) if condition == "planted" else one
        for seed in seeds:
            if time.monotonic() > end:
                break
            told = bench(one, other, batches=[batch], seconds=SECONDS, seed=seed)
            facts = {name: round(getattr(told, name), 5) for name in ("ratio", "low", "high")}
            times = {"ms": round(told.batches[0].files[0].p50_ms.value, 5)}
            found.append({"condition": condition, "net": net, "seed": seed, "verdict": told.verdict, **facts, **times})
    return found


def page(results: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [
        "# How honest `kdq bench` is",
        "",
        "Written by `python benchmarks/latency_honesty.py same busy planted --tries 100`.",
        "",
        f"Each try compares two files for {SECONDS:g} s with one thread. A file against itself has no difference; two "
        f"more layers behind {LAYERS} are 10 % more work. *Half width* is the median of half the width of the 99 % "
        "intervals. *Load*: cores that other processes kept busy before a part began; two busy processes of the script "
        "come on top. Small: layers of 64 units, one sample in a call. Middle: layers of 128 units, 32 samples.",
        "",
        "| comparison | net | ms a call | load | tries | no difference | slower | faster | median ratio | half width |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for condition, title in CONDITIONS.items():
        for net in NETS:
            rows = [row for row in results["tries"] if (row["condition"], row["net"]) == (condition, net)]
            if rows:
                verdicts = [row["verdict"] for row in rows]
                counts = (verdicts.count(one) for one in ("no difference", "slower", "faster"))
                half = statistics.median((row["high"] - row["low"]) / 2 for row in rows)
                load = results["load"][f"{condition} {net}"]
                middle = {name: statistics.median(row[name] for row in rows) for name in ("ms", "ratio")}
                lines.append(
                    f"| {title} | {net} | {middle['ms']:.3f} | {load:.1f} | {len(rows)} "
                    f"| {' | '.join(map(str, counts))} | {middle['ratio']:.3f} | {half:.3f} |"
                )
    lines += ["", results["machine"], ""]
    return "\n".join(lines)


def main() -> None:
    """Make the tries that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conditions", nargs="*", choices=[*CONDITIONS, []], default=[])
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no try after this time")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"load": {}, "tries": []}
    for condition in arguments.conditions or CONDITIONS:
        for net in arguments.nets:
            done = {row["seed"] for row in results["tries"] if (row["condition"], row["net"]) == (condition, net)}
            seeds = [seed for seed in range(arguments.tries) if seed not in done]
            if not seeds or time.monotonic() > end:
                continue
            name = f"{condition} {net}"
            results["load"][name] = max(results["load"].get(name, 0.0), round(busy(), 2))
            results["tries"] += tries(condition, net, seeds, end)
            results["machine"] = machine(PACKAGES)
            rows = ",\n".join(json.dumps(row) for row in results["tries"])
            rest = json.dumps({key: value for key, value in results.items() if key != "tries"})
            RESULTS.write_text(f'{rest[:-1]}, "tries": [\n{rows}\n]}}\n')
            RESULTS.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
