"""Measure what KDQ costs: beside a plain PyTorch script, when nothing is new, and when 1,000 branches are planned.

KDQ and `overhead_plain.py` train the same nets on the same data for the same number of steps with the same number of
threads, keep the teacher's logits and save both nets. Both are whole processes, from start to end. They take turns;
each turn gives the ratio of the two times. The epochs are chosen so that the plain script works for `--minutes`.

```
python benchmarks/overhead.py [--minutes 5] [--turns 3] [--threads 2] [--output benchmarks/overhead.md]
```
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import overhead_plain
from machine import busy, machine

KDQ = Path(sys.executable).with_name("kdq")
ROOT = Path(__file__).resolve().parents[1]
PLAIN = Path(overhead_plain.__file__)
PACKAGES = ("kdq", "torch", "onnxruntime", "prefect", "mlflow")
STUDENT_SHARE = 2
"""Epochs of the student for one of the teacher."""
RECIPE = """\
name: overhead
seed: {seed}
workload: {{use: arrays, options: {{file: "{data}", model: "{code}:student", teacher: "{code}:teacher"}}}}
stages: [train_teacher, cache_teacher, distill]
teacher: {{fit: {{epochs: {teacher}}}}}
distill: {{use: logit-kd, fit: {{epochs: {student}}}}}
"""
MATRIX = """
matrix:
  over:
    quantize.use: [minmax-qat, lsq]
    quantize.weights: [8, 6, 5, 4, 2]
    seed: {seeds}
select: {{minimise: [bytes], maximise: [top1]}}
limits: {{trials: 1000}}
"""
T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % point of Student's t by degrees of freedom."""


def environment(home: Path, threads: int) -> dict[str, str]:
    """Variables of both: the same threads, and the same brief waiting of OpenMP's threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KDQ_", "MLFLOW_", "PREFECT_"))}
    same = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "5000"}
    return kept | same | {"KDQ_HOME": str(home), "KDQ_THREADS": str(threads)}


def timed(words: list[str], home: Path, threads: int) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole process, and the JSON object in the last line of its output."""
    began = time.perf_counter()
    done = subprocess.run(words, cwd=home.parent, env=environment(home, threads), capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{words} failed: {done.stderr[-4000:]}")
    return took, json.loads(done.stdout.splitlines()[-1])


def plain(folder: Path, epochs: tuple[int, int], threads: int) -> tuple[float, dict[str, Any]]:
    out = folder / f"plain-{time.monotonic_ns()}"
    out.mkdir()
    words = [sys.executable, str(PLAIN), str(folder / "data.npz"), *map(str, epochs), str(out)]
    return timed(words, folder / "home", threads)


def kdq(folder: Path, epochs: tuple[int, int], threads: int, seed: int) -> tuple[float, dict[str, Any]]:
    """Run the recipe; another seed computes all stages anew in the one home."""
    file, data = folder / "overhead.yaml", folder / "data.npz"
    file.write_text(RECIPE.format(seed=seed, data=data, code=PLAIN, teacher=epochs[0], student=epochs[1]))
    return timed([str(KDQ), "run", str(file), "--no-server", "--json"], folder / "home", threads)


def top1(weights: str, data: Path) -> float:
    """Accuracy of KDQ's student on the test split, measured as the plain script does."""
    from safetensors.torch import load_file

    model = overhead_plain.student()
    model.load_state_dict(load_file(weights))
    return overhead_plain.accuracy(model, overhead_plain.read(str(data)))


def epochs_for(minutes: float, folder: Path, threads: int) -> tuple[int, int]:
    """How many epochs of teacher and student the plain script takes so long for."""
    _, found = plain(folder, (2, 2 * STUDENT_SHARE), threads)
    each = (found["teacher_seconds"] + found["student_seconds"]) / 2
    number = max(1, math.ceil(1.1 * minutes * 60 / each))
    return number, STUDENT_SHARE * number


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios, and its 95 % interval by Student's t; the ends of one ratio are not numbers."""
    logs = [math.log(one) for one in ratios]
    mean = statistics.fmean(logs)
    half = T_95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def repeated(words: list[str], home: Path, threads: int, turns: int = 5) -> list[float]:
    """Sorted seconds of a command that computes nothing; a first turn is not counted."""
    return sorted([timed(words, home, threads)[0] for _ in range(turns + 1)][1:])


def quick(folder: Path, threads: int) -> dict[str, list[float]]:
    """Seconds of runs that find everything in the store, and of planning 1,000 branches."""
    file, home = str(folder / "overhead.yaml"), folder / "home"
    found = {"kdq run --no-server, again": repeated([str(KDQ), "run", file, "--no-server", "--json"], home, threads)}
    served = [str(KDQ), "run", file, "--json"]
    try:
        found["kdq run, again, its server up"] = repeated(served, home, threads)
    finally:
        subprocess.run([KDQ, "down"], env=environment(home, threads), stdout=subprocess.DEVNULL, check=False)
    matrix = folder / "matrix.yaml"
    matrix.write_text((ROOT / "recipes" / "digits.yaml").read_text() + MATRIX.format(seeds=list(range(100))))
    found["kdq plan, 1,000 branches"] = repeated([str(KDQ), "plan", str(matrix), "--json"], folder / "empty", threads)
    return found


def page(turns: list[dict[str, Any]], epochs: tuple[int, int], times: dict[str, list[float]], threads: int) -> str:
    """Format the result as Markdown."""
    mean, low, high = interval([one["kdq"] / one["plain"] for one in turns])
    rows = [f"| {number} | {one['plain']:.1f} | {one['kdq']:.1f} | {one['kdq'] / one['plain']:.3f} "
            f"| {one['plain_top1']:.3f} | {one['kdq_top1']:.3f} |" for number, one in enumerate(turns, 1)]  # fmt: skip
    quick_rows = [f"| `{name}` | {statistics.median(each):.2f} | {each[0]:.2f} | {each[-1]:.2f} |"
                  for name, each in times.items()]  # fmt: skip
    return "\n".join((
        "# What KDQ costs",
        "",
        "Written by `python benchmarks/overhead.py`. The targets: at most 1.02 times the plain script on at least 5",
        "minutes of work; a run without news in 5 s; 1,000 branches planned in 5 s.",
        "",
        f"KDQ takes {mean:.3f} times as long as the plain script (95 % interval {low:.3f} to {high:.3f}).",
        "",
        "| turn | plain s | KDQ s | ratio | plain student's top-1 | KDQ's |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "| command | median s | least | most |",
        "|---|---:|---:|---:|",
        *quick_rows,
        "",
        machine(PACKAGES),
        "",
        f"Both train a teacher for {epochs[0]} epochs of 64 steps and a student for {epochs[1]} with {threads}",
        "threads, channels last, look at the validation split after each epoch, and save both models. Times are of",
        "whole processes. KDQ's home and its MLflow database are there from a short run before. The two take turns,",
        "and change their order from turn to turn. KDQ also checks the recipe and every stage, keeps the state of fits",
        "to resume from, hashes files, tells MLflow every epoch and writes a page; the plain script does none of this.",
        "The stages from `quantize` on are left out, because a plain script has nothing like them. The order of",
        "samples and the first weights differ, so the accuracies do too.",
    ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdq-overhead-") as name:
        folder = Path(name).resolve()
        overhead_plain.write_data(folder / "data.npz")
        print(f"{busy():.2f} cores are busy with other processes", file=sys.stderr)
        epochs = epochs_for(asked.minutes, folder, asked.threads)
        kdq(folder, (1, STUDENT_SHARE), asked.threads, seed=0)  # makes the home
        turns = []
        for turn in range(asked.turns):
            both: dict[str, Any] = {}
            for who in ("plain", "kdq") if turn % 2 == 0 else ("kdq", "plain"):
                if who == "plain":
                    both["plain"], found = plain(folder, epochs, asked.threads)
                    both["plain_top1"] = found["top1"]
                else:
                    both["kdq"], found = kdq(folder, epochs, asked.threads, turn + 1)
                    both["kdq_top1"] = top1(found["weights"]["student"], folder / "data.npz")
                    both["stages"] = {stage["name"]: stage["seconds"] for stage in found["stages"]}
            turns.append(both)
            print(json.dumps(both), file=sys.stderr, flush=True)
        asked.output.write_text(page(turns, epochs, quick(folder, asked.threads), asked.threads) + "\n")


if __name__ == "__main__":
    main()
