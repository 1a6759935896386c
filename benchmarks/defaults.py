"""Compare KDQ's default recipe with a chain made by hand: the same float distillation, then ONNX Runtime's quantizer.

Both students see equally many epochs. By hand: all of them in float, as in `distil`, then `quantize_static` of ONNX
Runtime with its defaults (QDQ, per channel) on the calibration samples that KDQ takes. KDQ: `quantize: {use: auto}`
with a budget of as many epochs. Both files answer the same test split in ONNX Runtime; seeds are paired.

KDQ does not repeat what is in the store already, and the script keeps the page's figures in `defaults.json` beside the
home. So a second start continues where the first one stopped.

```
pip install ./examples
export KDQ_DATA_DIR=DIR # where the files of the data sets are; without it KDQ fetches those of Fashion-MNIST
python benchmarks/defaults.py --home DIR > benchmarks/defaults.md
python benchmarks/defaults.py --home DIR --only spoken-digits --seeds 1 --epochs 2 # a short form
```
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

from kdq_core.intervals import mean_of
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Workload
from kdq_core.recipe.site import Site
from kdq_core.recipe.spec import Recipe
from kdq_flows import compress
from kdq_flows.facts.result import RunResult

PACKAGES = ("kdq", "torch", "onnxruntime")
CALIBRATION = (8, 64)
"""Batches and samples in a batch, as in KDQ's default."""
SETTINGS: dict[str, dict[str, Any]] = {
    "clinc150": {"workload": {"use": "clinc150"}, "epochs": 16},
    "clinc150-gru": {"workload": {"use": "clinc150", "options": {"student_net": "gru"}}, "epochs": 16},
    "spoken-digits": {"workload": {"use": "spoken-digits"}, "epochs": 16, "augmented": True},
    "spoken-digits-gru": {
        "workload": {"use": "spoken-digits", "options": {"student_net": "gru"}}, "epochs": 16, "augmented": True,
    },
    "fashion-mnist": {"workload": {"use": "fashion-mnist", "options": {"train_images": 12_000}}, "epochs": 16},
    "fashion-mnist-depthwise": {
        "workload": {"use": "fashion-mnist", "options": {"train_images": 12_000, "student_net": "depthwise"}},
        "epochs": 16,
    },
    "adult": {"workload": {"use": "adult"}, "epochs": 10},
}  # fmt: skip
"""Data and epochs; everything else is the recipe's default. No recipe was tuned for them."""
ABOUT = """\
# KDQ's defaults and a chain made by hand

Written by `python benchmarks/defaults.py`. Teacher, student, start, batches and steps are the same, and are KDQ's
defaults; nothing was tuned for these data. *By hand*: all epochs of distillation in float, the teacher running beside
the student on new views of the samples where they are augmented; then `onnxruntime.quantization.quantize_static` (QDQ,
weights per channel, min-max, 512 calibration samples). *KDQ*: the default recipe with a budget of as many epochs, so
with four kept views and `quantize: {use: auto}`. Figures are the top-1 of the shipped file in % on the test split, in
ONNX Runtime; means over the seeds. The difference is paired over the seeds, with its 95 % interval by Student's t."""


def recipe(name: str, seed: int, epochs: int | None, *, hand: bool) -> Recipe:
    """The recipe of one data set and seed; it measures quality alone. `hand`: the student of the chain made by hand."""
    spec = SETTINGS[name]
    budget = epochs or spec["epochs"]
    online = hand and spec.get("augmented", False)
    sections: dict[str, Any] = {"distill": {"fit": {"epochs": budget}}, "quantize": {"use": "static"}} if hand else {}
    return Recipe.model_validate({
        "name": f"defaults-{name}", "seed": seed, "workload": spec["workload"],
        "teacher": {"fit": {"epochs": budget}, **({"cache": {"enabled": False}} if online else {})},
        "stages": ["train_teacher", "cache_teacher", "distill", "quantize", "export", "evaluate"],
        "evaluate": ["quality"], "gates": [], **(sections if hand else {"budget": {"epochs": budget}}),
    })  # fmt: skip


def compared(name: str, seed: int, site: Site, epochs: int | None) -> dict[str, Any]:
    """Run KDQ, quantize a float student by hand, and give the figures of both."""
    files: dict[bool, Path] = {}
    results: dict[bool, RunResult] = {}
    for hand in (False, True):
        asked = recipe(name, seed, epochs, hand=hand)
        results[hand] = result = compress(asked, site)
        assert result.artifact is not None
        files[hand] = Path(result.artifact.path).with_name("student.onnx")
    workload = Catalog.load().build("workload", asked.workload.use, asked.workload.options)
    assert isinstance(workload, Workload)
    made = site.home / "by-hand" / f"{name}-{seed}.onnx"
    by_hand(files[True], made, workload, seed)
    return {
        "float": results[True].models["student"]["top1"],
        "hand": top1(made, workload),
        "kdq_float": results[False].models["student"]["top1"],
        "kdq": results[False].models["int8"]["top1"],
        "chosen": "" if results[False].choice is None else results[False].choice.use,
        "epochs": asked.distill.fit.epochs,
    }


def by_hand(source: Path, target: Path, workload: Workload, seed: int) -> None:
    """Quantize a float file as ONNX Runtime's documentation does it for CPUs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    number, size = CALIBRATION
    names = [one.name for one in session(source).get_inputs()]

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batches = islice(workload.batches("train", batch_size=size, seed=seed), number)
            self._left: Iterator[dict[str, np.ndarray]] = (
                dict(zip(names, (x.numpy() for x in batch.inputs), strict=True)) for batch in batches
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    target.parent.mkdir(parents=True, exist_ok=True)
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(target), Samples(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def session(path: Path) -> Any:
    """Load a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def top1(path: Path, workload: Workload) -> float:
    """The share of right answers of a file on the test split."""
    loaded, right, seen = session(path), 0, 0
    names = [one.name for one in loaded.get_inputs()]
    for batch in workload.batches("test", batch_size=256):
        assert batch.targets is not None
        given = loaded.run(None, dict(zip(names, (x.numpy() for x in batch.inputs), strict=True)))[0]
        labels = batch.targets.numpy()
        right += int(((given.argmax(1) == labels) & (labels >= 0)).sum())
        seen += int((labels >= 0).sum())
    return right / seen


def page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page in Markdown, from the figures by data set and seed."""
    head = ("data, student", "epochs", "by hand, float", "by hand", "KDQ, float", "KDQ", "KDQ - by hand", "chosen")
    rows = [f"| {' | '.join(head)} |", f"|---|{'---:|' * 6}---|"]
    for name, seeds in found.items():
        runs = list(seeds.values())
        means = [100 * sum(run[way] for run in runs) / len(runs) for way in ("float", "hand", "kdq_float", "kdq")]
        mean, low, high = mean_of([100 * (run["kdq"] - run["hand"]) for run in runs])
        ends = f" ({low:+.2f} to {high:+.2f})" if len(runs) > 1 else ""
        cells = [name, str(runs[0]["epochs"]), *(f"{value:.2f}" for value in means), f"{mean:+.2f}{ends}"]
        rows.append(f"| {' | '.join(cells)} | {', '.join(dict.fromkeys(run['chosen'] for run in runs))} |")
    return "\n\n".join([ABOUT, "\n".join(rows), machine(PACKAGES)])


def main() -> None:
    """Run what is missing, then print the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True, help="home of KDQ for these runs")
    parser.add_argument("--only", nargs="*", choices=sorted(SETTINGS), help="some of the data sets")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epochs", type=int, help="epochs of teacher and student, for a short form")
    asked = parser.parse_args()
    site, file = Site(home=asked.home.absolute()), asked.home / "defaults.json"
    site.home.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in asked.only or SETTINGS:
        for seed in range(asked.seeds):
            key = f"{name} {seed} {asked.epochs or SETTINGS[name]['epochs']}"
            if key not in kept:
                kept[key] = compared(name, seed, site, asked.epochs)
                file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            found.setdefault(name, {})[str(seed)] = kept[key]
            print(f"{key}: {kept[key]}", file=sys.stderr)
    print(page(found))


if __name__ == "__main__":
    main()
