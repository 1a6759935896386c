"""Measure what the store costs: a plan with many entries, reading a large entry again, checking weights at a commit.

One process measures everything, and the compared things take turns. Ratios depend less on the machine than milliseconds
do.

```
python benchmarks/store.py > benchmarks/store.md
```
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from safetensors.torch import save_file

from kdq_core.plan.plan import COMPARED, Plan, forecast, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.checks import check_weights
from kdq_core.store.hashing import sha256_file, sha256_of
from kdq_core.store.records import Checkpoint, EpochRecord
from kdq_core.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
KDQ = str(Path(sys.executable).with_name("kdq"))
TURNS = 11
SIZES = (0, 10, 100, 1000)
MEBIBYTES = 512
CURVES = ("train/loss", "validation/loss", "validation/top1")
RECORD = Checkpoint(
    role="student",
    weights="weights.safetensors",
    parameters=1,
    history=tuple(EpochRecord(epoch=e, values=dict.fromkeys(CURVES, 1 / e)) for e in range(1, 31)),
)
PACKAGES = ("kdq", "pydantic", "safetensors", "torch")


def filled(root: Path, plan: Plan, entries: int) -> Store:
    """Make a store with entries of all stages of `plan`, but none with a key of the plan."""
    store = Store(root)
    for number in range(entries):
        node = plan.nodes[number % len(plan.nodes)]
        parents = dict.fromkeys(node.parents, sha256_of(str(number).encode()))
        parts = node.full_parts(parents) | {"seed": number + 1, "data": str(number)}
        key = sha256_of(f"{node.name}/{number}".encode())
        with store.draft(key) as draft:
            (draft / "weights").write_bytes(b"weights")
            store.commit(draft, stage=node.name, key=key, parts=parts, record=RECORD)
    return store


def median(turns: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """Return median, least and most milliseconds of each thing."""
    return {name: (statistics.median(ms), min(ms), max(ms)) for name, ms in turns.items()}


def measured(things: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, tuple[float, float, float]]:
    """Time each thing in milliseconds; the first turn fills caches and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(turns + 1):
        for name, thing in things.items():
            began = time.perf_counter()
            thing()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - began))
    return median(times)


def plans(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Time the `forecast` of a plan in which every stage is missing, with stores of growing size."""
    plan = make_plan(Recipe(name="digits", workload="digits"), Site(home=folder), Catalog.load())
    stores = {f"{size:,}": filled(folder / str(size) / "store", plan, size) for size in SIZES}
    return measured({name: lambda store=store: list(forecast(plan, store)) for name, store in stores.items()})  # type: ignore[misc]


def commands(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Time `kdq plan` with the stores that `plans` has filled, from start to end of the process."""

    def command(size: int) -> object:
        home = {**os.environ, "KDQ_HOME": str(folder / str(size))}
        return subprocess.run([KDQ, "plan", "recipes/digits.yaml"], cwd=ROOT, env=home, stdout=-3, check=True)

    return measured({f"{size:,}": lambda size=size: command(size) for size in (10, 1000)}, turns=7)  # type: ignore[misc]


def large(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Time what a commit and a reader do to an entry with one large file of weights."""
    store, key = Store(folder), "ab" + "0" * 62
    with store.draft(key) as draft:
        save_file({"weight": torch.randn(MEBIBYTES << 18)}, draft / RECORD.weights)
        entry = store.commit(draft, stage="distill", key=key, parts={}, record=RECORD)
    time.sleep(3)  # each reader hashes a file that was written a moment ago

    def first() -> None:
        for mark in folder.glob("verified/*"):
            mark.unlink()
        store.get(key)

    return measured(
        {
            "sha256 of the file": lambda: sha256_file(entry.file(RECORD.weights)),
            "commit: check that it is finite": lambda: check_weights(entry.folder, [RECORD.weights], "distill"),
            "first reader": first,
            "next reader, within an hour": lambda: store.get(key),
        },
        turns=5,
    )


def table(rows: dict[str, tuple[float, float, float]], head: str, unit: str) -> list[str]:
    """Format a Markdown table with the ratio of medians to the row `unit`."""
    lines = [f"| {head} | median ms | least | most | ratio |", "|---|---:|---:|---:|---:|"]
    for name, (middle, least, most) in rows.items():
        lines.append(f"| {name} | {middle:.1f} | {least:.1f} | {most:.1f} | {middle / rows[unit][0]:.2f} |")
    return lines


def main() -> None:
    """Measure, and print the page."""
    with tempfile.TemporaryDirectory() as folder:
        planned, asked = plans(Path(folder)), commands(Path(folder))
        read = large(Path(folder) / "large")
    print(
        "\n".join(
            (
                "# The store",
                "",
                "Written by `python benchmarks/store.py > benchmarks/store.md`.",
                "",
                "## A plan beside many entries",
                "",
                "The forecast of `kdq plan` for the chain of the demo recipe, all of whose stages are missing: each",
                f"miss is explained by the most alike of the {COMPARED} newest entries of its stage. The target is",
                "that `kdq plan` takes as long beside 1,000 entries as beside ten.",
                "",
                *table(planned, "forecast, entries in the store", "10"),
                "",
                *table(asked, "`kdq plan`, entries in the store", "10"),
                "",
                f"## An entry with {MEBIBYTES} MiB of float32 weights",
                "",
                "The file is in the page cache. Ratios are to hashing it once.",
                "",
                *table(read, "what", "sha256 of the file"),
                "",
                machine(PACKAGES),
            )
        )
    )


if __name__ == "__main__":
    main()
