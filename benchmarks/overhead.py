"""Measure what KDQ costs: beside a plain PyTorch script, when nothing is new, and when 1,000 branches are planned.

KDQ and `overhead_plain.py` train the same nets on the same data for the same number of steps with the same number of
threads, keep the teacher's logits and save both nets. Both are whole processes, from start to end. They share the
machine in slices of two seconds: while one runs, all processes of the other are stopped. So a machine that is now
faster, now slower is so for both. Each turn gives the ratio of the seconds for which each of them ran. The epochs are
chosen so that the plain script works for `--minutes`. KDQ's clocks go on while it is stopped, so what it does every few
seconds counts about twice. `overhead.json` keeps the turns: a second start makes those that are missing.

```
python benchmarks/overhead.py [--minutes 5] [--turns 3] [--threads 2] [--output benchmarks/overhead.md]
```
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import overhead_plain
import psutil
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
workload: {{use: arrays, options: {{file: "{data}", model: "{code}:{size}_student", teacher: "{code}:{size}_teacher"}}}}
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
SLICE = 2.0
SIZES = {"middle": 1.0, "small": 0.2}
"""Nets, and the share of the minutes for each."""
STEPS = 64
"""Steps in an epoch."""
T_95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % point of Student's t by degrees of freedom."""


def environment(home: Path, threads: int) -> dict[str, str]:
    """Variables of both: the same threads, and the same brief waiting of OpenMP's threads."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KDQ_", "MLFLOW_", "PREFECT_"))}
    same = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "5000"}
    return kept | same | {"KDQ_HOME": str(home), "KDQ_THREADS": str(threads)}


def timed(words: list[str], home: Path, threads: int) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole process, and the JSON object that is its output, or the last line of it."""
    began = time.perf_counter()
    done = subprocess.run(words, cwd=home.parent, env=environment(home, threads), capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{words} failed: {done.stderr[-4000:]}")
    return took, json.loads(done.stdout if done.stdout[1:2] == "\n" else done.stdout.splitlines()[-1])


def in_slices(commands: list[list[str]], home: Path, threads: int) -> list[tuple[float, dict[str, Any]]]:
    """Run the commands in slices; for each, how long it ran, and the JSON object in the last line of its output."""
    files = [home.parent / f"output-{number}" for number in range(len(commands))]
    running: dict[int, psutil.Popen] = {}
    used = [0.0] * len(commands)
    try:
        while len(running) < len(commands) or any(one.returncode is None for one in running.values()):
            for number, words in enumerate(commands):
                began = time.perf_counter()
                if number in running:
                    if running[number].returncode is not None:
                        continue
                    send(running[number], signal.SIGCONT)
                else:
                    running[number] = begun(words, home, threads, files[number])
                with contextlib.suppress(psutil.TimeoutExpired):
                    running[number].wait(SLICE)
                used[number] += time.perf_counter() - began
                send(running[number], signal.SIGSTOP)
    finally:
        for one in running.values():
            send(one, signal.SIGKILL)
    for number, one in running.items():
        if one.returncode:
            raise SystemExit(f"{commands[number]} failed: {files[number].with_suffix('.errors').read_text()[-4000:]}")
    return [(used[n], json.loads(files[n].read_text().splitlines()[-1])) for n in range(len(commands))]


def begun(words: list[str], home: Path, threads: int, output: Path) -> psutil.Popen:
    """Start a command; what it writes goes to a file."""
    with output.open("w") as out, output.with_suffix(".errors").open("w") as errors:
        return psutil.Popen(words, cwd=home.parent, env=environment(home, threads), stdout=out, stderr=errors)


def send(process: psutil.Popen, number: signal.Signals) -> None:
    """Send a signal to a process and all below it, until none is new."""
    told: set[int] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        while new := [one for one in (process, *process.children(recursive=True)) if one.pid not in told]:
            for one in new:
                told.add(one.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(number)


def plain(folder: Path, size: str, epochs: tuple[int, int]) -> list[str]:
    """The command of the plain script."""
    out = folder / f"plain-{time.monotonic_ns()}"
    out.mkdir()
    return [sys.executable, str(PLAIN), str(folder / f"{size}.npz"), *map(str, epochs), str(out), size]


def kdq(folder: Path, size: str, epochs: tuple[int, int], seed: int) -> list[str]:
    """The command of KDQ; another seed computes all stages anew in the one home."""
    file, data = folder / f"{size}.yaml", folder / f"{size}.npz"
    words = {"seed": seed, "data": data, "code": PLAIN, "size": size, "teacher": epochs[0], "student": epochs[1]}
    file.write_text(RECIPE.format(**words))
    return [str(KDQ), "run", str(file), "--no-server", "--json"]


def top1(weights: str, data: Path, size: str) -> float:
    """Accuracy of KDQ's student on the test split, measured as the plain script does."""
    from safetensors.torch import load_file

    model = overhead_plain.NETS[size][1]()
    model.load_state_dict(load_file(weights))
    return overhead_plain.accuracy(model, overhead_plain.read(str(data)))


def epochs_for(minutes: float, folder: Path, size: str, threads: int) -> tuple[int, int]:
    """How many epochs of teacher and student the plain script takes so long for."""
    _, found = timed(plain(folder, size, (2, 2 * STUDENT_SHARE)), folder / "home", threads)
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
    home, alone = folder / "home", kdq(folder, "small", (1, STUDENT_SHARE), 0)
    overhead_plain.write_data(folder / "small.npz", "small")
    found = {"kdq run --no-server, again": repeated(alone, home, threads)}
    served = [word for word in alone if word != "--no-server"]
    try:
        found["kdq run, again, its server up"] = repeated(served, home, threads)
    finally:
        subprocess.run([KDQ, "down"], env=environment(home, threads), stdout=subprocess.DEVNULL, check=False)
    matrix = folder / "matrix.yaml"
    matrix.write_text((ROOT / "recipes" / "digits.yaml").read_text() + MATRIX.format(seeds=list(range(100))))
    found["kdq plan, 1,000 branches"] = repeated([str(KDQ), "plan", str(matrix), "--json"], folder / "empty", threads)
    return found


def page(turns: list[dict[str, Any]], times: dict[str, list[float]], threads: int) -> str:
    """Format the result as Markdown."""
    said, rows = [], []
    for size in dict.fromkeys(one["size"] for one in turns):
        own = [one for one in turns if one["size"] == size]
        mean, low, high = interval([one["kdq"] / one["plain"] for one in own])
        more = statistics.fmean(one["kdq"] - one["plain"] for one in own)
        teacher, student = own[0]["step_ms"]
        said.append(
            f"- {size} nets, steps of {teacher:.0f} and {student:.0f} ms: KDQ takes {mean:.3f} times as long as the "
            f"plain script (95 % interval {low:.3f} to {high:.3f}), {more:.1f} s more."
        )
        rows += [
            f"| {size} | {number} | {' + '.join(map(str, one['epochs']))} | {one['plain']:.1f} | {one['kdq']:.1f} "
            f"| {one['kdq'] / one['plain']:.3f} | {one['plain_top1']:.3f} | {one['kdq_top1']:.3f} |"
            for number, one in enumerate(own, 1)
        ]
    quick_rows = [f"| `{name}` | {statistics.median(each):.2f} | {each[0]:.2f} | {each[-1]:.2f} |"
                  for name, each in times.items()]  # fmt: skip
    return "\n".join((
        "# What KDQ costs",
        "",
        "Written by `python benchmarks/overhead.py`. The targets: at most 1.02 times the plain script on at least 5",
        "minutes of work; a run without news in 5 s; 1,000 branches planned in 5 s.",
        "",
        *said,
        "",
        "| nets | turn | epochs | plain s | KDQ s | ratio | plain student's top-1 | KDQ's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "| command | median s | least | most |",
        "|---|---:|---:|---:|",
        *quick_rows,
        "",
        machine(PACKAGES),
        "",
        f"Both train a teacher and a student with {threads} threads, channels last, in epochs of 64 steps, look at",
        "the validation split after each epoch, and save both models. Times are of whole processes, which share the",
        "machine in slices of two seconds: while one runs, all processes of the other are stopped, and their time does",
        "not count. KDQ's home and its MLflow database are there from a short run before. KDQ also checks the recipe",
        "and every stage, keeps the state of fits to resume from, hashes files, tells MLflow every epoch and writes a",
        "page; the plain script does none of this. The stages from `quantize` on are left out, because a plain script",
        "has nothing like them. The order of samples and the first weights differ, so the accuracies do too. The quick",
        "commands run alone.",
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
        print(f"{busy():.2f} cores are busy with other processes", file=sys.stderr)
        kept = asked.output.with_suffix(".json")
        turns = known(kept, asked.threads)
        for size, share in SIZES.items():
            done = sum(one["size"] == size for one in turns)
            if done >= asked.turns:
                continue
            overhead_plain.write_data(folder / f"{size}.npz", size)
            epochs = epochs_for(share * asked.minutes, folder, size, asked.threads)
            timed(kdq(folder, size, (1, STUDENT_SHARE), 0), folder / "home", asked.threads)  # makes the home
            for number in range(done, asked.turns):
                turns.append(both(folder, size, epochs, asked.threads, number + 1))
                print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
                facts = {"machine": machine(PACKAGES), "threads": asked.threads, "turns": turns}
                kept.write_text(json.dumps(facts, indent=1) + "\n")
        asked.output.write_text(page(turns, quick(folder, asked.threads), asked.threads) + "\n")


def known(kept: Path, threads: int) -> list[dict[str, Any]]:
    """The turns that an earlier start made on this machine with the same versions and threads."""
    facts = json.loads(kept.read_text()) if kept.exists() else {}
    alike = (facts.get("machine"), facts.get("threads")) == (machine(PACKAGES), threads)
    return list(facts["turns"]) if alike else []


def both(folder: Path, size: str, epochs: tuple[int, int], threads: int, seed: int) -> dict[str, Any]:
    """Run both, and give their seconds and accuracies; they change their order from turn to turn."""
    commands = {"plain": plain(folder, size, epochs), "kdq": kdq(folder, size, epochs, seed)}
    names = list(commands) if seed % 2 else list(reversed(commands))
    ran = dict(zip(names, in_slices([commands[name] for name in names], folder / "home", threads), strict=True))
    (seconds, found), parts = ran["plain"], ("teacher_seconds", "student_seconds")
    spent = sum(found[part] for part in parts)  # with the slices of the other
    return {
        "size": size, "epochs": epochs, "plain": seconds, "kdq": ran["kdq"][0], "plain_top1": found["top1"],
        "kdq_top1": top1(ran["kdq"][1]["weights"]["student"], folder / f"{size}.npz", size),
        "step_ms": [seconds * found[part] / spent / number / STEPS * 1e3
                    for part, number in zip(parts, epochs, strict=True)],
    }  # fmt: skip


if __name__ == "__main__":
    main()
