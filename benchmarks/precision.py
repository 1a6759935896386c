"""Compare fits in bf16 with fits in fp32: quality of teacher and student over paired seeds, and the time of a step.

Both runs of a seed start from the same weights and see the same batches. In one, `KDQ_PRECISION` is fp32, in the other
bf16; each student learns from the teacher of its own run. The figure is the top-1 of the float weights on the test
split, in fp32. On a CPU without bf16, oneDNN emulates it: the numbers are those of bf16, the time is not.

KDQ does not repeat what is in the store already, so a second start continues where the first one stopped.

```
pip install ./examples
export KDQ_DATA_DIR=DIR # where the files of the data sets are; without it KDQ fetches those of Fashion-MNIST
python benchmarks/precision.py --home DIR > benchmarks/precision.md
python benchmarks/precision.py --home DIR --only digits # a short form
```
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from machine import machine
from safetensors.torch import load_file
from torch import nn

from kdq_core.intervals import mean_of
from kdq_core.plan.cpu import instruction_sets
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Workload
from kdq_core.recipe.site import Site
from kdq_core.recipe.spec import Recipe
from kdq_core.training.half import in_bf16
from kdq_core.training.layout import channels_last
from kdq_core.training.losses import hard_loss
from kdq_flows import compress

Precision = Literal["fp32", "bf16"]
PACKAGES = ("kdq", "torch", "accelerate")
SGD = {"batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"workload": {"use": "digits"}},
    "fashion-mnist": {
        "workload": {
            "use": "fashion-mnist", "options": {"train_images": 12_000, "teacher_width": 8, "student_width": 8},
        },
        "teacher": {"fit": {**SGD, "epochs": 5}, "cache": {"views": 1}},
        "distill": {"fit": {**SGD, "epochs": 5}},
    },
}  # fmt: skip
"""Sections of each recipe; what is not there is the default."""
SLOTS = ("teacher", "student")
ROUNDS, STEPS = 12, 3
MOST = 0.2
"""The loss in points that the interval must exclude for bf16 to become a default."""
ABOUT = """\
# Fits in bf16 and in fp32

Written by `python benchmarks/precision.py`. Top-1 in % of the float weights on the test split, computed in fp32; means
over the seeds. The difference, bf16 minus fp32 in points, is paired over the seeds, with its 95 % interval by Student's
t. Step: CPU time of a training step in bf16 over one in fp32, taken in turns on one thread, with the 95 % interval of
the mean; below 1, bf16 is faster.

{data}"""
DATA = {
    "digits": "Digits: the default recipe, 300 test images, so an image is a third of a point.",
    "fashion-mnist": "Fashion-MNIST: the first 12,000 training images, 10,000 test images, a ResNet-14 and a ResNet-8, "
    "both 8 channels wide, five epochs each by SGD.",
}


def recipe(name: str, seed: int) -> Recipe:
    """The recipe of one data set and seed, up to the float student."""
    stages = ["train_teacher", "cache_teacher", "distill"]
    fields = {"name": f"precision-{name}", "seed": seed, "stages": stages, "gates": [], **SETTINGS[name]}
    return Recipe.model_validate(fields)


def built(name: str) -> Workload:
    """The workload of one data set."""
    spec = SETTINGS[name]["workload"]
    workload = Catalog.load().build("workload", spec["use"], spec.get("options", {}))
    assert isinstance(workload, Workload)
    return workload


def top1(model: nn.Module, workload: Workload) -> float:
    """Top-1 on the test split, in %."""
    hits = seen = 0
    with torch.inference_mode():
        for batch in workload.batches("test", batch_size=256):
            hits += int((model.eval()(*batch.inputs).argmax(1) == batch.targets).sum())
            seen += len(batch.ids)
    return 100 * hits / seen


def trained(name: str, seed: int, precision: Precision, asked: argparse.Namespace) -> dict[str, float]:
    """Train teacher and student, or read them from the store, and give the top-1 of both."""
    site = Site(home=Path(asked.home), threads=asked.threads, precision=precision)
    result, workload = compress(recipe(name, seed), site, server=False), built(name)
    found = {}
    for slot in SLOTS:
        model: nn.Module = getattr(workload, slot)()
        model.load_state_dict(load_file(result.weights[slot]))
        found[slot] = top1(model, workload)
    return found


def ratios(name: str, slot: str) -> list[float]:
    """CPU time of a step in bf16 over that of one in fp32, a value for each round."""
    workload = built(name)
    size = recipe(name, 0).distill.fit.batch_size
    batch = next(iter(workload.batches("train", batch_size=size)))
    loss, device = hard_loss(workload), torch.device("cpu")
    taken: dict[bool, list[float]] = {False: [], True: []}
    models = {half: getattr(workload, slot)().train() for half in taken}
    for model in models.values():
        channels_last(model, batch.inputs)
    for turn in range(ROUNDS + 1):
        for half in (False, True) if turn % 2 else (True, False):
            model = models[half]
            optimizer, began = torch.optim.SGD(model.parameters(), lr=0.01), time.thread_time()
            for _ in range(STEPS):
                optimizer.zero_grad()
                with in_bf16(model, device, half=half):
                    terms = loss(model, batch)
                terms["hard"].backward()
                optimizer.step()
            taken[half].append(time.thread_time() - began)
    return [half / full for half, full in zip(taken[True][1:], taken[False][1:], strict=True)]  # the first warms up


def row(name: str, slot: str, found: dict[Precision, list[dict[str, float]]]) -> tuple[str, bool]:
    """One row of the table, and whether its interval excludes a loss of more than `MOST` points."""
    full, half = ([one[slot] for one in found[precision]] for precision in ("fp32", "bf16"))
    apart = [b - a for a, b in zip(full, half, strict=True)]
    mean, low, high = mean_of(apart)
    step, least, most = mean_of(ratios(name, slot))
    each = ", ".join(f"{value:+.2f}" for value in apart)
    cells = [
        f"{name}, {slot}", str(len(apart)), f"{sum(full) / len(full):.2f}", f"{sum(half) / len(half):.2f}", each,
        f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", f"{step:.2f} ({least:.2f} to {most:.2f})",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |", low >= -MOST


def main() -> None:
    """Train what is not in the store yet, and print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True, help="KDQ_HOME; what is there already is not computed again")
    parser.add_argument("--only", choices=sorted(SETTINGS), help="one data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows, verdicts = [], []
    names = [asked.only] if asked.only else list(SETTINGS)
    for name in names:
        found: dict[Precision, list[dict[str, float]]] = {"fp32": [], "bf16": []}
        for seed in asked.seeds:
            for precision, runs in found.items():
                runs.append(trained(name, seed, precision, asked))
                print(f"{name}, seed {seed}, {precision}: {runs[-1]}", file=sys.stderr, flush=True)
        for slot in SLOTS:
            text, fine = row(name, slot, found)
            rows.append(text)
            verdicts.append(fine)
    says = "exclude" if all(verdicts) else "do not exclude"
    flags = ", ".join(f for f in ("amx_bf16", "avx512_bf16") if f in instruction_sets()) or "no bf16"
    head = "| data, net | seeds | fp32 % | bf16 % | difference of each seed | mean | step |"
    about = ABOUT.format(data="\n".join(DATA[name] for name in names))
    print(about, "\n".join([head, "|---|---:|---:|---:|---|---:|---:|", *rows]),
          f"The intervals {says} a loss of more than {MOST} points.",
          f"{machine(PACKAGES)[:-1]}; the CPU has {flags}.", sep="\n\n")  # fmt: skip


if __name__ == "__main__":
    main()
