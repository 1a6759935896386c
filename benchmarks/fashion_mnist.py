"""Quality on Fashion-MNIST: float, post-training, QAT, and QAT with the teacher teaching, over paired seeds.

Every figure is top-1 of the shipped file on the 10,000 test images in ONNX Runtime. All variants of a seed get the same
number of epochs in all, see the same crops in the same order and start from the same weights. One teacher, of seed 0,
teaches all seeds.

```
pip install ./benchmarks/workloads
python benchmarks/fashion_mnist.py --folder DIR --home DIR > benchmarks/fashion_mnist.md
```
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from machine import machine

from kdq_core.site import Site
from kdq_core.spec import Recipe
from kdq_flows import compress

T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}
"""97.5 % quantile of Student's t by degrees of freedom."""
PACKAGES = ("kdq", "torch", "onnxruntime")
SILENT: dict[str, Any] = {"use": "logit-kd", "options": {"alpha": 0.0}}
TAUGHT: dict[str, Any] = {"use": "logit-kd", "options": {"alpha": 0.9, "temperature": 4.0}}
LSQ, STATIC = {"use": "lsq"}, {"use": "static"}


def variants(asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Sections of the recipe of each variant; all get `epochs`, of which the QAT ones train `qat` quantized."""
    fit = {"batch_size": 128, "learning_rate": 3e-3, "weight_decay": 5e-3}
    whole, part = {"epochs": asked.epochs, **fit}, {"epochs": asked.epochs - asked.qat, **fit}
    tuned = {"epochs": asked.qat, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 5e-3}
    low4, low2 = {"weights": 4, "activations": 4}, {"weights": 2, "activations": 2}
    made: dict[str, dict[str, Any]] = {}
    for who, distiller in (("no teacher", SILENT), ("taught", TAUGHT)):
        made[f"W8A8 static, {who}"] = {"distill": {**distiller, "fit": whole}, "quantize": STATIC}
        for bits, section in (("W8A8", {}), ("W4A4", low4), ("W2A2", low2)):
            quantize = {**LSQ, **section, "fit": tuned}
            made[f"{bits} lsq, {who}"] = {"distill": {**distiller, "fit": part}, "quantize": quantize}
        few = {"distill": {**distiller, "fit": {**whole, "epochs": asked.few_epochs}}, "quantize": STATIC}
        made[f"600 labels, W8A8 static, {who}"] = {**few, "labelled": 600}
    return made


def recipe(asked: argparse.Namespace, seed: int, teacher: dict[str, Any], sections: dict[str, Any]) -> Recipe:
    """One run of the teacher section `teacher`; `sections` may say `labelled` for the workload."""
    rest = {name: section for name, section in sections.items() if name != "labelled"}
    options = {"folder": asked.folder} | {name: sections[name] for name in ("labelled",) if name in sections}
    return Recipe.model_validate({
        "name": "fashion-mnist",
        "seed": seed,
        "workload": {"use": "fashion-mnist", "options": options},
        "teacher": {**teacher, "cache": {"views": 6}},
        "evaluate": ["quality", "size", "coverage", "parity"],
        "gates": [],
        **rest,
    })  # fmt: skip


def nobody() -> dict[str, Any]:
    """Where no teacher teaches, a student stands in for it, so that none of 9 times the size is asked."""
    return {"members": [{"source": "student"}], "fit": {"epochs": 1, "batch_size": 128, "weight_decay": 5e-3}}


def teacher(asked: argparse.Namespace, site: Site) -> dict[str, Any]:
    """The one teacher, trained in a run of its own with seed 0, as a checkpoint for all seeds."""
    fit = {"epochs": asked.teacher_epochs, "batch_size": 128, "weight_decay": 5e-3}
    sections = {"distill": {**SILENT, "fit": {"epochs": 1}}, "quantize": STATIC}
    result = compress(recipe(asked, 0, {"fit": fit}, sections), site, server=False)
    key = next(stage.key for stage in result.stages if stage.name == "train_teacher")
    (weights,) = (site.home / "store" / key[:2] / key).glob("*.safetensors")
    return {"members": [{"source": "checkpoint", "file": str(weights)}]}


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean over seeds, in points."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} ± {half:.2f}"


def main() -> None:
    """Run what is not in the store yet, and print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, help="where the four files of the data set are")
    parser.add_argument("--home", required=True, help="KDQ_HOME; what is there already is not computed again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16, help="of a student, in all")
    parser.add_argument("--qat", type=int, default=12, help="of these, quantized")
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--few-epochs", type=int, default=12, help="of a student with 600 labels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="variants whose name this regular expression is found in")
    asked = parser.parse_args()
    site = Site(home=Path(asked.home), threads=asked.threads)
    chosen = {name: s for name, s in variants(asked).items() if re.search(asked.only, name)}
    taught = teacher(asked, site) if any(name.endswith(", taught") for name in chosen) else {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in range(asked.seeds):
        for name, sections in chosen.items():
            began = time.monotonic()
            who = taught if name.endswith(", taught") else nobody()
            result = compress(recipe(asked, seed, who, sections), site, server=False)
            found[name].append(result.models)
            top1 = {role: round(m["top1"], 4) for role, m in result.models.items()}
            print(f"seed {seed}, {name}: {top1} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(page(asked, found))


def page(asked: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> str:
    """The result as Markdown."""
    control = found.get("W8A8 static, no teacher")
    floats = [100 * models["student"]["top1"] for models in control] if control else []
    rows = []
    for name, runs in found.items():
        top1 = [100 * models["int8"]["top1"] for models in runs]
        against = interval([a - b for a, b in zip(top1, floats, strict=True)]) if floats else ""
        flips = ", ".join(f"{models['int8']['parity_flips']:.0f}" for models in runs)
        lsb = max(models["int8"]["parity_p99_lsb"] for models in runs)
        ratio = statistics.mean(models["student"]["bytes"] / models["int8"]["bytes"] for models in runs)
        each = ", ".join(f"{value:.2f}" for value in top1)
        rows.append(f"| {name} | {statistics.mean(top1):.2f} | {each} | {against} | {flips} | {lsb:g} | {ratio:.2f} |")
    taught = next((runs for name, runs in found.items() if name.endswith(", taught")), [])
    teachers = ", ".join(f"{100 * models['teacher']['top1']:.2f}" for models in taught) or "not run"
    lines = [
        "# Quality on Fashion-MNIST",
        "",
        "Written by `python benchmarks/fashion_mnist.py --folder DIR --home DIR`. First 12,000 training images.",
        f"Student: ResNet-8 of 78 thousand parameters, {asked.epochs} epochs in all, of these {asked.qat} quantized",
        f"(`static`: none). Teacher: ResNet-14 of 0.7 million, {asked.teacher_epochs} epochs, top-1 % {teachers}.",
        "Top-1 of the file on the 10,000 test images; flips against the simulation, without exact ties; size ratio:",
        "the float student's file over it.",
        "",
        "| variant | top-1 % | each seed | against float, points | flips | p99 LSB | size ratio |",
        "|---|---:|---|---:|---|---:|---:|",
        *rows,
        "",
        f"Float student, same epochs, no teacher: {', '.join(f'{value:.2f}' for value in floats) or 'not run'} %.",
        "Intervals: 95 %, Student's t over paired seeds.",
        "",
        machine(PACKAGES),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
