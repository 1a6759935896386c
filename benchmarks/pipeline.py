"""Measure how long the demo recipe takes, how long its second run takes, and `kdq models`, with their parts.

Each turn has a home of its own, and starts the servers before the measurement. The first run of the recipe computes
everything, the second nothing. `kdq models` then lists the version that the first run registered.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
KDQ = str(Path(sys.executable).with_name("kdq"))
RECIPE = "recipes/digits.yaml"
TURNS = 3
IMPORTS = {
    "Prefect's flows and client": "import prefect, prefect.flows, prefect.task_runners",
    "MLflow's client": "from mlflow import MlflowClient",
    "MLflow's client and database": "from mlflow import MlflowClient; "
    "from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore",
}
"""What the commands import, each measured in a Python process of its own."""
PACKAGES = ("kdq", "torch", "onnxruntime", "prefect", "mlflow")


def run(home: str) -> tuple[float, dict[str, Any]]:
    """Run `kdq run`; return its wall seconds, from start to end of the process, and its facts."""
    began = time.perf_counter()
    done = subprocess.run(
        [KDQ, "run", RECIPE, "--json"], cwd=ROOT, env={**os.environ, "KDQ_HOME": home}, stdout=-1, stderr=-3, check=True
    )
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Turn:
    """Wall seconds of a first and a second run and of `kdq models`, the facts of both runs, and seconds of imports."""

    first: float
    second: float
    models: float
    facts: dict[str, Any]
    again: dict[str, Any]
    imports: dict[str, float]


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Measure the wall time of a command from start to end of its process."""
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=-3, stderr=-3, check=True)
    return time.perf_counter() - began


def turn() -> Turn:
    """Run the recipe twice in a new home, list the models, and import the libraries."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "KDQ_HOME": home}
        subprocess.run([KDQ, "up"], cwd=ROOT, env=environment, stdout=-3, check=True)
        time.sleep(15)  # MLflow's page is still starting when `kdq up` returns
        try:
            (first, facts), (second, again) = run(home), run(home)
            models = seconds_of([KDQ, "models"], environment)
            imports = {name: seconds_of([sys.executable, "-c", code], environment) for name, code in IMPORTS.items()}
        finally:
            subprocess.run([KDQ, "down"], cwd=ROOT, env=environment, stdout=-3, check=True)
    return Turn(first, second, models, facts, again, imports)


def page(turns: list[Turn]) -> str:
    """Format the result as Markdown."""
    assert all(t.facts["status"] == "completed" and t.again["status"] == "no-news" for t in turns)
    digests = {t.facts["artifact"]["sha256"] for t in turns}
    rows = [f"| first run, everything computed | {_spread([t.first for t in turns])} |"]
    rows.append(f"| - before and after the run | {_spread([t.first - t.facts['seconds'] for t in turns])} |")
    for index, stage in enumerate(turns[0].facts["stages"]):
        rows.append(f"| - {stage['name']} | {_spread([t.facts['stages'][index]['seconds'] for t in turns])} |")
    rows.append(f"| second run, everything cached | {_spread([t.second for t in turns])} |")
    rows.append(f"| - before and after the run | {_spread([t.second - t.again['seconds'] for t in turns])} |")
    rows.append(f"| - the run, with Prefect | {_spread([t.again['seconds'] for t in turns])} |")
    rows.append(f"| `kdq models` | {_spread([t.models for t in turns])} |")
    rows += [f"| import of {name} | {_spread([t.imports[name] for t in turns])} |" for name in IMPORTS]
    models = turns[0].facts["models"]
    table = [
        f"| {row['model']} | {row['top-1']} | {row['bytes']} | {row['speed-up']} |" for row in turns[0].facts["table"]
    ]
    return "\n".join(
        (
            "# The demo recipe",
            "",
            "Written by `python benchmarks/pipeline.py > benchmarks/pipeline.md`. The targets, with the servers up:",
            "the first run takes at most 30 s, the second 2.5 s, `kdq models` 3 s; different homes give byte-identical",
            "files.",
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
            "servers were up before. A run begins when KDQ has read the recipe and planned it; `place` and",
            "`train_teacher` begin at once, and the second waits for the first. The figures of the models come from",
            "the first turn; the interval of top-1 on 300 images is about 2 points.",
        )
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f}"


if __name__ == "__main__":
    print(page([turn() for _ in range(TURNS)]))
