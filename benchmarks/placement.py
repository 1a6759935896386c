"""Measure what the placement of operators by measurement is worth: all int8, and the form that KDQ chooses.

For each model, runtime and batch size it lets the stage `place` choose a form, and then measures the float file, the
file with all in int8 that can be, without the exact rewrites of `kdq_targets.onnx_faster`, and the chosen file beside
each other. Rows are added to `benchmarks/placement.json`, and `benchmarks/placement.md` is written anew:

```
python benchmarks/placement.py
python benchmarks/placement.py --models GRU LSTM --targets "ONNX Runtime" --batches 1
```
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from machine import busy
from models import BENCHMARKS, Benchmark
from quantization import TARGETS, beside, measured_on, plugins
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "placement.json"
BATCHES = (1, 32)
ROUNDS = 20
NAMES = ("depthwise CNN", "GRU", "LSTM", "transformer", "ResNet-8", "MLP with embeddings", "conv net, 4.3M")


class DepthwiseNet(nn.Module):
    """A stem and four depthwise separable convolutions of 64 channels on 40 x 98 spectrograms.

    Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers", https://arxiv.org/abs/1711.07128, DS-CNN.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, (10, 4), (2, 2), (5, 1), bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]` of spectrograms `[B, 1, 40, 98]`."""
        logits: Tensor = self.head(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))
        return logits


ITEMS: tuple[Benchmark, ...] = (
    Benchmark("depthwise CNN", DepthwiseNet, lambda count: (torch.randn(count, 1, 40, 98),)),
    *(item for item in BENCHMARKS if item.name in NAMES),
)


def before(target: Any) -> Any:
    """The target without the exact rewrites."""

    class Before(type(target)):  # type: ignore[misc]
        late_imports: ClassVar[tuple[str, ...]] = ()

        def _rewrites(self, model: nn.Module) -> Any:
            from kdq_targets import onnx_faster

            return [one for one in super()._rewrites(model) if getattr(one, "__module__", "") != onnx_faster.__name__]

    return Before.model_validate(target.model_dump())


def row(item: Benchmark, runtime: str, target: Any, batch: int) -> dict[str, Any]:
    """Choose a form, and measure three files."""
    from kdq_core.plugins.forms import Form
    from kdq_core.recipe.spec import QuantizeSpec
    from kdq_core.work.forms import INT8, Bench, fastest

    placed = type(target).model_validate({**target.model_dump(), "batch_size": batch})
    torch.manual_seed(0)
    model, inputs = item.model().eval(), item.inputs(max(batch, 32))
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / part for part in ("new", "old")]
        for folder in folders:
            folder.mkdir()
        bench, old = (
            Bench(model, inputs, one, QuantizeSpec(), folder, batch)
            for one, folder in zip((placed, before(placed)), folders, strict=True)
        )
        began = time.perf_counter()
        chosen = fastest(bench, lambda *_: None)
        took = time.perf_counter() - began
        files = [
            bench.write(None),
            old.write(Form(name=INT8)),
            bench.write(Form(name=chosen.form, options=chosen.options)),
        ]
        openers = [partial(target.session, path, threads=1) for path in files]
        rows = tuple(x[:batch].numpy() for x in inputs)
        found = {}
        for label, index in (("before", 1), ("after", 2)):
            found[label] = beside([openers[0], openers[index]], rows, ROUNDS)
        sizes = [path.stat().st_size for path in files]
    return {
        "model": item.name, "runtime": runtime, "batch": batch, "form": chosen.form, "seconds": took, "bytes": sizes,
        **found, "timings": [one.model_dump(mode="json") for one in chosen.timings],
    }  # fmt: skip


def interval(found: dict[str, Any]) -> str:
    """A speed-up with its interval."""
    return f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def page(result: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [
        "# Placement by measurement",
        "",
        "Written by `python benchmarks/placement.py`. Speed-up over the float file in the same runtime, one thread, "
        "untrained models, with its 95 % interval. `all int8`: everything in int8 that can be, without the exact "
        "rewrites of `kdq_targets.onnx_faster`. `chosen`: the form that the stage `place` chose, with them. `seconds`: "
        "how long the choice took.",
        "",
        "| model | runtime | batch | all int8 | chosen | form | float bytes | bytes | seconds |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for one in result["rows"]:
        lines.append(
            f"| {one['model']} | {one['runtime']} | {one['batch']} | {interval(one['before'])} "
            f"| {interval(one['after'])} | {one['form']} | {one['bytes'][0]:,} | {one['bytes'][2]:,} "
            f"| {one['seconds']:.1f} |"
        )
    lines += ["", "## The forms that were measured", "", "Speed-up over the float file, with its 99 % interval."]
    lines += ["", "| model | runtime | batch | form | speed-up |", "|---|---|---:|---|---:|"]
    for one in result["rows"]:
        for form in one["timings"]:
            told = f"{form['speedup']:.2f} ({form['low']:.2f}-{form['high']:.2f})"
            lines.append(f"| {one['model']} | {one['runtime']} | {one['batch']} | {form['name']} | {told} |")
    if result["load"] > 0.5:
        lines += ["", f"The machine was not idle: other processes kept {result['load']:.1f} of its cores busy."]
    return "\n".join([*lines, "", result["machine"], ""])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[item.name for item in ITEMS])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file; the page lies beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {"rows": []}
    order, runtimes = [item.name for item in ITEMS], list(TARGETS)
    for item in ITEMS:
        for runtime, target in plugins(TARGETS).items():
            for batch in arguments.batches:
                if item.name not in arguments.models or runtime not in arguments.targets:
                    continue
                load, made = busy(), row(item, runtime, target, batch)
                print(made["model"], runtime, batch, interval(made["before"]), interval(made["after"]), made["form"])
                place = (item.name, runtime, batch)
                kept = [r for r in result["rows"] if (r["model"], r["runtime"], r["batch"]) != place]
                rows = sorted(
                    [*kept, made], key=lambda r: (order.index(r["model"]), runtimes.index(r["runtime"]), r["batch"])
                )
                result = {"machine": measured_on(), "load": load, "rows": rows}
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")
                arguments.output.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    main()
