"""Measure what int8 changes: latency, file size, cost of a training step, memory.

Each section measures, adds its rows to `benchmarks/quantization.json` and writes `benchmarks/quantization.md` anew, so
that sections can be run apart:

```
python benchmarks/quantization.py coverage latency size step memory
python benchmarks/quantization.py latency --models ResNet-8 GRU --rounds 5
```
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from machine import busy, machine

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "quantization.json", HERE / "quantization.md"
SECTIONS = ("coverage", "latency", "size", "step", "memory")
PACKAGES = ("kdq", "torch", "onnxruntime", "openvino")
BATCHES = (1, 32)
ORT = "ONNX Runtime"
TARGETS = {
    ORT: ("kdq_targets.onnxruntime_cpu", "OnnxRuntimeCpu"),
    "OpenVINO": ("kdq_targets.openvino_cpu", "OpenVinoCpu"),
}
QUANTIZERS = {"minmax-qat": ("kdq_quantizers.minmax_qat", "MinMaxQat"), "lsq": ("kdq_quantizers.lsq", "Lsq")}
COVERED = {"static": ("kdq_quantizers.static", "Static"), "lsq": QUANTIZERS["lsq"]}
COMPUTING = ("conv", "linear", "lstm", "gru")
STEP_BATCH = {"conv net, 4.3M": 16, "transformer": 64, "LSTM": 32, "GRU": 32, "GRU, weight-only": 32}
SLOT = 0.03
"""Least seconds that one measurement of a latency should take."""


def plugins(known: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Load those of the plug-ins that are installed."""
    found = {}
    for name, (module, attribute) in known.items():
        if importlib.util.find_spec(module) is not None:
            found[name] = getattr(importlib.import_module(module), attribute)()
    return found


def targets(item: Any) -> dict[str, Any]:
    """Return the targets of a model, by the name of their runtime."""
    found = plugins(TARGETS)
    if not item.options:
        return found
    return {ORT: type(found[ORT]).model_validate(item.options)}


def prepared_graph(item: Any, target: Any, quantizer: Any, bits: tuple[int, int] = (8, 8)) -> Any:
    """Capture a model and calibrate its ranges; the prepared model is in eval mode."""
    import torch

    from kdq_core.quantization.capture import capture
    from kdq_core.quantization.placing import placed
    from kdq_core.quantization.prepare import prepare, set_phase
    from kdq_core.recipe.spec import QuantizeSpec

    torch.manual_seed(0)
    graph = capture(item.model(), item.inputs(2))
    spec = QuantizeSpec(weights=bits[0], activations=bits[1])
    prepared = prepare(graph, placed(graph, target, quantizer, spec).places, quantizer)
    set_phase(prepared, observe=True, quantize=False, freeze_batch_norm=False)
    with torch.no_grad():
        for _ in range(3):
            prepared(*item.inputs(32))
    set_phase(prepared, observe=False, quantize=True, freeze_batch_norm=True)
    return graph, prepared.eval()


def files(
    item: Any, target: Any, folder: Path, bits: tuple[int, int] = (8, 8), quantizer: Any = None
) -> tuple[Path, Path, Any]:
    """Write the float and the quantized file of a model; return both paths and the coverage."""
    from kdq_core.quantization.convert import convert
    from kdq_quantizers.minmax_qat import MinMaxQat

    graph, prepared = prepared_graph(item, target, quantizer or MinMaxQat(), bits)
    paths = folder / "float", folder / f"w{bits[0]}"
    target.export(item.model().eval(), item.inputs(2), paths[0])
    target.export(convert(prepared), item.inputs(2), paths[1])
    return *paths, target.coverage(paths[1], graph)


def interleaved(one: Callable[[], object], other: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Time both in turns: milliseconds of each, and the median ratio one / other with its 95 % bootstrap interval."""
    counts = []
    for call in (one, other):
        call()
        began = time.perf_counter()
        call()
        counts.append(max(1, round(SLOT / max(time.perf_counter() - began, 1e-6))))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for index, call in enumerate((one, other)):
            began = time.perf_counter()
            for _ in range(counts[index]):
                call()
            times[index].append((time.perf_counter() - began) / counts[index] * 1e3)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(ratios, k=len(ratios))) for _ in range(2000))
    low, high = medians[50], medians[1949]
    return {
        "one": statistics.median(times[0]), "other": statistics.median(times[1]),
        "ratio": statistics.median(ratios), "low": low, "high": high,
    }  # fmt: skip


def beside(openers: Sequence[Callable[[], Any]], inputs: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    """Measure two files beside each other as `kdq bench` does: milliseconds of each, and the ratio one / other."""
    from kdq_core.timing.turns import measure_times

    ((one, other),) = measure_times(openers, [inputs], seconds=2 * SLOT * rounds, rounds=rounds)
    ratio = one.ratio_to(other)
    times = {name: 1e3 * file.quantile(0.5).value for name, file in (("one", one), ("other", other))}
    return {**times, "ratio": ratio.value, "low": ratio.low, "high": ratio.high}


def share_of(operators: Any) -> float:
    """Return the int8 share of the multiply-accumulates of conv, linear and recurrent layers."""
    wide = [row for row in operators if row.operator in COMPUTING]
    return float(sum(row.macs for row in wide if row.int8) / sum(row.macs for row in wide))


def coverage(items: list[Any], rounds: int) -> list[dict[str, Any]]:  # noqa: ARG001
    """Read from each runtime's own graph what runs in int8, at 8 bits."""
    rows = []
    for item in items:
        for runtime, target in targets(item).items():
            for name, quantizer in plugins(COVERED).items():
                with tempfile.TemporaryDirectory() as folder:
                    *_, operators = files(item, target, Path(folder), quantizer=quantizer)
                floats = sorted({f"{row.operator} ({row.reason})" for row in operators if not row.int8})
                rows.append(
                    {
                        "model": item.name, "runtime": runtime, "quantizer": name, "share": share_of(operators),
                        "macs": sum(row.macs for row in operators), "float": floats,
                    }
                )  # fmt: skip
                report(rows[-1])
    return rows


def latency(items: list[Any], rounds: int) -> list[dict[str, Any]]:
    """Compare float and int8 in the same runtime, with one thread."""
    rows = []
    for item in items:
        for runtime, target in targets(item).items():
            with tempfile.TemporaryDirectory() as folder:
                *paths, operators = files(item, target, Path(folder))
                share = share_of(operators)
                openers = [partial(target.session, path, threads=1) for path in paths]
                for batch in BATCHES:
                    x = tuple(part.numpy() for part in item.inputs(batch))
                    found = beside(openers, x, rounds)
                    rows.append({"model": item.name, "runtime": runtime, "batch": batch, "share": share, **found})
                    report(rows[-1])
    return rows


def size(items: list[Any], rounds: int) -> list[dict[str, Any]]:
    """Measure size and speed of files with 8-, 4- and 2-bit weights (first and last layer 8), and the float size."""
    rows = []
    for item in items:
        target = targets(item)[ORT]
        with tempfile.TemporaryDirectory() as name:
            made = {bits: files(item, target, Path(name), (bits, 8)) for bits in (8, 4, 2)}
            whole = made[8][0].stat().st_size
            x = tuple(part.numpy() for part in item.inputs(32))
            openers = {bits: partial(target.session, paths[1], threads=1) for bits, paths in made.items()}
            for bits, paths in made.items():
                found = beside([openers[8], openers[bits]], x, rounds)
                bytes_ = paths[1].stat().st_size
                rows.append({"model": item.name, "bits": bits, "float_bytes": whole, "bytes": bytes_, **found})
                report(rows[-1])
    return rows


def step(items: list[Any], rounds: int) -> list[dict[str, Any]]:
    """Compare a training step with fake quantization to the float step, in the same memory format."""
    import torch
    from torch.nn import functional as F

    from kdq_core.quantization.prepare import set_phase

    def stepper(model: Any, inputs: tuple[Any, ...], labels: Any) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def run() -> None:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(*inputs), labels))
            optimizer.step()

        return run

    rows = []
    for item in items:
        batch = STEP_BATCH.get(item.name, 128)
        inputs, labels = item.inputs(batch), torch.randint(10, (batch,))
        images = inputs[0].dim() == 4
        forms = {"contiguous": torch.contiguous_format}
        if images:
            forms["channels_last"] = torch.channels_last
        for form, layout in forms.items():
            for name, quantizer in plugins(QUANTIZERS).items():
                _, prepared = prepared_graph(item, targets(item)[ORT], quantizer)
                set_phase(prepared, observe=True, quantize=True, freeze_batch_norm=False)
                model = item.model().train()
                if images:
                    model, prepared = (m.to(memory_format=layout) for m in (model, prepared))
                given = tuple(x.contiguous(memory_format=layout) if images else x for x in inputs)
                calls = (stepper(m, given, labels) for m in (prepared.train(), model))
                found = interleaved(*calls, rounds)
                rows.append({"model": item.name, "batch": batch, "format": form, "quantizer": name, **found})
                report(rows[-1])
    return rows


def memory(items: list[Any], rounds: int) -> list[dict[str, Any]]:  # noqa: ARG001
    """Measure the growth of resident memory in a fresh process that loads a file and runs one batch of 32."""
    code = (
        "import sys, numpy as np, importlib; from pathlib import Path\n"
        "def rss(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))\n"
        "target = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()\n"
        "data = np.load(sys.argv[4]); x = tuple(data[k] for k in data.files)\n"
        "for name in ('ort_session', 'openvino_session'): importlib.import_module('kdq_targets.' + name)\n"
        "before = rss(); session = target.session(Path(sys.argv[3]), threads=1); session.run(x)\n"
        "print(rss() - before)\n"
    )
    import numpy as np

    rows = []
    for item in items:
        for runtime, target in targets(item).items():
            with tempfile.TemporaryDirectory() as folder:
                *paths, _ = files(item, target, Path(folder))
                np.savez(Path(folder) / "x.npz", *(part.numpy() for part in item.inputs(32)))
                grown = []
                for path in paths:
                    command = [sys.executable, "-c", code, *TARGETS[runtime], str(path), str(Path(folder) / "x.npz")]
                    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
                    grown.append(statistics.median(int(done.stdout) for done in runs))
                rows.append({"model": item.name, "runtime": runtime, "one": grown[0], "other": grown[1]})
                report(rows[-1])
    return rows


def report(row: dict[str, Any]) -> None:
    """Show progress."""
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, file=sys.stderr)


def interval(row: dict[str, Any]) -> str:
    """Format a ratio with its interval."""
    return f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})"


HEADS = {
    "coverage": (
        "Coverage",
        "The share of the multiply-accumulates (MACs) of conv, linear and recurrent layers that int8 kernels compute, "
        "at 8 bits, read from the runtime's own optimised graph. The last column lists the operators that run in "
        "float, and why.",
        "| model | runtime | quantizer | MACs | in int8 | in float |\n|---|---|---|---:|---:|---|",
        lambda r: (
            f"| {r['model']} | {r['runtime']} | {r['quantizer']} | {r['macs']:,} | {r['share']:.0%} "
            f"| {'; '.join(r['float']) or 'nothing'} |"
        ),
    ),
    "latency": (
        "Latency, one thread",
        "Milliseconds a batch of the float and the int8 file in the same runtime, measured in turns. The ratio is "
        "float / int8, with its 95 % interval. `int8 MACs` is the share of the multiply-accumulates of conv, linear "
        "and recurrent layers that int8 kernels compute.",
        "| model | runtime | batch | float ms | int8 ms | ratio | int8 MACs |\n|---|---|---:|---:|---:|---:|---:|",
        lambda r: (
            f"| {r['model']} | {r['runtime']} | {r['batch']} | {r['one']:.3f} | {r['other']:.3f} | {interval(r)} "
            f"| {r['share']:.0%} |"
        ),
    ),
    "size": (
        "File size, ONNX",
        "Files with weights of 8, 4 and 2 bits; first and last layers and activations have 8 bits. The last column is "
        "the latency of the 8-bit file over the latency of this file, at batch 32.",
        "| model | weights | float bytes | bytes | ratio | 8-bit time / time |\n|---|---:|---:|---:|---:|---:|",
        lambda r: (
            f"| {r['model']} | {r['bits']} | {r['float_bytes']:,} | {r['bytes']:,} "
            f"| {r['float_bytes'] / r['bytes']:.2f} | {interval(r)} |"
        ),
    ),
    "step": (
        "Training step",
        "Time of forward, backward and SGD with fake quantization at 8 bits, over the time of the float step in the "
        "same memory format, with 2 threads.",
        "| model | batch | format | quantizer | QAT ms | float ms | ratio |\n|---|---:|---|---|---:|---:|---:|",
        lambda r: (
            f"| {r['model']} | {r['batch']} | {r['format']} | {r['quantizer']} | {r['one']:.1f} | {r['other']:.1f} "
            f"| {interval(r)} |"
        ),
    ),
    "memory": (
        "Memory",
        "Growth of resident memory when a fresh process loads the file and runs one batch of 32 (median of 3).",
        "| model | runtime | float kB | int8 kB |\n|---|---|---:|---:|",
        lambda r: f"| {r['model']} | {r['runtime']} | {r['one']:,.0f} | {r['other']:,.0f} |",
    ),
}  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """Format the results as Markdown."""
    lines = [
        "# Quantization",
        "",
        "Written by `python benchmarks/quantization.py coverage latency size step memory`.",
        "",
    ]
    for name in SECTIONS:
        if name not in results:
            continue
        title, text, head, row = HEADS[name]
        lines += [f"## {title}", "", text, "", head, *(row(item) for item in results[name]["rows"]), ""]
        load = results[name]["load"]
        if load > 0.5:
            lines += [
                f"The machine was not idle: other processes kept {load:.1f} of its cores busy when this began.",
                "",
            ]
        lines += [results[name]["machine"], ""]
    return "\n".join(lines)


def measured_on() -> str:
    """Describe the machine and its int8 kernels, because sections may come from several machines."""
    vnni = {"avx512_vnni", "avx_vnni"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    note = (
        "The CPU has VNNI."
        if vnni
        else "The CPU has no VNNI: its int8 kernels use 7-bit weights and gain less than kernels with VNNI."
    )
    return f"{machine(PACKAGES)} {note}"


def main() -> None:
    """Measure the named sections and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file; the page lies beside it")
    arguments = parser.parse_args()
    from models import BENCHMARKS

    items = [item for item in BENCHMARKS if arguments.models is None or item.name in arguments.models]
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name in arguments.sections or SECTIONS:
        load = busy()
        rows = globals()[name](items, arguments.rounds)
        measured = {row["model"] for row in rows}
        kept = [row for row in results.get(name, {}).get("rows", []) if row["model"] not in measured]
        order = [item.name for item in BENCHMARKS]
        rows = sorted(kept + rows, key=lambda row: order.index(row["model"]))
        results[name] = {"machine": measured_on(), "load": load, "rows": rows}
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
        arguments.output.with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main()
