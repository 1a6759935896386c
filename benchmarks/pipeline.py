"""Measure how long the demo recipe takes, and how long its second run takes.

Each turn has a home of its own, and starts the servers before the measurement. The first run of the recipe computes
everything, the second nothing.

```
python benchmarks/pipeline.py > benchmarks/pipeline.md
```
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
KDQ = str(Path(sys.executable).with_name("kdq"))
RECIPE = "recipes/digits.yaml"
TURNS = 3
PACKAGES = ("kdq", "torch", "onnxruntime", "prefect", "mlflow")


def run(home: str) -> tuple[float, dict[str, Any]]:
    """Run `kdq run`; return its wall seconds, from start to end of the process, and its facts."""
    began = time.perf_counter()
    done = subprocess.run(
        [KDQ, "run", RECIPE, "--json"], cwd=ROOT, env={**os.environ, "KDQ_HOME": home}, stdout=-1, stderr=-3, check=True
    )
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])


def turn() -> tuple[float, float, dict[str, Any], dict[str, Any]]:
    """Run the recipe twice in a new home; return the seconds and facts of both runs."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "KDQ_HOME": home}
        subprocess.run([KDQ, "up"], cwd=ROOT, env=environment, stdout=-3, check=True)
        time.sleep(15)  # MLflow's page is still starting when `kdq up` returns
        try:
            (first, facts), (second, again) = run(home), run(home)
        finally:
            subprocess.run([KDQ, "down"], cwd=ROOT, env=environment, stdout=-3, check=True)
    return first, second, facts, again


def page(turns: list[tuple[float, float, dict[str, Any], dict[str, Any]]]) -> str:
    """Format the result as Markdown."""
    assert all(facts["status"] == "completed" and again["status"] == "no-news" for _, _, facts, again in turns)
    digests = {facts["artifact"]["sha256"] for _, _, facts, _ in turns}
    rows = [f"| first run, everything computed | {_spread([t[0] for t in turns])} |"]
    for index, stage in enumerate(turns[0][2]["stages"]):
        rows.append(f"| - {stage['name']} | {_spread([t[2]['stages'][index]['seconds'] for t in turns])} |")
    rows.append(f"| second run, everything cached | {_spread([t[1] for t in turns])} |")
    models = turns[0][2]["models"]
    table = [
        f"| {row['model']} | {row['top-1']} | {row['bytes']} | {row['speed-up']} |" for row in turns[0][2]["table"]
    ]
    return "\n".join(
        (
            "# The demo recipe",
            "",
            "Written by `python benchmarks/pipeline.py > benchmarks/pipeline.md`. The targets: the first run takes",
            "under 60 s and the second under 6 s, with the servers up; different homes give byte-identical files.",
            "",
            "| `kdq run recipes/digits.yaml` | median s | least | most |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"Different int8 files from {len(turns)} homes: {len(digests)}.",
            "",
            "| model | top-1 | bytes | speed-up over the float student, one sample, one thread |",
            "|---|---:|---:|---:|",
            *table,
            "",
            f"Size of the float student's file over the int8 file: "
            f"{models['student']['bytes'] / models['int8']['bytes']:.2f}.",
            "",
            machine(PACKAGES),
            "",
            f"Wall time from start to end of the process, in {len(turns)} turns. Each turn has a new home, whose",
            "servers were up before. The figures of the models come from the first turn; the interval of top-1 on 300",
            "images is about 2 points.",
        )
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f}"


if __name__ == "__main__":
    print(page([turn() for _ in range(TURNS)]))
