"""Measure what a teacher costs while a student trains: the teacher runs beside it, or KDQ reads its kept outputs.

Each section measures, adds its rows to `benchmarks/distillation.json` and writes `benchmarks/distillation.md` anew:

```
pip install ./examples
python benchmarks/distillation.py step cache memory
```
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import busy, machine
from quantization import interleaved, interval, report
from torch import Tensor, nn
from torch.nn import functional as F

from kdq_core.distillation.combining import DistillationLoss
from kdq_core.distillation.parts import Part
from kdq_core.recipe.teacher import CacheSpec
from kdq_core.store.records import TeacherOutputs
from kdq_core.store.store import Store
from kdq_core.teachers.build import build_outputs
from kdq_core.teachers.source import CachedTeacher, OnlineTeacher
from kdq_core.tensors import Batch, Outputs
from kdq_core.training.layout import channels_last
from kdq_distillers.logit_kd import LogitKd
from kdq_examples.nets import resnet
from kdq_examples.text_nets import BagOfWords, TextTransformer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "distillation.json"
SECTIONS = ("step", "cache", "memory")
PACKAGES = ("kdq", "torch")
SAMPLES, VIEWS = 4096, 2
WORDS, CLASSES, LENGTH = 2000, 150, 24
A, B = "a" * 64, "b" * 64


def images(count: int) -> Tensor:
    """Inputs of the image nets, `[N, 1, 28, 28]`."""
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def sentences(count: int) -> Tensor:
    """Inputs of the text nets, `[N, 24]`."""
    return torch.randint(1, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "ResNet-14 to ResNet-8": (lambda: resnet(32, blocks=2), lambda: resnet(16, blocks=1), images),
    "transformer of 2 layers to 1": (
        lambda: TextTransformer(WORDS, CLASSES, 128, 2, LENGTH),
        lambda: TextTransformer(WORDS, CLASSES, 64, 1, LENGTH),
        sentences,
    ),
    "transformer to bag of words": (
        lambda: TextTransformer(WORDS, CLASSES, 128, 2, LENGTH), lambda: BagOfWords(WORDS, CLASSES, 64), sentences,
    ),
}  # fmt: skip


class Hard:
    """The part of a workload that the distillation loss needs."""

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        assert batch.targets is not None
        return F.cross_entropy(outputs.logits, batch.targets)


def batches(x: Tensor, size: int) -> Iterator[Batch]:
    """Yield the samples in order."""
    for ids in torch.arange(len(x)).split(size):
        yield Batch((x[ids],), torch.zeros(len(ids), dtype=torch.long), ids)


def kept(teacher: nn.Module, x: Tensor, folder: Path, form: str = "fp16") -> tuple[CachedTeacher, float, int]:
    """Cache a teacher's outputs; return the cache, the seconds it took and its bytes."""
    spec = CacheSpec(views=VIEWS, form=form)  # type: ignore[arg-type]
    began = time.perf_counter()
    build = build_outputs(OnlineTeacher(teacher), lambda _view: batches(x, 256), spec, samples=len(x), folder=folder)
    seconds = time.perf_counter() - began
    record = TeacherOutputs(
        teacher=A, data=B, seed=0, views=VIEWS, samples=len(x), classes=build.classes, tensors=build.tensors
    )
    store, key = Store(folder / "store"), "0" * 64
    with store.draft(key) as draft:
        for tensor in build.tensors:
            (build.folder / tensor.path).rename(draft / tensor.path)
        entry = store.commit(draft, stage="cache_teacher", key=key, parts={}, record=record)
    size = sum(entry.file(tensor.path).stat().st_size for tensor in build.tensors)
    return CachedTeacher(entry, teacher=A, data=B), seconds, size


def stepper(student: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Any]) -> Callable[[], None]:
    """Make a function that runs one training step."""
    channels_last(student, batch.inputs)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(sum(loss(student, batch).values()))
        optimizer.step()

    return run


def step(rounds: int) -> list[dict[str, Any]]:
    """Compare steps with the teacher beside the student, and with its kept outputs, to a step without a teacher."""
    rows = []
    for name, (make_teacher, make_student, inputs) in CASES.items():
        torch.manual_seed(0)
        teacher, x = make_teacher().eval(), inputs(SAMPLES)
        batch = next(batches(x, 128))
        alone = stepper(make_student(), batch, lambda m, b: {"hard": F.cross_entropy(m(*b.inputs), b.targets)})
        with tempfile.TemporaryDirectory() as folder:
            cached, _, _ = kept(teacher, x, Path(folder))
            beside = {"beside": OnlineTeacher(teacher), "beside, bf16": OnlineTeacher(teacher, half=True)}
            for how, source in {**beside, "kept": cached}.items():
                loss = DistillationLoss(Hard(), (Part("kd", LogitKd()),), source)  # type: ignore[arg-type]
                asked = interleaved(partial(source, batch), alone, rounds)["one"]
                taught = interleaved(stepper(make_student(), batch, loss), alone, rounds)
                bound = 1 + asked / taught["other"] if how in beside else 1.05
                rows.append({"case": name, "how": how, "asked": asked, **taught, "bound": bound})
                report(rows[-1])
    return rows


def cache(rounds: int) -> list[dict[str, Any]]:  # noqa: ARG001
    """Measure seconds and bytes of keeping a teacher's outputs."""
    rows = []
    for name, (make_teacher, _, inputs) in list(CASES.items())[:2]:
        for form in ("fp16", "fp32"):
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                _, seconds, size = kept(make_teacher().eval(), inputs(SAMPLES), Path(folder), form)
            rows.append({"case": name, "form": form, "seconds": seconds, "bytes": size})
            report(rows[-1])
    return rows


MEMORY = """
import sys, tempfile, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from distillation import batches, kept
def rss():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(sys.argv[3]))
net = torch.nn.Linear(4, 1000)
x = torch.zeros(int(sys.argv[1]), 4)
with tempfile.TemporaryDirectory() as folder:
    kept(net, x[:256], Path(folder) / 'first')
    before = rss()
    source, _, size = kept(net, x, Path(folder) / 'all')
    for batch in batches(x, 128):
        source(batch)
    print(rss() - before, size // 1000)
"""


def memory(rounds: int) -> list[dict[str, Any]]:  # noqa: ARG001
    """Measure how much making and reading a cache raises peak resident memory, in a process of its own."""
    rows = []
    for samples in (10_000, 40_000, 160_000):
        words = [sys.executable, "-c", MEMORY, str(samples), str(HERE), "VmHWM"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        grown, size = map(int, done.stdout.split())
        rows.append({"samples": samples, "cache_kb": size, "grown_kb": grown})
        report(rows[-1])
    return rows


HEADS = {
    "step": (
        "Training step",
        "Milliseconds of a step (forward, backward, SGD) at batch 128 with 2 threads, channels last for models with "
        "convolutions. The teacher runs beside the student in fp32 or in bf16, or the student reads its kept logits; "
        "the ratio is over the step without a teacher, measured in turns. *Asked* is the time of the teacher's "
        "forward pass, or of reading its kept logits; the rest of the added time is the loss. The bound is 1 + asked "
        "/ the step without for a teacher beside, and 1.05 for kept logits. A student whose step takes a millisecond "
        "misses that bound because of the loss alone. bf16 pays on GPUs and on CPUs with AMX; this CPU has "
        "AVX512-BF16 and no AMX.",
        "| teacher to student | teacher | ms | asked, ms | without, ms | ratio | bound |\n"
        "|---|---|---:|---:|---:|---:|---:|",
        lambda r: (
            f"| {r['case']} | {r['how']} | {r['one']:.2f} | {r['asked']:.2f} | {r['other']:.2f} | {interval(r)} "
            f"| {r['bound']:.2f} |"
        ),
    ),
    "cache": (
        "Keeping the teacher's logits",
        f"{SAMPLES:,} samples in {VIEWS} views.",
        "| teacher to student | form | seconds | bytes |\n|---|---|---:|---:|",
        lambda r: f"| {r['case']} | {r['form']} | {r['seconds']:.2f} | {r['bytes']:,} |",
    ),
    "memory": (
        "Memory",
        "Growth of the peak resident memory of a process that writes a cache of 1,000 fp16 logits a sample in 2 "
        "views, then reads all of one view.",
        "| samples | cache, kB | growth, kB |\n|---:|---:|---:|",
        lambda r: f"| {r['samples']:,} | {r['cache_kb']:,} | {r['grown_kb']:,} |",
    ),
}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Distillation", "", "Written by `python benchmarks/distillation.py step cache memory`.", ""]
    for name in SECTIONS:
        if name in results:
            title, text, head, row = HEADS[name]
            lines += [f"## {title}", "", text, "", head, *(row(item) for item in results[name]["rows"]), ""]
            if results[name]["load"] > 0.5:
                load = results[name]["load"]
                lines += [f"The machine was not idle: {load:.1f} of its cores were busy when this began.", ""]
    return "\n".join([*lines, f"{results['machine']}", ""])


def main() -> None:
    """Measure the named sections and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file; the page lies beside it")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    results = json.loads(asked.output.read_text()) if asked.output.is_file() else {}
    for name in asked.sections or SECTIONS:
        load = busy()
        results |= {"machine": machine(PACKAGES), name: {"load": load, "rows": globals()[name](asked.rounds)}}
        asked.output.write_text(json.dumps(results, indent=1) + "\n")
        asked.output.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
