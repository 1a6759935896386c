"""Measure what a model with many versions costs: promote, roll to and fetch one of 10,000, beyond MLflow's own start.

```
python benchmarks/registry.py > benchmarks/registry.md
```
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import busy, machine
from onnx import TensorProto, helper, numpy_helper, save

from kdq_core.recipe.spec import Gate, Recipe, Site
from kdq_core.store.records import Artifact, EvaluationReport, Metric, TensorSpec
from kdq_registry.environment import client
from kdq_registry.fetching import fetch
from kdq_registry.promotion import promote
from kdq_registry.registering import register

VERSIONS = 10_000
PACKAGES = ("kdq", "mlflow", "onnxruntime", "sqlalchemy")
RECIPE = Recipe(name="digits", workload="digits", gates=(Gate(metric="top1", at_least=0.5),))
REPORT = EvaluationReport(models={"int8": (Metric(name="top1", value=0.9, unit="fraction", direction="higher"),)})
ARTIFACT = Artifact(
    path="int8.onnx",
    baselines={},
    example="example.safetensors",
    inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, 4)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 3)),),
    output_scales=(None,),
    weight_bits_used=8,
)


def model(path: Path, seed: int) -> Path:
    """Write a linear model."""
    weight = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "weight"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def registered(site: Site, folder: Path, seed: int) -> int:
    """Register the model of a seed; gives its number."""
    return register(
        site,
        recipe=RECIPE,
        artifact_file=model(folder / f"{seed}.onnx", seed),
        artifact=ARTIFACT,
        report=REPORT,
        lineage={"data": "b" * 64},
        run_id=None,
        example={"image": np.ones((2, 4), np.float32)},
    ).version


def fill(database: Path, versions: int) -> None:
    """Copy version 1, tags included, to the numbers up to `versions`, with other digests."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, number in (("model_versions", "version"), ("model_version_tags", "version")):
            rows = connection.execute(f"select * from {table} where {number} = 1")
            names, found = [column[0] for column in rows.description], rows.fetchall()
            marks = ", ".join("?" * len(names))
            for made in range(2, versions + 1):
                for row in found:
                    values = dict(zip(names, row, strict=True)) | {number: made}
                    if values.get("key") == "kdq.sha256":
                        values["value"] = f"{made:064x}"
                    connection.execute(f"insert into {table} values ({marks})", list(values.values()))


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print the page."""
    others = busy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = Site(home=folder / "home")
        start = seconds(lambda: client(site))
        first = registered(site, folder, 0)
        few = {
            "promote, 1 version": seconds(lambda: promote(site, "digits", first)),
            "fetch, 1 version": seconds(lambda: fetch(site, "digits@champion")),
        }
        fill(folder / "home" / "mlflow" / "mlflow.db", VERSIONS - 1)
        rows = few | {f"register version {VERSIONS:,}": seconds(lambda: registered(site, folder, 1))}
        rows[f"promote version {VERSIONS:,}"] = seconds(lambda: promote(site, "digits", VERSIONS))
        rows[f"fetch the champion of {VERSIONS:,}"] = seconds(lambda: fetch(site, "digits@champion"))
        rows["promote version 1 again"] = seconds(lambda: promote(site, "digits", first))
        rows["fetch it from this home again"] = seconds(lambda: fetch(site, "digits/1"))
    print("# The registry with 10,000 versions\n")
    print(machine(PACKAGES))
    print(f"Other processes kept {others:.1f} cores busy when the measurement began.\n")
    print(f"One process, one model, SQLite. Importing MLflow and making its database took {start:.1f} s before.")
    print("Promoting includes fetching the version afresh, checking it, and running it in a process of its own.\n")
    print("| | seconds |\n|---|---|")
    for what, took in rows.items():
        print(f"| {what} | {took:.2f} |")


if __name__ == "__main__":
    main()
