"""Measure the start-up time of commands that run no stage.

Each command is started 11 times. The commands take turns, so that a change in the machine's load affects all of them.
A bare `python -c pass` of the same interpreter is the unit of the ratio.

```
python benchmarks/startup.py > benchmarks/startup.md
```
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
KDQ = Path(sys.executable).with_name("kdq")
TURNS = 11
UNIT = "python -c pass"
COMMANDS: dict[str, list[str]] = {
    UNIT: [sys.executable, "-c", "pass"],
    "kdq --help": [str(KDQ), "--help"],
    "kdq validate recipes/digits.yaml": [str(KDQ), "validate", "recipes/digits.yaml"],
    "kdq plugins list --json": [str(KDQ), "plugins", "list", "--json"],
}
PACKAGES = ("kdq", "typer", "pydantic", "pluggy")


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Measure the wall time from start to end of one process."""
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def measure() -> dict[str, list[float]]:
    """Return the sorted seconds of each command; a first turn fills the file cache and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "KDQ_HOME": home}
        for turn in range(TURNS + 1):
            for name, command in COMMANDS.items():
                took = seconds(command, environment)
                if turn:
                    times[name].append(took)
    return {name: sorted(values) for name, values in times.items()}


def page(times: dict[str, list[float]]) -> str:
    """Format the result as Markdown."""
    unit = statistics.median(times[UNIT])
    rows = [
        f"| `{name}` | {1e3 * statistics.median(values):.0f} | {1e3 * values[0]:.0f} | {1e3 * values[-1]:.0f} "
        f"| {statistics.median(values) / unit:.1f} |"
        for name, values in times.items()
    ]
    return "\n".join(
        (
            "# Start-up times",
            "",
            "Written by `python benchmarks/startup.py > benchmarks/startup.md`. The target is under 500 ms a command.",
            "",
            "| command | median ms | least ms | most ms | times `python -c pass` |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            machine(PACKAGES),
            "",
            f"Wall time from start to end of the process, without output, in {TURNS} runs of each command; the",
            "commands take turns. A first turn, not counted, compiles bytecode and fills the file cache. The ratio is",
            "between medians; it depends less on the machine than milliseconds do.",
        )
    )


if __name__ == "__main__":
    print(page(measure()))
